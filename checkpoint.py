"""Files that are whole or not there: what a run leaves is written beside its place and then renamed into it."""
import contextlib
import os

from utility import UserError


@contextlib.contextmanager
def atomic_write(path):
    """Give a temporary path in the folder of `path`; when the block ends well, what it wrote there becomes `path`.

    A reader sees the old file or the new one, never a part, also when the machine loses power in between. Folders are made.
    Raises UserError (status 1) when the disk refuses; the old file then stays and the temporary one is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The ending is kept, for writers that look at it; the process number keeps two writers apart.
    temporary = os.path.join(folder, '.{}.{}'.format(os.getpid(), name))
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise UserError('cannot write {}: {}'.format(path, error.strerror or error), status=1)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _sync_folder(folder):
    """Make a rename durable: the folder's own entry reaches the disk. Only POSIX opens folders."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path, text):
    """Write a small text file atomically."""
    with atomic_write(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as f:
            f.write(text)


def save_params(path, state_dict):
    """Write a plain Paddle state dict (.pdparams) atomically."""
    import paddle
    with atomic_write(path) as temporary:
        paddle.save(state_dict, temporary)
