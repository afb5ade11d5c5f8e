"""ESC-50 (Piczak 2015): ``audio/*.wav`` and ``meta/esc50.csv``, whose column ``fold`` is 1 to 5.

The published result is the mean of five runs, each tested on one fold after training on the other four. There is no
validation split: by default ``valid`` is the test fold once more, which the published systems watch too; a checkpoint
chosen by it is chosen on the test data. With *valid_fold*, that fold is taken out of the training data instead;
``next`` names the one after the test fold, another in each of the five runs.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, find_listed, find_root, write_corpus
from amae_plugin.corpora.headers import read_headers
from amae_plugin.errors import UserError

FOLDS = (1, 2, 3, 4, 5)
_CSV = "meta/esc50.csv"
_COLUMNS = ("filename", "fold", "target", "category")
_PUBLISHED_PER_FOLD = 400
_PUBLISHED_CLASSES = 50


def build(
    root: Path,
    outs: Mapping[int, Path],
    valid_fold: int | Literal["next"] | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> dict[int, Corpus]:
    """Write ``train``, ``valid`` and ``test`` of some of the five runs; every header is read once.

    Args:
        root: the unpacked archive, or the folder that holds it.
        outs: where those of a run go, by the fold tested on, 1 to 5.
        valid_fold: another one, to validate on, or ``next``; None validates on the test fold.
        allow_missing: go on without listed files that are not there.
        workers: threads that read headers.

    Returns:
        What was written for each fold tested on.

    Raises:
        UserError: there is no such fold or the two are the same, the folder has another layout, the table is
            malformed, or files are missing.
    """
    for fold in outs:
        if fold not in FOLDS or valid_fold not in (None, "next", *FOLDS) or valid_fold == fold:
            raise UserError(f"--fold {fold} --valid-fold {valid_fold}: must be two different ones of {FOLDS}")
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
    classes = [names[target] for target in sorted(names)]
    scan = read_headers(root, [clip.path for number in FOLDS for clip in folds[number]], workers)
    corpora = {}
    for fold, out in outs.items():
        held_out = fold % len(FOLDS) + 1 if valid_fold == "next" else valid_fold
        splits = {
            "train": [clip for number in FOLDS if number not in (fold, held_out) for clip in folds[number]],
            "valid": folds[held_out or fold],
            "test": folds[fold],
        }
        corpora[fold] = write_corpus(out, root, splits, classes, warnings, scan=scan)
    return corpora
