"""Writing files atomically, and removing only what a run of ours wrote."""
import contextlib
import json
import os
import re

from runtime.errors import UserError


@contextlib.contextmanager
def atomic_write(path):
    """Give a temporary path in the folder of `path`; when the block ends well, what it wrote there becomes `path`.

    A reader sees the old file or the new one, never a part, also when the machine loses power in between. Folders are
    made.
    Raises UserError (status 1) when the disk refuses; the old file then stays and the temporary one is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The ending is kept, for writers that look at it; the process number keeps two writers apart.
    temporary = os.path.join(folder, f'.{os.getpid()}.{name}')
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}', status=1)
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


def remove_numbered(folder, first, kinds=('epoch', 'sample')):
    """Remove what an earlier, longer search left in a folder: <n>/genotype.json and <n>/params.pdparams for n >= first.

    Only where that genotype.json says itself that a search wrote it as its epoch or sample n; anything else is the
    user's and stays.
    """
    for name in os.listdir(folder or '.'):
        path = os.path.join(folder, name)
        if not re.fullmatch('0|[1-9][0-9]{0,8}', name) or int(name) < first or os.path.islink(path):
            continue
        with contextlib.suppress(OSError, ValueError, RecursionError):
            with open(os.path.join(path, 'genotype.json'), encoding='utf-8') as f:
                found = json.load(f)
            search = found.get('search') if isinstance(found, dict) else None
            if isinstance(search, dict) and any(search.get(kind) == int(name) for kind in kinds):
                for written in ('params.pdparams', 'genotype.json'):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(path, written))
                os.rmdir(path)
