"""The one exception class for a user-facing error."""


class UserError(Exception):
    """A mistake the user can mend. The message is the sentence to read; `run_script` prints it without a traceback.

    status: the exit status, 2 for wrong usage or input, 1 for a failure while running.
    """

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status
