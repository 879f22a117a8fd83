"""Compiled functions on all cores of a CPU.

`with_barrier` runs a function of several steps, each of which needs the whole result of the one before; between the
steps the threads wait for each other at the barrier. numba's own threads take twice as long to compile, and another
OpenMP beside Paddle's makes both slow.
"""
import concurrent.futures
import ctypes
import functools
import os
import platform
import threading

import numpy as np

from kernels.compiled import inlined, jit, numba
from runtime.parallel import cpu_threads

SPINS = 5000  # before a thread that waits lets others run: 0.1 to 0.2 ms on x86
ENDED = 2**62  # of a barrier: nobody waits any more

if numba is not None:
    from llvmlite import binding, ir
    from numba.core import cgutils, types

    _YIELD = 'SwitchToThread' if os.name == 'nt' else 'sched_yield'  # of the operating system
    if os.name == 'nt':
        binding.add_symbol(_YIELD, ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value)
    let_others_run = types.ExternalFunction(_YIELD, types.int32())

    @numba.extending.intrinsic
    def _load(context, address):
        """The integer at an address, as another thread may have changed it."""
        def generate(context, builder, signature, arguments):
            if platform.machine() in ('x86_64', 'AMD64'):  # the instruction for loops that wait
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, 'llvm.x86.sse2.pause'), [])
            return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), 'acquire', 8)
        return types.int64(types.int64), generate

    @numba.extending.intrinsic
    def _add_one(context, address):
        """Add 1 to an integer that other threads change too; they see what this thread wrote before."""
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            builder.atomic_rmw('add', pointer, ir.IntType(64)(1), 'acq_rel')
            return context.get_dummy_value()
        return types.void(types.int64), generate


@jit
def _wait_for(address, count):
    """Wait until the counter at an address reaches a count: one compiled call, which no signal interrupts."""
    looks = 0
    while _load(address) < count:
        looks += 1
        if looks > SPINS:  # there are more threads than cores
            let_others_run()


@inlined
def wait_at(barrier, threads, number):
    """Wait, in a function that with_barrier runs, until all of its threads have come here. number: of the waits at this
    barrier, counted from 1."""
    if threads > 1:
        _add_one(barrier.ctypes.data)
        _wait_for(barrier.ctypes.data, threads * number)


@functools.lru_cache(None)
def _helpers(process):
    """A child process has none of its parent's threads."""
    return concurrent.futures.ThreadPoolExecutor(cpu_threads() - 1)


_in_use = threading.Lock()  # a function that waits needs all of its threads at once


def with_barrier(function, threads, *arguments):
    """Call function(*arguments, barrier, begin, end), compiled by `jit`, on so many threads at once, with begin = the
    thread's number and end = begin + 1; or in one thread with 0 and `threads`, if such a call is running already, in
    this thread or another one. threads: at most cpu_threads().

    The function calls wait_at(barrier, threads, number) as often in each thread. If one of them ends with an exception,
    the others no longer wait and their results mean nothing.
    """
    assert threads <= cpu_threads(), 'the threads would wait for each other for ever'
    barrier = np.zeros(1, np.int64)
    if threads < 2 or not _in_use.acquire(blocking=False):
        function(*arguments, barrier, 0, threads)
        return

    def share(number):
        try:
            function(*arguments, barrier, number, number + 1)
        except BaseException:
            barrier[0] = ENDED
            raise
    try:
        others = [_helpers(os.getpid()).submit(share, number) for number in range(1, threads)]
        share(0)
        for other in others:
            other.result()
    except BaseException:  # the helpers use memory of the caller: wait for all, also for one that is not in the list
        barrier[0] = ENDED
        _helpers(os.getpid()).shutdown()
        _helpers.cache_clear()
        raise
    finally:
        _in_use.release()
