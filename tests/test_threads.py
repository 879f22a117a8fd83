"""kernels/threads.py: every thread does its share exactly once, whoever calls, and exceptions reach the caller."""
import concurrent.futures
import os
import threading

import numpy as np
import pytest

from kernels.compiled import numba

if numba is None:
    pytest.skip('needs numba', allow_module_level=True)

from kernels import threads  # noqa: E402
from kernels.compiled import jit  # noqa: E402


@jit
def _count(done, work, barrier, begin, end):
    for thread in range(begin, end):
        total = np.float32(0)
        for k in range(work):
            total += np.float32(k)
        done[thread] += 1 if total >= 0 else 2


@pytest.fixture
def three_cores(monkeypatch):
    """Helpers for three cores, whatever the machine has."""
    monkeypatch.setattr(threads, 'cpu_threads', lambda: 3)
    threads._helpers.cache_clear()
    yield
    threads._helpers.cache_clear()


def check_helpers_are_free():
    done = np.zeros(3, np.int64)
    for _ in range(100):
        threads.with_barrier(_count, 3, done, 10)
    assert done.tolist() == [100] * 3
    assert threads._in_use.acquire(blocking=False)
    threads._in_use.release()


@pytest.mark.parametrize('count, work', [(1, 0), (2, 0), (3, 0), (2, 1000000), (3, 1000000)])
def test_every_share_is_done_once(three_cores, count, work):
    done = np.zeros(count, np.int64)
    for _ in range(3):
        threads.with_barrier(_count, count, done, work)
    assert done.tolist() == [3] * count


def test_several_callers_at_once(three_cores):
    def call():
        for _ in range(300):
            done = np.zeros(3, np.int64)
            threads.with_barrier(_count, 3, done, 100)
            assert done.tolist() == [1] * 3
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(call) for _ in range(4)]:
            result.result()


@pytest.mark.parametrize('failing', [0, 1, 2])
def test_an_exception_reaches_the_caller_after_all_have_ended(three_cores, failing):
    ended = []

    def function(barrier, begin, end):
        ended.append(begin)
        if begin == failing:
            raise ValueError(begin)
    with pytest.raises(ValueError, match=str(failing)):
        threads.with_barrier(function, 3)
    assert sorted(ended) == [0, 1, 2]
    check_helpers_are_free()


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize('where', ['in the own share', 'before a start', 'after a start'])
def test_an_interruption_waits_for_the_helpers(three_cores, monkeypatch, where):
    """Also for one whose start did not return."""
    ended, submit = [], concurrent.futures.ThreadPoolExecutor.submit

    def function(barrier, begin, end):
        if begin == 0:
            raise KeyboardInterrupt
        threading.Event().wait(0.2)
        ended.append(begin)

    def start(pool, share, number):
        if number == 2 and where == 'before a start':
            interrupt()
        future = submit(pool, share, number)
        if number == 2 and where == 'after a start':
            interrupt()
        return future
    with monkeypatch.context() as patch:
        patch.setattr(concurrent.futures.ThreadPoolExecutor, 'submit', start)
        for _ in range(2):
            ended.clear()
            with pytest.raises(KeyboardInterrupt):
                threads.with_barrier(function, 3)
            assert sorted(ended) == ([1] if where.startswith('before') else [1, 2])
    check_helpers_are_free()


def test_the_helpers_are_free_after_one_cannot_be_started(three_cores, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', fail)
        with pytest.raises(RuntimeError):
            threads.with_barrier(_count, 3, np.zeros(3, np.int64), 1)
    check_helpers_are_free()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
def test_a_child_process_has_helpers_of_its_own(three_cores):
    done = np.zeros(3, np.int64)
    threads.with_barrier(_count, 3, done, 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            threads.with_barrier(_count, 3, done, 1)
            code = 0 if done.tolist() == [2] * 3 else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@jit
def _sum_of_all(given, sums, barrier, begin, end):
    """Twice: each thread writes its number, then all add up what the others have written."""
    threads_ = len(given) if end - begin < len(given) else 1
    for number in range(2):
        for thread in range(begin, end):
            given[thread] = (thread + 1) * 10 ** number
        threads.wait_at(barrier, threads_, 2 * number + 1)
        for thread in range(begin, end):
            for other in range(len(given)):
                sums[number, thread] += given[other]
        threads.wait_at(barrier, threads_, 2 * number + 2)


@pytest.mark.parametrize('count', [1, 2, 3])
@pytest.mark.parametrize('busy', [False, True])
def test_threads_wait_for_each_other(three_cores, count, busy):
    """In threads of their own, or in one where another call has the helpers."""
    if busy:
        threads._in_use.acquire()
    try:
        for _ in range(50):
            given, sums = np.zeros(count), np.zeros((2, count))
            threads.with_barrier(_sum_of_all, count, given, sums)
            total = sum(range(1, count + 1))
            assert (sums == [[total] * count, [10 * total] * count]).all()
    finally:
        if busy:
            threads._in_use.release()


@jit
def _wait(barrier, count):
    threads.wait_at(barrier, count, 1)


@pytest.mark.parametrize('failing', [0, 1, 2])
def test_nobody_waits_for_a_thread_that_has_failed(three_cores, failing):
    def function(barrier, begin, end):
        if begin == failing:
            raise ArithmeticError
        _wait(barrier, 3)
    with pytest.raises(ArithmeticError):
        threads.with_barrier(function, 3)
    check_helpers_are_free()
