"""Text files with one entry a line: how their lines are read and written, and how bad ones are refused."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from amae_plugin.errors import UserError
from amae_plugin.files import reading, replacing, utf_16_remedy

_SHOWN = 5  # bad lines named in a message
_UTF_16 = re.compile(rb"[!-~]\0[\t\n\r -~]\0|\0[!-~]\0[\t\n\r -~]")  # without a byte order mark, and so valid UTF-8


def read_lines(path: str | os.PathLike[str], what: str, remedy: str = "") -> list[str]:
    """Read the lines of a text in UTF-8, with or without a byte order mark, with the line ends of any system.

    Args:
        path: the file.
        what: the file's content, as in "cannot read the labels".
        remedy: advice that ends the message if the system cannot read the file.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    with reading(path, what, remedy):
        content = Path(path).read_bytes()
        if _UTF_16.match(content):
            raise UserError(f"{path}: {utf_16_remedy(content)}")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        # Not splitlines(), which also breaks lines at characters that a name may hold.
        return text.removesuffix("\n").split("\n")


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write lines, none of which holds a line break, to a text in UTF-8, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def bad_lines(path: str | os.PathLike[str], problems: Mapping[int, str], remedy: str) -> UserError:
    """Return the error of a file with bad lines, which names the first few of them and counts them all.

    Args:
        path: the file.
        problems: what is wrong with each bad line, by its number, in order; at least one.
        remedy: advice on the first one.
    """
    first, *others = [f"line {number}: {problem}" for number, problem in problems.items()]
    shown = "".join(f"\n  {other}" for other in others[: _SHOWN - 1])
    total = f"\n  {len(problems):,} bad lines in all" if others else ""
    return UserError(f"{path}, {first}; {remedy}{shown}{total}")
