"""Standard output and standard error that show what comes from files, and never obey it."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from amae_plugin.errors import printable

# A progress bar moves up by a text of its own, and begins and ends its line with a carriage return.
_UPWARDS = re.compile(r"(\x1b\[A)+")
_SHOWN = re.compile(r"[^\n\t\r]+|(?<=.)\r(?=.)", re.DOTALL)


class ShownText:
    """A stream that writes every text as :func:`printable` shows it, in an encoding that may lack its characters.

    Line breaks, tabs and the movements of progress bars stay.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        if not _UPWARDS.fullmatch(text):
            text = _SHOWN.sub(lambda part: printable(part[0]), text)
            encoding = self._stream.encoding or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def shown() -> Iterator[None]:
    """Have what a command prints, and what its libraries print, shown as it is."""
    with redirect_stdout(ShownText(sys.stdout)), redirect_stderr(ShownText(sys.stderr)):
        yield
