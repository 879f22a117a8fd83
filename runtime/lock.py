"""One run at a time in an output folder, and sweeping what a killed run left there."""
import contextlib
import errno
import os
import re
import socket
import stat

from runtime.errors import UserError
from runtime.log import logger
from runtime.parallel import rank

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart
    fcntl = None

NAME = '.darts-run.lock'  # its content: process number and host of the run, for the message and for the sweep

# What atomic_write puts the process number before; see sweep.
WRITTEN = (r'metrics\.jsonl|genotype\.json|params\.pdparams|best_model\.(pdparams|json)|darts-files\.json'
           r'|removals\.jsonl|epoch-\d+-step-\d+\.npz')

_held = {}  # {folder: (descriptor, process)} of this process


def lock_folder(folder):
    """Keep the folder for this run until release_folder or the end of the process, however it ends.

    Of several ranks, rank 0 takes the lock, which is the one that writes. It is a POSIX record lock: the kernel takes
    it back from a killed process, and worker processes do not inherit it.
    Returns the temporary files of a killed run that were removed. Raises UserError while another process holds it.
    """
    folder = os.path.realpath(folder)
    if fcntl is None or rank() or folder in _held:
        return []
    path = os.path.join(folder, NAME)
    descriptor = None
    while descriptor is None:
        descriptor = _open(path)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f'--model_save_dir: {folder} is in use by another run'
                                + (' (process {} on {})'.format(*holder) if holder else '')
                                + ': wait until it has ended, or give another folder')
            logger.warning('%s is on a file system without locks: nothing keeps a second run out', folder)
            return []
        if not _is(path, descriptor):  # the run that held it has just ended and removed it
            os.close(descriptor)
            descriptor = None
    _held[folder] = descriptor, os.getpid()
    killed = _holder(descriptor)
    removed = [] if killed is None else sweep(folder, killed[0])
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()} {socket.gethostname()}\n'.encode('utf-8', 'replace'), 0)
    except OSError as error:
        raise UserError(f'--model_save_dir: cannot write {path}: {error.strerror or error}', status=1)
    return removed


def release_folder(folder):
    """Give a folder back that lock_folder has kept."""
    descriptor, process = _held.pop(os.path.realpath(folder), (None, None))
    if process == os.getpid():
        with contextlib.suppress(OSError):
            os.remove(os.path.join(os.path.realpath(folder), NAME))
        os.close(descriptor)


def release_all():
    """Give all folders of this process back."""
    for folder in list(_held):
        release_folder(folder)


def sweep(folder, process):
    """Remove the temporary files that a killed run, of that process number, was writing to its output folder. Returns
    their paths."""
    removed = []
    places = [folder] + [os.path.join(folder, name) for name in os.listdir(folder)
                         if re.fullmatch(r'checkpoints|vdl|\d{1,9}', name)]
    for place in places:
        with contextlib.suppress(OSError):
            for name in os.listdir(place):
                path = os.path.join(place, name)
                if (re.fullmatch(rf'\.{process}\.({WRITTEN})', name) and not os.path.islink(place)
                        and stat.S_ISREG(os.lstat(path).st_mode)):
                    os.remove(path)
                    removed.append(path)
    return removed


def _open(path):
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f'--model_save_dir: {path} cannot be written: {error.strerror}')
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f'--model_save_dir: {path} is not a regular file')
    return descriptor


def _is(path, descriptor):
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _holder(descriptor):
    """(process number, host) of the run that wrote the file last, None where there is none."""
    match = re.fullmatch(rb'(\d{1,19}) ([\w.-]{1,255})\n', os.pread(descriptor, 300, 0))
    return match and (int(match.group(1)), match.group(2).decode('ascii'))
