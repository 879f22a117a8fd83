"""Compiled functions on all cores of a CPU.

A step of a search calls hundreds of them, many of which take a tenth of a millisecond, and waking a sleeping thread
takes half as long. Therefore a thread that has nothing to do looks for a new task for a while before it goes to sleep,
as the threads of OpenMP do. Not for long: other programs need the cores too.

`with_barrier` runs a function of several steps, each of which needs the whole result of the one before; between the
steps the threads wait for each other at the barrier.

numba's own threads take twice as long to compile, and another OpenMP beside Paddle's makes both slow.
"""
import ctypes
import functools
import os
import platform
import queue
import threading

import numpy as np

from kernels.compiled import inner, jit, numba
from runtime.parallel import cpu_threads

LOOKS = 5000  # before a thread goes to sleep: 0.1 to 0.2 ms on x86, less on processors without its instruction `pause`
TASK, DONE = 0, 8  # indices in Helper.numbers, 64 bytes apart: in different cache lines
ARRIVALS, YIELD = 0, 8  # indices in the array of a barrier: the counter, the address from _yield_function()
ENDED = 2**62  # of ARRIVALS: nobody waits any more

if numba is not None:
    from llvmlite import ir
    from numba.core import types

    @numba.extending.intrinsic
    def _load(context, address):
        """The integer at an address, as another thread may have changed it."""
        def generate(context, builder, signature, arguments):
            if platform.machine() in ('x86_64', 'AMD64'):  # the instruction for loops that wait
                kind, name = ir.FunctionType(ir.VoidType(), []), 'llvm.x86.sse2.pause'
                builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [])
            pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            return builder.load_atomic(pointer, 'acquire', 8)
        return types.int64(types.int64), generate

    @numba.extending.intrinsic
    def _store(context, address, value):
        """Write an integer that other threads may see only after all that this thread wrote before."""
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            builder.store_atomic(arguments[1], pointer, 'release', 8)
            return context.get_dummy_value()
        return types.void(types.int64, types.int64), generate

    @numba.extending.intrinsic
    def _add_one(context, address):
        """Add 1 to an integer that other threads change too; they see what this thread wrote before."""
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            builder.atomic_rmw('add', pointer, ir.IntType(64)(1), 'acq_rel')
            return context.get_dummy_value()
        return types.void(types.int64), generate

    @numba.extending.intrinsic
    def _call(context, address):
        """Call the C function without arguments at an address."""
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
            return context.get_dummy_value()
        return types.void(types.int64), generate


@jit
def _reaches(address, count, looks):
    """Whether the counter at an address reaches a count while it is looked at that many times."""
    for _ in range(looks):
        if _load(address) >= count:
            return True
    return False


@jit
def _set(address, count):
    _store(address, count)


@jit
def _wait_for(address, count, yield_function):
    """Wait until the counter at an address reaches a count: one compiled call, which no signal interrupts."""
    looks = 0
    while _load(address) < count:
        looks += 1
        if looks > LOOKS and yield_function != 0:  # there are more threads than cores
            _call(yield_function)


@functools.lru_cache(None)
def _yield_function():
    """The address of the function of the operating system by which a thread lets others run, or 0."""
    try:
        library, name = (ctypes.windll.kernel32, 'SwitchToThread') if os.name == 'nt' else (ctypes.CDLL(None),
                                                                                              'sched_yield')
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except (OSError, AttributeError):
        return 0


@inner
def wait_at(barrier, threads, number):
    """Wait, in a function that with_barrier runs, until all of its threads have come here. number: of the waits at this
    barrier, counted from 1."""
    if threads > 1:
        arrivals = barrier.ctypes.data + 8 * ARRIVALS
        _add_one(arrivals)
        _wait_for(arrivals, threads * number, barrier[YIELD])


class Helper(threading.Thread):
    """A thread that does one task after the other: start_task gives it one, finish waits for its end.

    It sleeps in a queue until there is a task; the numbers of the newest task and of the last one done tell both sides
    without sleeping.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.numbers = np.zeros(16, np.int64)  # of the newest task, [TASK], and of the last one done, [DONE]
        self.address = self.numbers.ctypes.data
        self.tasks, self.newest, self.error = queue.SimpleQueue(), 0, None

    def start_task(self, function, arguments, on_error):
        """on_error: called without arguments if the task ends with an exception."""
        self.newest += 1
        self.tasks.put((self.newest, function, arguments, on_error))
        _set(self.address + 8 * TASK, self.newest)

    def finish(self, interrupted):
        """Wait for the end of the task: it uses memory of the caller. Returns its exception or None. interrupted:
        whether start_task may not have come to its end."""
        if interrupted:  # if the task is missing in the queue, this one takes its number, else it comes behind it
            self.tasks.put((self.newest, lambda: None, (), lambda: None))
        _wait_for(self.address + 8 * DONE, self.newest, _yield_function())
        error, self.error = self.error, None
        return error

    def run(self):
        number = 0
        while True:
            _reaches(self.address + 8 * TASK, number + 1, LOOKS)  # then get() need not sleep
            number, function, arguments, on_error = self.tasks.get()
            try:
                function(*arguments)
            except BaseException as error:
                self.error = error
                on_error()
            function = arguments = on_error = None
            _set(self.address + 8 * DONE, number)


@functools.lru_cache(None)
def _helpers():
    helpers = [Helper() for _ in range(cpu_threads() - 1)]
    for helper in helpers:
        helper.start()
    return helpers


_in_use = threading.Lock()  # the helpers: two callers at once would take each other's for their own


def _after_fork():
    """A child process has none of its parent's threads."""
    global _in_use
    _helpers.cache_clear()
    _in_use = threading.Lock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def with_barrier(function, threads, *arguments):
    """Call function(*arguments, barrier, begin, end), compiled by `jit`, on so many threads at once, with begin = the
    thread's number and end = begin + 1; or in one thread with 0 and `threads`, if such a call is running already, in
    this thread or another one. threads: at most cpu_threads().

    The function calls wait_at(barrier, threads, number) as often in each thread. If one of them ends with an exception,
    the others no longer wait and their results mean nothing.
    """
    assert threads <= cpu_threads(), 'the threads would wait for each other for ever'
    barrier = np.zeros(16, np.int64)
    barrier[YIELD] = _yield_function()
    if threads < 2 or not _in_use.acquire(blocking=False):
        function(*arguments, barrier, 0, threads)
        return

    def let_go():
        _set(barrier.ctypes.data + 8 * ARRIVALS, ENDED)
    started, errors, interrupted = [], [], False
    try:
        for number, helper in zip(range(1, threads), _helpers()):
            started.append(helper)
            helper.start_task(function, (*arguments, barrier, number, number + 1), let_go)
        function(*arguments, barrier, 0, 1)
    except BaseException:
        interrupted = True
        let_go()
        raise
    finally:
        try:
            errors = [helper.finish(interrupted) for helper in started]
        finally:
            _in_use.release()
    for error in errors:
        if error is not None:
            raise error
