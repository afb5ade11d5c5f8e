"""The one exception that means: the user can mend this, and the message says how."""


class UserError(Exception):
    """Bad input: a file, a line or a setting that the user gave.

    The message names the file, the line or the key and what to do about it. The command line prints it without a
    traceback and exits with code 2.
    """
