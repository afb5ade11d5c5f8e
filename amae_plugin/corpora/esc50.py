"""ESC-50 (Piczak 2015): ``audio/*.wav`` and ``meta/esc50.csv``, whose column ``fold`` is 1 to 5.

The published result is the mean of five runs, each tested on one fold after training on the other four. The corpus has
no validation split: by default ``valid`` is the test fold once more, which the published systems watch too, and a
checkpoint chosen by it is chosen on the test data. ``--valid-fold`` takes a fold out of the training data instead.
"""

import argparse
import csv
from pathlib import Path

from amae_plugin.corpora.audio_files import add_allow_missing, compare_sizes, find_listed, find_root
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, write_corpus
from amae_plugin.corpora.splits import ALL, FOLDS, Fold, add_fold, list_runs, number_or_word
from amae_plugin.data.lines import bad_lines
from amae_plugin.errors import UserError
from amae_plugin.files import reading

_NEXT = "next"
_CSV = "meta/esc50.csv"
_COLUMNS = ("filename", "fold", "target", "category")
_PUBLISHED_PER_FOLD = 400
_PUBLISHED_CLASSES = 50


def build(
    root: Path, out: Path, fold: Fold, *, valid_fold: Fold | None = None, allow_missing: bool = False, workers: int = 0
) -> Corpus:
    """Write ``train``, ``valid`` and ``test`` of one of the five runs, or of all.

    Args:
        root: unpacked archive, or the folder that holds it.
        out: folder of the manifests; with all runs, the folder of their folders.
        fold: fold tested on, or ``all``.
        valid_fold: fold to validate on, or ``next`` for the one after the test fold; None validates on the test fold.
        allow_missing: whether listed files that do not exist are left out.
        workers: number of threads that read headers.

    Raises:
        UserError: a fold does not exist or the two are the same, the folder has another layout, the table is malformed,
            or files are missing.
    """
    if fold == ALL and valid_fold in FOLDS:
        reason = f"one of the runs tests on fold {valid_fold}; --valid-fold next validates each on the fold after that"
        raise UserError(f"--fold all --valid-fold {valid_fold}: {reason}")
    if fold not in (*FOLDS, ALL) or valid_fold not in (None, _NEXT, *FOLDS) or valid_fold == fold:
        raise UserError(f"--fold {fold} --valid-fold {valid_fold}: must be two different ones of {FOLDS}")
    root = find_root(root, _CSV, "ESC-50")
    clips, classes = _read_table(root / _CSV)
    found, warnings = find_listed(root, list(clips), _CSV, allow_missing)
    folds = {
        number: [LabelledClip(path, (clips[name][1],)) for name, path in found.items() if clips[name][0] == number]
        for number in FOLDS
    }
    parts = {f"fold {number}": part for number, part in folds.items()}
    warnings += compare_sizes(parts, dict.fromkeys(parts, _PUBLISHED_PER_FOLD))
    warnings += compare_sizes({"classes": classes}, {"classes": _PUBLISHED_CLASSES}, "names")

    def split(test: int) -> dict[str, list[LabelledClip]]:
        valid = test % len(FOLDS) + 1 if valid_fold == _NEXT else int(valid_fold or test)
        train = [clip for number in FOLDS if number not in (test, valid) for clip in folds[number]]
        return {"train": train, "valid": folds[valid], "test": folds[test]}

    return write_corpus(root, list_runs(out, fold, split), classes, warnings=warnings, workers=workers)


def _read_table(path: Path) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """Read the fold and the class of each file, and the classes in index order."""
    clips: dict[str, tuple[int, str]] = {}
    names: dict[int, str] = {}
    targets: dict[str, int] = {}
    with reading(path, "the table"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise UserError(f"{path}, line 1: lacks some of the columns {', '.join(_COLUMNS)}")
        problems: dict[int, str] = {}
        for row in reader:
            name = row["category"] or ""
            try:
                fold, target = int(row["fold"]), int(row["target"])
            except (TypeError, ValueError):
                problems[reader.line_num] = "fold and target must be numbers"
                continue
            if fold not in FOLDS:
                problems[reader.line_num] = f"fold {fold} is none of {', '.join(map(str, FOLDS))}"
            elif not name.strip():
                problems[reader.line_num] = f"no category of target {target}"
            elif (before := names.setdefault(target, name)) != name:
                problems[reader.line_num] = f"target {target} is '{name}', and '{before}' above"
            elif (other := targets.setdefault(name, target)) != target:
                problems[reader.line_num] = f"'{name}' is target {target}, and {other} above"
            clips[f"audio/{row['filename']}"] = (fold, name)
    if problems:
        raise bad_lines(path, problems, "correct it, or fetch the table again if it is cut off")
    return clips, [names[target] for target in sorted(names)]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="take the archive that was unpacked here")
    add_fold(parser, "fold")
    valid = "validate on this fold, and do not train on it; next: the one after the test fold (default: the test fold)"
    parser.add_argument("--valid-fold", type=number_or_word, choices=(*FOLDS, _NEXT), help=valid)
    add_allow_missing(parser)


_HELP = "list ESC-50: one of its five folds tested on, or each in turn"
LAYOUT = Layout("esc50", _HELP, _add_arguments, build, sweep="finetune_audio_mae_esc50")
