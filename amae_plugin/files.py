"""Files: errors that name the path and the reason, and writes that leave no torn file behind."""

import errno
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from amae_plugin.errors import UserError


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "the file", remedy: str = "") -> Iterator[None]:
    """Turn the errors of reading a file into messages.

    Args:
        path: the file that the block reads.
        what: the file's content, as in "cannot read the labels".
        remedy: advice that ends the message.

    Raises:
        UserError: the file is not there, is a pipe, a device or a socket, cannot be read, or is not text in UTF-8.
    """
    try:
        require_regular(path)
        yield
    except OSError as error:
        raise UserError(_message(path, f"cannot read {what}", error, remedy)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None


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
