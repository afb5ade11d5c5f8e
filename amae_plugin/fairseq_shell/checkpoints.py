"""Checkpoints that are never half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

from fairseq.file_io import PathManager


def copy_atomically(source: str, destination: str, overwrite: bool = False) -> bool:
    """Copy a file so that ``destination`` is at every moment either what it was or the whole copy."""
    partial = Path(f"{destination}.tmp")
    try:
        shutil.copyfile(source, partial)
        partial.replace(destination)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return True


def make_copies_atomic() -> None:
    """Have fairseq copy checkpoints atomically in this process.

    fairseq writes a checkpoint under its first name atomically, then copies it over ``checkpoint_last.pt`` in place: a
    run killed in that moment leaves a torn file and cannot resume. The tasks of this plugin call this when they start,
    since fairseq offers no hook there; importing the plugin does not. With iopath installed fairseq copies through it,
    and nothing is changed.
    """
    from fairseq.file_io import IOPathManager

    if IOPathManager is None:
        PathManager.copy = staticmethod(copy_atomically)


def remove_partial_files(save_dir: str) -> None:
    """Remove what a killed run left unfinished in a checkpoint folder."""
    for partial in Path(save_dir).glob("*.pt.tmp"):
        partial.unlink()
