"""Reading files that may be damaged, endless or hostile; writing atomically; removing only what a run wrote."""
import contextlib
import json
import os
import re
import stat

from runtime.errors import UserError

MAX_JSON_BYTES, MAX_LINE_BYTES = 1 << 20, 1 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Reading: regular files of bounded size only
# ---------------------------------------------------------------------------------------------------------------------


class UnreadableFile(ValueError):
    """A file that cannot be read; the message is the reason, without the path."""


def reason(error):
    """The reason of an exception, one line without the path."""
    return (getattr(error, 'strerror', None) or str(error) or type(error).__name__).splitlines()[0]


def open_regular(path, max_bytes=None):
    """Open a regular file for reading bytes. Never waits, as opening a FIFO would.

    Raises UnreadableFile for anything else, and for a file of more than max_bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UnreadableFile(reason(error))
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= (status.st_size if max_bytes is None else max_bytes):
        return open(descriptor, 'rb')
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        raise UnreadableFile(f'it has {status.st_size} bytes, more than {max_bytes}')
    raise UnreadableFile('it is not a regular file')


def read_json(path, max_bytes):
    """Read a JSON file of at most max_bytes. Raises UnreadableFile."""
    with open_regular(path) as f:
        content = f.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UnreadableFile(f'it has more than the {max_bytes:,} bytes that are allowed')
    try:
        return parse_json(content.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        raise UnreadableFile(f'byte {error.start} is not UTF-8 text')


def parse_json(text):
    """Parse JSON. Raises UnreadableFile."""
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise UnreadableFile('it is nested too deeply')
    except ValueError as error:
        raise UnreadableFile(reason(error))


def _integer(digits):
    if len(digits) > 400:  # int() takes quadratic time
        raise ValueError(f'a number has {len(digits)} digits')
    return int(digits)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


_temporary_files = set()  # those that atomic_write is writing now


def remove_temporary_files():
    """Remove the unfinished files of this process, which is about to end without running anything else."""
    for path in list(_temporary_files):
        with contextlib.suppress(OSError):
            os.remove(path)


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
    _temporary_files.add(temporary)
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
        _temporary_files.discard(temporary)


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


# ---------------------------------------------------------------------------------------------------------------------
# What a run wrote
# ---------------------------------------------------------------------------------------------------------------------


def remove_numbered(folder, first, kinds=('epoch', 'sample')):
    """Remove what an earlier, longer search left in a folder: <n>/genotype.json and <n>/params.pdparams for n >= first.

    Only where that genotype.json says itself that a search wrote it as its epoch or sample n; anything else is the
    user's and stays.
    """
    for name in os.listdir(folder or '.'):
        path = os.path.join(folder, name)
        if not re.fullmatch('0|[1-9][0-9]{0,8}', name) or int(name) < first or os.path.islink(path):
            continue
        if _is_result(os.path.join(path, 'genotype.json'), name, kinds):
            with contextlib.suppress(OSError):
                for written in ('params.pdparams', 'genotype.json'):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(path, written))
                os.rmdir(path)


def refuse_to_overwrite(folder, names):
    """Raise UserError where one of the names in a folder is there and does not say itself that a run wrote it.

    names: of files, or 'NUMBER/FILE' of an epoch or a sample.
    """
    for name in names:
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not _is_result(path, os.path.dirname(name)):
            raise UserError(f'--model_save_dir: {path} was not written by a run of this program and would be '
                            'overwritten: move it away or give another folder')


FIRST_KEYS = {'metrics.jsonl': 'epoch', 'removals.jsonl': 'decision'}  # which each line of such a file has


def _is_result(path, number, kinds=('epoch', 'sample')):
    """Whether a file of the name and in the place of a run's result is one. number: of the epoch or sample, a text,
    which its genotype.json must repeat; '' for what belongs to the whole run."""
    folder, name = os.path.split(path)
    beside = {'params.pdparams': 'genotype.json', 'best_model.pdparams': 'best_model.json'}
    try:
        if name in beside:  # the .json is written before the .pdparams
            return os.path.isfile(path) and _is_result(os.path.join(folder, beside[name]), number, kinds)
        if name in FIRST_KEYS:
            with open_regular(path) as f:
                line = f.readline(MAX_LINE_BYTES)
            return not line or FIRST_KEYS[name] in dict(parse_json(line.decode('utf-8')))
        found = dict(read_json(path, MAX_JSON_BYTES))
        if name == 'best_model.json':
            return 'network' in found
        search = dict(found['search'])
        return not number or any(str(search.get(kind)) == number for kind in kinds)
    except (OSError, ValueError, TypeError, LookupError):
        return False
