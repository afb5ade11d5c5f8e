"""Verification trials: pairs of clips that are of the same speaker or not."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from amae_plugin.data.lines import bad_lines, read_lines
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError

_FORMAT = "<0|1> <path> <path>"


@dataclass(frozen=True)
class Trials:
    """T trials over the clips of a manifest.

    Attributes:
        same: (T,) bool, True where both clips are of one speaker.
        pairs: (T, 2) int64, indices into the manifest.
    """

    same: np.ndarray
    pairs: np.ndarray

    @classmethod
    def read(cls, path: str | os.PathLike[str], manifest: Manifest) -> Trials:
        """Read VoxCeleb's format: lines of ``<0|1> <path> <path>``, with the paths of *manifest*.

        Raises:
            UserError: the file cannot be read, or a line is malformed or names a clip that the manifest lacks.
        """
        index = {manifest.name(number): number for number in range(len(manifest))}
        trials = read_trial_lines(path)
        unknown = {number: name for number, _, names in trials for name in names if name not in index}
        if unknown:
            problems = {number: f"'{name}' is not in {manifest.path}" for number, name in unknown.items()}
            raise bad_lines(path, problems, "`amae manifest` writes both files")
        pairs = np.array([[index[name] for name in names] for _, _, names in trials], np.int64)
        return cls(np.array([label for _, label, _ in trials], bool), pairs)

    def require_both_kinds(self, path: str | os.PathLike[str]) -> Trials:
        """Return these trials of a file, if some are of one speaker and some of two.

        Raises:
            UserError: they are of one kind only.
        """
        if len(np.unique(self.same)) < 2:
            same = int(self.same.sum())
            found = f"there are {same:,} and {len(self.same) - same:,}"
            raise UserError(f"{path}: needs trials of both kinds, 1 and 0, and {found}")
        return self


def read_trial_lines(path: str | os.PathLike[str]) -> list[tuple[int, int, tuple[str, str]]]:
    """Read the lines that are not blank as (line number, 0 or 1, the two paths).

    Raises:
        UserError: the file cannot be read or holds no trials, or a line is not ``<0|1> <path> <path>``.
    """
    trials: list[tuple[int, int, tuple[str, str]]] = []
    problems: dict[int, str] = {}
    for number, line in enumerate(read_lines(path, "the trials"), 1):
        fields = line.split()
        if len(fields) == 3 and fields[0] in ("0", "1"):
            trials.append((number, int(fields[0]), (fields[1], fields[2])))
        elif fields:
            problems[number] = f"expected '{_FORMAT}', found '{line}'"
    if problems:
        raise bad_lines(path, problems, "correct it")
    if not trials:
        raise UserError(f"{path}: holds no trials; expected lines of '{_FORMAT}'")
    return trials
