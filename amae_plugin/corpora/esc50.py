"""ESC-50 (Piczak 2015): ``audio/*.wav`` and ``meta/esc50.csv``, whose column ``fold`` is 1 to 5.

The published result is the mean of five runs, each tested on one fold after training on the other four. There is no
validation split: by default ``valid`` is the test fold once more, which the published systems watch too; a checkpoint
chosen by it is chosen on the test data. With *valid_fold*, that fold is taken out of the training data instead.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, find_listed, find_root, write_corpus
from amae_plugin.errors import UserError

FOLDS = (1, 2, 3, 4, 5)
_CSV = "meta/esc50.csv"
_COLUMNS = ("filename", "fold", "target", "category")
_PUBLISHED_PER_FOLD = 400
_PUBLISHED_CLASSES = 50


def build(
    root: Path,
    out: Path,
    fold: int,
    valid_fold: int | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Write ``train``, ``valid`` and ``test`` of one of the five runs.

    Args:
        root: the unpacked archive, or the folder that holds it.
        out: where they go.
        fold: the one tested on, 1 to 5.
        valid_fold: another one, to validate on; None validates on the test fold.
        allow_missing: go on without listed files that are not there.
        workers: threads that read headers.

    Raises:
        UserError: the folder has another layout, the table is malformed, or files are missing.
    """
    if fold not in FOLDS or valid_fold not in (None, *FOLDS) or valid_fold == fold:
        raise UserError(f"--fold {fold} --valid-fold {valid_fold}: two different ones of {FOLDS}")
    root = find_root(root, _CSV, "ESC-50")
    names: dict[int, str] = {}
    clips: dict[str, tuple[int, str]] = {}
    path = root / _CSV
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(f"{path}, line 1: lacks some of the columns {', '.join(_COLUMNS)}")
            for row in reader:
                try:
                    clips[f"audio/{row['filename']}"] = (int(row["fold"]), row["category"])
                    names[int(row["target"])] = row["category"]
                except (TypeError, ValueError):
                    raise UserError(f"{path}, line {reader.line_num}: fold and target must be numbers") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the table ({error.strerror})") from None

    found, warnings = find_listed(root, list(clips), _CSV, allow_missing)
    folds: dict[int, list[LabelledClip]] = {number: [] for number in FOLDS}
    for listed, there in found.items():
        number, name = clips[listed]
        folds.setdefault(number, []).append(LabelledClip(there, (name,)))
    counts = Counter({f"fold {number}": len(part) for number, part in folds.items()})
    warnings += compare_counts(counts, {f"fold {number}": _PUBLISHED_PER_FOLD for number in FOLDS})
    warnings += compare_counts({"classes": len(names)}, {"classes": _PUBLISHED_CLASSES}, "names")
    splits = {
        "train": [clip for number in FOLDS if number not in (fold, valid_fold) for clip in folds[number]],
        "valid": folds[fold if valid_fold is None else valid_fold],
        "test": folds[fold],
    }
    return write_corpus(out, root, splits, [names[target] for target in sorted(names)], warnings, workers)
