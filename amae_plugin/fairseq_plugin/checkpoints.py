"""Checkpoints that are never half-written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from amae_plugin.errors import UserError

# No space on the device, in the user's quota, or below the limit of the process.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def copy_atomically(source: str, destination: str, overwrite: bool = False) -> bool:
    """Copy a file so that ``destination`` is at every moment either what it was or the whole copy.

    Raises:
        UserError: there is no space for it.
    """
    with _replacing(destination) as partial:
        shutil.copyfile(source, partial)
    return True


def save_atomically(content: Any, filename: str, async_write: bool = False) -> None:
    """``torch.save`` so that the file is at every moment either what it was or the whole of the new one.

    Raises:
        UserError: there is no space for it.
    """
    with _replacing(filename) as partial, partial.open("wb") as file:
        torch.save(content, file)


@contextmanager
def _replacing(filename: str) -> Iterator[Path]:
    """A path to write to, which then replaces the file; if writing fails, the file stays as it was."""
    partial = Path(f"{filename}.tmp")
    try:
        yield partial
        partial.replace(filename)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        cause: BaseException | None = error  # torch may raise another error while it handles this one
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise UserError(
                    f"{filename}: no space left to write the checkpoint ({cause.strerror}); the one before is whole. "
                    "Make room, and the same command continues from it"
                ) from error
            cause = cause.__context__
        raise


def make_writing_atomic() -> None:
    """Have fairseq save and copy checkpoints atomically in this process.

    fairseq writes a checkpoint under its first name, three times into the same file if that fails, then copies it over
    ``checkpoint_last.pt`` in place: a run killed in that moment leaves a torn file and cannot resume, and so does a
    disk that is full for a moment. The tasks of this plugin call this when they start, since fairseq offers no hook
    there; importing the plugin does not. With iopath installed fairseq writes through it, and nothing is changed.
    """
    from fairseq.file_io import IOPathManager

    if IOPathManager is None:
        PathManager.copy = staticmethod(copy_atomically)
        checkpoint_utils.torch_persistent_save = save_atomically


def remove_partial_files(save_dir: str) -> None:
    """Remove what a killed run left unfinished in a checkpoint folder."""
    for partial in Path(save_dir).glob("*.pt.tmp"):
        partial.unlink()
