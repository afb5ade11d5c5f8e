"""The one exception that means: the user can mend this, and the message says how; and how messages show names."""

import unicodedata
from collections.abc import Sequence

SHOWN = 10
"""Names, or reasons, in a message."""

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of control and format characters, of bytes that are not text, and of line separators."""


class UserError(Exception):
    """Bad input: a file, a line or a setting that the user gave.

    The message names the file, the line or the key and what to do about it. The command line prints it without a
    traceback and exits with code 2. As text, it shows the names in it by :func:`printable`.
    """

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


def printable(text: str) -> str:
    r"""Write what a terminal would obey or hide (escape sequences, line breaks, changes of direction) as escapes.

    A byte of a file name that is not UTF-8 becomes ``\xe9``, as Python writes it.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def first_of(names: Sequence[str]) -> str:
    """Join the first names of a list that may be long, and say how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
