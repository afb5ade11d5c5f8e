"""Files: errors that name the path and the reason, and writes that leave no torn file behind."""

import codecs
import csv
import errno
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from amae_plugin.errors import UserError, printable

_TRIED_BYTES = 4096  # a block of most disks, for which a full one has no room
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What a spreadsheet takes for a formula. A name that begins with a dash, as ids of YouTube do, calls nothing.
_FORMULA = re.compile(r"[=@\uff1d\uff20]|[-+\uff0b\uff0d].*[^\w./ -]")
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path leads to a file that can be reached.

    ``Path.is_file`` raises where a folder may not be entered or a name is too long.
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path leads to a folder that can be reached, see :func:`is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "the file", remedy: str = "") -> Iterator[None]:
    """Turn the errors of reading a file into messages.

    Args:
        path: the file that the block reads.
        what: the file's content, as in "cannot read the labels".
        remedy: advice that ends the message.

    Raises:
        UserError: the file is missing, is a pipe, a device or a socket, cannot be read, is not text in UTF-8, or not
            the table that it should be.
    """
    try:
        require_regular(path)
        yield
    except OSError as error:
        raise UserError(_message(path, f"cannot read {what}", error, remedy)) from None
    except UnicodeDecodeError as error:
        reason = utf_16_remedy(error.object) or f"not UTF-8 text ({error}); save it as UTF-8"
        raise UserError(f"{path}: {reason}") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a table in CSV ({error})") from None


def utf_16_remedy(content: bytes) -> str | None:
    """Say what to do about a file that begins with *content* if it is text in UTF-16; None if it is not."""
    if content.startswith(_UTF_16) or b"\0" in content[:4]:
        return "not UTF-8 text but UTF-16, which some editors call Unicode; save it as UTF-8"
    return None


@contextmanager
def writing(path: str | os.PathLike[str], what: str = "there", remedy: str = "") -> Iterator[None]:
    """Turn the errors of writing a file or a folder into messages.

    Args:
        path: the file or folder that the block writes.
        what: the file's content, as in "cannot write the checkpoint".
        remedy: advice that ends the message.

    Raises:
        UserError: the system cannot write it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(_message(path, f"cannot write {what}", error, remedy)) from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file atomically: it is at every moment either what it was or the whole of the new one.

    The block writes to the path that it is given, in the same folder, and closes it. The content is then flushed to the
    disk and takes the file's place. If the block raises, the partial file is removed and the old one stays. A killed
    process leaves its partial file, which :func:`remove_partial_files` removes.

    ``torch.save`` writes the name of a path into the archive, so give it an open file.
    """
    path = Path(path)
    # Hidden, since fairseq takes a name in the data folder that begins with "valid" for a subset.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save handles the system's error and raises one of its own
        raise


def try_folder(path: str | os.PathLike[str], what: str = "there") -> None:
    """Find out before the work whether files can be written to a folder, or the folder be made. Nothing is left there.

    Raises:
        UserError: they cannot; *what* would be written, as in :func:`writing`.
    """
    place = Path(path).absolute()
    while not os.path.lexists(place):
        place = place.parent
    with writing(path, what):
        _try(place / "file")


def try_file(path: str | os.PathLike[str], what: str = "there") -> None:
    """Find out before the work whether a file can be written to its folder, which must exist. Nothing is left there.

    Raises:
        UserError: it cannot; *what* would be written, as in :func:`writing`.
    """
    path = Path(path)
    with writing(path, what, "" if path.parent.is_dir() else "make the folder first"):
        _try(path)


def try_place(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file and try to write there, before work that would be lost if its result could not be.

    What the file holds is not touched.

    Raises:
        OSError: the file cannot be written there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _try(path)


def _try(path: Path) -> None:
    if path.exists() and not path.is_file():
        kind = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(kind, "Is a directory" if path.is_dir() else "Not a regular file")
    with tempfile.TemporaryFile(dir=path.parent) as file:
        file.write(bytes(_TRIED_BYTES))


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table as CSV in UTF-8, atomically.

    What a terminal would obey is written as :func:`printable` shows it. A text that a spreadsheet would run as a
    formula gets an apostrophe in front, which makes it a text there.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(map(_cell, row) for row in rows)


def _cell(value: object) -> str:
    text = printable(str(value))
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def write_json(path: str | os.PathLike[str], values: object) -> None:
    """Write plain values as JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def remove_partial_files(folder: str | os.PathLike[str], pattern: str) -> None:
    """Remove what killed processes left of the files in *folder* whose names match *pattern*."""
    for partial in Path(folder).glob(f".{pattern}.*.tmp"):
        partial.unlink(missing_ok=True)


def _message(path: str | os.PathLike[str], problem: str, error: OSError, remedy: str) -> str:
    return f"{path}: {problem} ({error.strerror or error})" + (f"; {remedy}" if remedy else "")


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Open a file for reading, unbuffered; a pipe, a device or a socket, which could block for ever, is refused.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    require_regular(path)
    return Path(path).open("rb", buffering=0)


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if there is no such file, or if it is a pipe, a device or a socket, which could block."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder is refused when it is opened
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
