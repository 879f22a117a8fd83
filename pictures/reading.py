"""Reading files that may be damaged, endless or hostile: regular files of bounded size only."""
import json
import os
import stat


class UnreadableFile(ValueError):
    """A file that cannot be read; the message is the reason, without the path."""


def reason(error):
    """The reason of an exception, one line without the path."""
    return (getattr(error, 'strerror', None) or str(error) or type(error).__name__).splitlines()[0]


def open_regular(path):
    """Open a regular file for reading bytes. Never waits, as opening a FIFO would. Raises UnreadableFile for others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UnreadableFile(reason(error))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, 'rb')
    os.close(descriptor)
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
