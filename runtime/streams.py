"""Standard output and error that may be closed, full or a broken pipe."""
import contextlib
import errno
import os
import sys

from runtime.errors import UserError


@contextlib.contextmanager
def standard_streams():
    """Within the block, a result that cannot be written to standard output raises UserError (status 1); what cannot be
    written to standard error is lost.

    Numbers of standard descriptors that are closed are taken by the null device; otherwise the next file that is opened
    would get one, and what a library prints would end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    before = sys.stdout, sys.stderr
    if hasattr(sys.stdout, 'reconfigure'):  # a letter that the terminal's encoding lacks is escaped
        sys.stdout.reconfigure(errors='backslashreplace')
    if sys.stderr is None:
        sys.stderr = open(os.devnull, 'w', encoding='utf-8')
    sys.stdout = _Results(sys.stdout)
    try:
        yield
    finally:
        if sys.stderr is not before[1]:
            sys.stderr.close()
        sys.stdout, sys.stderr = before
        for stream in before:
            _drop_what_cannot_be_written(stream)


class _Results:
    """Standard output. stream: None for one that is closed."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self._call('write', text)

    def flush(self):
        return self.stream and self._call('flush')

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def _call(self, name, *arguments):
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return getattr(self.stream, name)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed by someone
            raise UserError('cannot write the result to standard output: '
                            f'{getattr(error, "strerror", None) or error}', status=1)


def _drop_what_cannot_be_written(stream):
    """Python would complain about it at its end, and change the exit status."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
