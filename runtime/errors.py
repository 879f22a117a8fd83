"""The exception for errors that a user can correct, and text made safe for a terminal."""
import unicodedata


class UserError(Exception):
    """An error that the user can correct, such as a wrong flag or an unreadable file.

    The message is one sentence that names the flag or the file; `runtime.script.run_script` prints it without a
    traceback.

    status: the exit status, 2 for wrong usage or input, 1 for a failure while running.
    """

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def printable(text):
    r"""Text on one line without control characters: 'a\x1b[2J' becomes 'a\\x1b[2J'.

    File names and the contents of files reach the terminal through messages. A terminal would obey an escape sequence,
    and a line break would forge a line of the log. Bytes of a file name that are not UTF-8 are escaped too.
    """
    return ''.join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character):
    code = ord(character)
    if 0xdc80 <= code <= 0xdcff:  # a byte that is not UTF-8, as os.fsdecode keeps it
        return f'\\x{code - 0xdc00:02x}'
    if unicodedata.category(character) == 'Zs':  # a space of another width
        return ' '
    return character.encode('unicode_escape').decode('ascii')
