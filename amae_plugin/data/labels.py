"""Labels of a manifest's clips: ``<split>.lbl``, one line a clip, and ``labels.txt``, one class a line in index order.

A comma separates several labels of a clip, so a class name holds none.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amae_plugin.data.lines import bad_lines, read_lines, write_lines
from amae_plugin.errors import UserError, printable

LABELS_NAME = "labels.txt"
DISPLAY_NAMES = "class_labels_indices.csv"
"""AudioSet's table of classes, beside the manifests; its names are shown in place of the mids."""


@dataclass(frozen=True)
class Labels:
    """Classes of N clips in two integer arrays, without a Python object per clip. Made by :meth:`read`.

    Attributes:
        names: the C classes, in index order.
        ids: (M,) int32, classes of all clips one after the other.
        offsets: (N + 1,) int64; clip i has the classes ``ids[offsets[i] : offsets[i + 1]]``, at least one.
    """

    names: tuple[str, ...]
    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], names_path: str | os.PathLike[str], length: int, *, multi: bool = False
    ) -> Labels:
        """Read and check the labels of one split.

        Windows line ends, a byte order mark and blank lines at the end are tolerated. A class that a clip has twice
        counts once.

        Args:
            path: ``<split>.lbl``.
            names_path: ``labels.txt``.
            length: number of clips in the manifest, N.
            multi: whether a clip may have several labels.

        Raises:
            UserError: a file cannot be read; a label is not in *names_path*; a line is empty, or holds several labels
                without *multi*; there are not *length* lines. The message names the file and the line.
        """
        names = read_names(names_path)
        index = {name: number for number, name in enumerate(names)}
        lines = _lines(Path(path))
        if len(lines) != length:
            problem = f"has {len(lines):,} lines, but the manifest beside it has {length:,} clips"
            raise UserError(f"{path} {problem}; there must be one line a clip, in the manifest's order")
        ids = array("i")
        offsets = np.zeros(length + 1, np.int64)
        problems: dict[int, str] = {}
        for number, line in enumerate(lines, 1):
            found = [index.get(label, -1) for label in line.split(",")]
            if -1 not in found and (len(found) == 1 or (multi and len(set(found)) == len(found))):
                ids.extend(found)
                offsets[number] = len(ids)
                continue
            labels = dict.fromkeys(label.strip() for label in line.split(","))
            unknown = [label for label in labels if label not in index]
            if not line:
                problems[number] = "empty, but every clip needs a label"
            elif len(labels) > 1 and not multi:
                problem = f"{len(labels)} labels in '{line}' where one is expected"
                problems[number] = f"{problem}; several need a multi-label task"
            elif unknown:
                problems[number] = f"'{unknown[0]}' is not among the {len(index)} classes of {names_path}"
            else:
                ids.extend(index[label] for label in labels)
            offsets[number] = len(ids)
        if problems:
            raise bad_lines(path, problems, f"correct it, or add the class to {LABELS_NAME}")
        return cls(names, np.array(ids, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the classes of one clip, (k,) int32."""
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} clips have labels, asked for number {index}")
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def multi_hot(self, index: int) -> Tensor:
        """Return the target of one clip, (C,) float32: 1 for each of its classes, 0 elsewhere."""
        target = torch.zeros(len(self.names))
        target[torch.from_numpy(self[index].astype(np.int64))] = 1.0
        return target

    def counts(self) -> np.ndarray:
        """Count the clips of each class: (C,) int64."""
        return np.bincount(self.ids, minlength=len(self.names))


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the classes in a ``labels.txt``.

    Raises:
        UserError: the file cannot be read or is empty; a line is empty, holds a comma or repeats another.
    """
    names = _lines(Path(path))
    seen: dict[str, int] = {}
    for number, name in enumerate(names or [""], 1):
        if not name:
            raise UserError(f"{path}, line {number}: empty; it must hold one class a line, in index order")
        if "," in name:
            raise UserError(f"{path}, line {number}: a comma in '{name}', which separates labels; rename the class")
        if name in seen:
            raise UserError(f"{path}, line {number}: '{name}' stands on line {seen[name]} too")
        seen[name] = number
    return tuple(names)


def check_class(name: str, where: str | os.PathLike[str]) -> None:
    """Check that a ``labels.txt`` can hold a class.

    Args:
        name: the class.
        where: the file or folder to name in the message.

    Raises:
        UserError: the name could not be read back: it is blank, has blanks around it, holds a comma or a line break, or
            is not UTF-8.
    """
    if name != name.strip() or not name or any(character in name for character in ",\n\r\ufeff"):
        reason = "blank, or with a comma, a line break, a byte order mark or outer blanks"
    elif any("\ud800" <= character <= "\udfff" for character in name):
        reason = "its name is not UTF-8"
    else:
        return
    raise UserError(f"{where}: '{printable(name)}' cannot be a class: {reason}; rename it")


def write_names(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write a ``labels.txt``, whole or not at all.

    Raises:
        UserError: a name cannot be a class, see :func:`check_class`.
    """
    names = tuple(names)
    for name in names:
        check_class(name, path)
    write_lines(path, names)


def write_labels(path: str | os.PathLike[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a ``.lbl`` with the classes of each clip, which :func:`write_names` accepts, whole or not at all."""
    write_lines(path, map(",".join, rows))


def _lines(path: Path) -> list[str]:
    lines = [
        line.strip() for line in read_lines(path, "the labels", "`amae manifest` writes them for labelled corpora")
    ]
    while lines and not lines[-1]:
        lines.pop()
    return lines
