"""Two classifiers on the same clips, from what ``amae evaluate`` wrote for each of them."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amae_plugin.errors import UserError
from amae_plugin.files import reading
from amae_plugin.metrics.significance import mcnemar

_COLUMNS = {"path", "labels", "predicted", "score"}


@dataclass(frozen=True)
class Pair:
    """Two classifiers on N clips.

    Attributes:
        first: whether the first one is right about each clip, (N,) bool.
        second: the same of the second one.
        p_value: p-value of McNemar's test.
    """

    first: np.ndarray
    second: np.ndarray
    p_value: float

    @property
    def summary(self) -> str:
        """Counts, accuracies and the p-value in words."""
        both, neither = int((self.first & self.second).sum()), int((~self.first & ~self.second).sum())
        only = [int(counts.sum()) for counts in (self.first & ~self.second, self.second & ~self.first)]
        lines = [
            f"{len(self.first):,} clips: both right {both:,}, only the first {only[0]:,}, only the second {only[1]:,}, "
            f"neither {neither:,}",
            f"accuracy {self.first.mean():.4f} and {self.second.mean():.4f}",
            f"McNemar's exact test: p = {self.p_value:.3g}",
        ]
        return "\n".join(lines)


def compare_predictions(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Pair:
    """Compare two files ``predictions.csv`` clip by clip.

    Raises:
        UserError: a file cannot be read or holds several labels a clip, or the files are not about the same clips with
            the same labels.
    """
    labels, right = zip(*map(_read, (first, second)))
    if labels[0] != labels[1]:
        paths = [dict(each) for each in labels]
        missing = [path for path in {**paths[0], **paths[1]} if path not in paths[0] or path not in paths[1]]
        differing = [path for path in paths[0] if path in paths[1] and paths[0][path] != paths[1][path]]
        what = f"{len(missing):,} clips are in one of them only, first {missing[0]}" if missing else ""
        what = what or (f"their labels differ, first of {differing[0]}" if differing else "they repeat clips")
        raise UserError(f"{first}, {second}: {what}; compare two models on the same split")
    one, other = (np.array([row[path] for path, _ in labels[0]], bool) for row in right)
    return Pair(one, other, mcnemar(one, other))


def _read(path: str | os.PathLike[str]) -> tuple[list[tuple[str, str]], dict[str, bool]]:
    """Return path and label of each clip, ordered by path, and whether the prediction is right, by path."""
    path, remedy = Path(path), "amae evaluate writes predictions.csv"
    with reading(path, "the predictions", remedy), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not rows[0].keys() >= _COLUMNS:
        raise UserError(f"{path}: lacks the columns {', '.join(sorted(_COLUMNS))}; {remedy}")
    clips, right = [], {}
    for number, row in enumerate(rows, 2):
        if None in row.values() or not row["score"] or "," in row["score"]:
            raise UserError(f"{path}, line {number}: not one predicted class; McNemar's test needs one label a clip")
        clips.append((row["path"], row["labels"]))
        right[row["path"]] = row["labels"] == row["predicted"]
    if not clips:
        raise UserError(f"{path}: holds no clips")
    return sorted(clips), right
