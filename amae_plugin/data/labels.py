"""The labels beside a manifest: ``<split>.lbl``, one line a clip, and ``labels.txt``, one class a line in index order.

Several labels of a clip are separated by a comma, so a class name holds none.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.files import reading

LABELS_NAME = "labels.txt"


@dataclass(frozen=True)
class Labels:
    """The classes of N clips: two integer arrays, no Python object per clip. Made by :meth:`read`.

    Attributes:
        names: the C classes, in index order.
        ids: (M,) int32, classes of all clips one after the other.
        offsets: (N + 1,) int64; those of clip i are ``ids[offsets[i] : offsets[i + 1]]``. Each clip has at least one.
    """

    names: tuple[str, ...]
    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        names_path: str | os.PathLike[str],
        length: int,
        *,
        multi: bool = False,
    ) -> Labels:
        """Read and check the labels of one split.

        Windows line ends, a byte order mark and blank lines at the end are tolerated, and so is a class that a clip has
        twice, which counts once.

        Args:
            path: ``<split>.lbl``.
            names_path: ``labels.txt``.
            length: clips of the manifest, N.
            multi: whether a clip may have several labels.

        Raises:
            UserError: a file cannot be read; a label is not in *names_path*; a line is empty, or holds several labels
                without *multi*; there are not *length* lines. Names the file and the line.
        """
        path = Path(path)
        names = read_names(names_path)
        index = {name: number for number, name in enumerate(names)}
        lines = _lines(path)
        if len(lines) != length:
            raise UserError(
                f"{path} has {len(lines):,} lines, but the manifest beside it has {length:,} clips; "
                "there must be one line a clip, in the manifest's order"
            )
        ids = array("i")
        offsets = np.zeros(length + 1, np.int64)
        for number, line in enumerate(lines, 1):
            if line in index:
                ids.append(index[line])
            else:
                found = _parse(path, number, line, index, names_path)
                if len(found) > 1 and not multi:
                    raise UserError(
                        f"{path}, line {number}: {len(found)} labels in '{line}' where one is expected; "
                        "several need a multi-label task"
                    )
                ids.extend(found)
            offsets[number] = len(ids)
        return cls(names, np.array(ids, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """(k,) int32, the classes of one clip."""
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} clips have labels, asked for number {index}")
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def single(self) -> np.ndarray:
        """(N,) int32, the one class of each clip.

        Raises:
            ValueError: some clip has several.
        """
        if len(self.ids) != len(self):
            raise ValueError("some clips have several labels")
        return self.ids

    def multi_hot(self, index: int) -> Tensor:
        """(C,) float32: 1 for each class of one clip, 0 elsewhere."""
        target = torch.zeros(len(self.names))
        target[torch.from_numpy(self[index].astype(np.int64))] = 1.0
        return target

    def counts(self) -> np.ndarray:
        """(C,) int64, clips of each class."""
        return np.bincount(self.ids, minlength=len(self.names))


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes in a ``labels.txt``.

    Raises:
        UserError: the file cannot be read or is empty; a line is empty, holds a comma or stands there twice.
    """
    path = Path(path)
    names = _lines(path)
    if not names:
        raise UserError(f"{path}: empty; it must hold one class a line, in index order")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{path}, line {number}: empty; it must hold one class a line, in index order")
        if "," in name:
            raise UserError(
                f"{path}, line {number}: a comma in '{name}', which separates the labels of a clip; rename the class"
            )
        if name in seen:
            raise UserError(f"{path}, line {number}: '{name}' stands on line {seen[name]} too")
        seen[name] = number
    return tuple(names)


def write_names(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Write a ``labels.txt``.

    Raises:
        UserError: a name could not be read back: blank, with a comma or a line break, or with blanks around it.
    """
    for name in names:
        if name != name.strip() or not name or any(character in name for character in ",\n\r"):
            raise UserError(f"{path}: {name!r} cannot be a class: blank, or with a comma, a line break or outer blanks")
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{name}\n" for name in names)


def write_labels(path: str | os.PathLike[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a ``.lbl``: for each clip its classes, which :func:`write_names` accepts."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{','.join(row)}\n" for row in rows)


def _lines(path: Path) -> list[str]:
    with reading(path, "the labels", "`amae manifest` writes them for labelled corpora"):
        text = path.read_text(encoding="utf-8-sig")
    # Not splitlines(), which also breaks lines at characters that a name may hold.
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _parse(path: Path, number: int, line: str, index: dict[str, int], names_path: str | os.PathLike[str]) -> list[int]:
    if not line:
        raise UserError(f"{path}, line {number}: empty; every clip needs a label")
    found = []
    for label in dict.fromkeys(label.strip() for label in line.split(",")):
        if label not in index:
            raise UserError(
                f"{path}, line {number}: '{label}' is not among the {len(index)} classes of {names_path}; "
                "correct the line or add the class"
            )
        found.append(index[label])
    return found
