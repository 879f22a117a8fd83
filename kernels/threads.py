"""Compiled functions on all cores of a CPU.

A step of a search calls hundreds of them, many of which take a tenth of a millisecond, and waking a sleeping thread
takes half as long. Therefore a thread that has nothing to do looks for a new task for about a millisecond before it
goes to sleep, as the threads of OpenMP do. It offers its core to other programs each time it looks.

numba's own threads take twice as long to compile, and another OpenMP beside Paddle's makes both slow.
"""
import functools
import os
import queue
import threading

import numpy as np

from kernels.compiled import jit, numba
from runtime.parallel import cpu_threads

LOOKS = 1000  # for a new task, about a microsecond each
TASK, DONE = 0, 8  # elements of Helper.counts: in different lines of the cache

if numba is not None:
    from llvmlite import ir
    from numba.core import types

    if hasattr(os, 'sched_yield'):
        _offer_core = types.ExternalFunction('sched_yield', types.int32())
    else:
        @numba.njit
        def _offer_core():
            return 0

    @numba.extending.intrinsic
    def _load(context, address):
        """The integer at an address, as another thread may have changed it."""
        def generate(context, builder, signature, arguments):
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


@jit
def _reaches(address, count, looks):
    """Whether the counter at an address reaches a count while it is looked at that many times."""
    for _ in range(looks):
        if _load(address) >= count:
            return True
        _offer_core()
    return False


@jit
def _set(address, count):
    _store(address, count)


class Helper(threading.Thread):
    """A thread that does one task after the other: start(task) gives it one, finish() waits for its end."""

    def __init__(self):
        super().__init__(daemon=True)
        self.counts = np.zeros(16, np.int64)  # of the tasks given, [TASK], and of those done, [DONE]
        self.address = self.counts.ctypes.data
        self.tasks, self.given, self.error = queue.SimpleQueue(), 0, None

    def start_task(self, function, *arguments):
        self.given += 1
        self.tasks.put((function, arguments))
        _set(self.address + 8 * TASK, self.given)

    def finish(self):
        """Wait for the end of the task, interrupted or not: it uses memory of the caller. Returns the exception that
        it ended with, or None."""
        try:
            self._wait()
        finally:
            self._wait()
        return self.error

    def _wait(self):
        while not _reaches(self.address + 8 * DONE, self.given, LOOKS):
            pass

    def run(self):
        done = 0
        while True:
            _reaches(self.address + 8 * TASK, done + 1, LOOKS)  # if it does not, sleep until there is a task
            function, arguments = self.tasks.get()
            self.error = None
            try:
                function(*arguments)
            except Exception as error:
                self.error = error
            done += 1
            function = arguments = None
            _set(self.address + 8 * DONE, done)


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


def on_all_cores(function, jobs, *arguments):
    """Call function(*arguments, begin, end), compiled by `jit`, on all cores, each with its part of range(jobs). On one
    core if another thread has the others."""
    parts = min(cpu_threads(), jobs)
    if parts < 2 or not _in_use.acquire(blocking=False):
        if jobs > 0:
            function(*arguments, 0, jobs)
        return
    helpers = _helpers()[:parts - 1]
    try:
        bounds = [jobs * part // parts for part in range(parts + 1)]
        for helper, begin, end in zip(helpers, bounds[1:], bounds[2:]):
            helper.start_task(function, *arguments, begin, end)
        try:
            function(*arguments, *bounds[:2])
        finally:
            errors = [helper.finish() for helper in helpers]
    finally:
        _in_use.release()
    for error in errors:
        if error is not None:
            raise error
