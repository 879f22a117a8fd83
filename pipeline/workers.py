"""Worker processes that prepare the next batches while the network computes.

Each worker is forked from the main process, prepares every n-th batch and writes its images into memory that it shares
with the main process; everything else goes through a pipe. The memory is mapped without a name, so nothing of it
remains in /dev/shm however a run ends, and a small /dev/shm (a container's 64 MB, for example) is no limit.
"""
import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from multiprocessing import util

import numpy as np
import paddle

from runtime.errors import UserError

SUPPORTED = sys.platform == 'linux'  # elsewhere a forked process is not safe to use
BATCHES_AHEAD = 3  # batches that a worker may prepare before the main process takes the first of them
SECONDS_BETWEEN_CHECKS = 1.0  # how often a waiting worker looks whether the main process still exists


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process, as text; shown as the cause of the error in the main process."""

    def __str__(self):
        return '\n' + self.args[0]


def read_ahead(batches, workers, batch_bytes):
    """Yield (images, labels, errors) for batches[0], batches[1], ..., each prepared in one of `workers` processes.

    batches: an object with a length, whose item i is (images, labels, errors): numpy arrays [N, ...] and [N] and a
    list of strings.
    batch_bytes: size of the largest array of images in bytes; a larger one is passed through the pipe.
    The arrays arrive as Paddle tensors; those of an empty batch as None. The processes end with the generator.
    Raises what batches[i] raised, or UserError (status 1) when a worker process dies.
    """
    workers = min(workers, len(batches))
    ends = contextlib.ExitStack()
    try:
        pool = [_Worker(batches, range(number, len(batches), workers), batch_bytes, ends) for number in range(workers)]
        for number in range(len(batches)):
            yield pool[number % workers].receive()
    finally:
        ends.close()


class _Worker:
    """The main process's side of one worker process."""

    def __init__(self, batches, numbers, batch_bytes, ends):
        """numbers: the batches it prepares, in order. ends: a contextlib.ExitStack that ends the process."""
        try:
            self.slots = [mmap.mmap(-1, max(batch_bytes, 1)) for _ in range(BATCHES_AHEAD)]
        except OSError as error:
            raise UserError(f'--num_workers: cannot reserve {BATCHES_AHEAD * batch_bytes / 2**20:.1f} MB for a worker '
                            f'process ({error.strerror}); give a smaller number, or 0 to read in the main process',
                            status=1)
        self.connection, worker_end = multiprocessing.Pipe()
        process = multiprocessing.get_context('fork').Process(
            target=_work, args=(batches, numbers, self.slots, worker_end, self.connection, os.getpid()), daemon=True)
        process.start()
        worker_end.close()  # so that the connection ends with the worker
        # Also at the exit of the interpreter, where multiprocessing would send SIGTERM, which workers ignore.
        ends.callback(util.Finalize(None, _end, (process, self.connection), exitpriority=100))

    def receive(self):
        """The next of its batches, as read_ahead yields them."""
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionError):
            raise UserError('a worker process of the reader died, perhaps for lack of memory; --num_workers=0 reads '
                            'images in the main process', status=1)
        if kind == 'user error':
            message, status = content
            raise UserError(message, status)
        if kind == 'error':
            error, text = content
            raise pickle.loads(error) from WorkerTraceback(text)
        slot, images, labels, errors = content
        if slot is not None:
            shape, dtype = images
            images = np.frombuffer(self.slots[slot], dtype, int(np.prod(shape))).reshape(shape)
        batch = (paddle.to_tensor(images), paddle.to_tensor(labels), errors) if len(labels) else (None, None, errors)
        if slot is not None:
            with contextlib.suppress(OSError):  # the worker may be through with all of its batches
                self.connection.send(slot)
        return batch


def _end(process, connection):
    process.kill()
    process.join()
    connection.close()


def _work(batches, numbers, slots, connection, main_connection, main_process):
    """What a worker process runs. main_connection: the other end of its pipe; main_process: the number of the main
    process."""
    # Ctrl-C and `kill` with a process group reach the workers too, while the main process still finishes its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    main_connection.close()
    paddle.set_device('cpu')  # for data sets that make tensors: a GPU can't be used after a fork
    try:
        _send_batches(batches, numbers, slots, connection, main_process)
    except (EOFError, ConnectionError):
        pass  # the main process is gone


def _send_batches(batches, numbers, slots, connection, main_process):
    free = list(range(len(slots)))
    for number in numbers:
        while not free:
            if connection.poll(SECONDS_BETWEEN_CHECKS):
                free.append(connection.recv())
            elif os.getppid() != main_process:
                return
        try:
            message = _message(batches[number], slots, free)
        except UserError as error:
            message = 'user error', str(error), error.status
        except Exception as error:
            message = 'error', _pickled(error), traceback.format_exc()
        connection.send(message)


def _message(batch, slots, free):
    """What to send for a batch. Its images are written into a free slot, if they fit into one."""
    images, labels, errors = batch
    if not 0 < images.nbytes <= len(slots[0]):
        return 'batch', None, images, labels, errors
    slot = free.pop()
    np.frombuffer(slots[slot], images.dtype, images.size).reshape(images.shape)[...] = images
    return 'batch', slot, (images.shape, images.dtype.str), labels, errors


def _pickled(error):
    """An exception as bytes; in place of one that can't be pickled, a RuntimeError of the same text."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    except Exception:
        return pickle.dumps(RuntimeError(f'{type(error).__name__}: {error}'))
