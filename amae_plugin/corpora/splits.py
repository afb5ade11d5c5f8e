"""Divide clips into splits: at random, or into the runs of a five-fold cross-validation."""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from amae_plugin.corpora.corpus import Splits
from amae_plugin.errors import UserError

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
"""Splits by the words that name them in corpora."""
FOLDS = (1, 2, 3, 4, 5)
ALL = "all"
Fold = int | str
"""The number of a fold, or a word: ``all`` or ``next``."""


def split_names(names: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Choose files at random for each split of *fractions*; ``train`` gets the rest.

    The choice orders the names by a hash of seed and name, so it is the same on every machine and hardly changes when
    files are added. A fraction above 0 gives at least one file, and ``train`` keeps at least one.

    Raises:
        UserError: the fractions are not below 1 together, or there are fewer files than splits.
    """
    used = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if any(fraction < 0 for fraction in fractions.values()) or sum(used.values()) >= 1:
        raise UserError(f"fractions {dict(fractions)}: each must be 0 or more, and together below 1")
    if len(names) < len(used) + 1:
        raise UserError(
            f"{len(names)} audio files cannot be split into {len(used) + 1} parts; add files that can be read, or use 0"
        )
    keys = (f"{seed}:{name}".encode("utf-8", "surrogateescape") for name in names)
    shuffled = [name for _, name in sorted(zip((hashlib.blake2b(key).digest() for key in keys), names))]
    splits: dict[str, list[str]] = {"train": shuffled}
    for position, (split, fraction) in enumerate(used.items()):
        for_others = len(used) - position  # one each for the splits after this one, and for train
        count = min(max(1, round(len(names) * fraction)), len(splits["train"]) - for_others)
        splits[split], splits["train"] = splits["train"][:count], splits["train"][count:]
    return {split: sorted(part) for split, part in splits.items()}


def split_classes(
    groups: Mapping[tuple[str, ...], Sequence[str]], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[str]]:
    """Split the files of each class on its own, so that all splits have about the same shares of classes.

    A class with too few files for every split goes into training as a whole.

    Args:
        groups: the files of each class; those without a class under ``()``.
        fractions: see :func:`split_names`.
        seed: see :func:`split_names`.

    Returns:
        Files with their classes in each split, and warnings.
    """
    used = {split: fraction for split, fraction in fractions.items() if fraction}
    splits: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in ("train", *used)}
    warnings = []
    for label, names in groups.items():
        few = bool(label) and len(names) <= len(used)
        if few:
            warnings.append(f"{label[0]}: all {len(names)} clips are in train, too few for every split")
        for split, part in split_names(names, {} if few else used, seed).items():
            splits[split] |= dict.fromkeys(part, label)
    return splits, warnings


def add_split_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``, by which clips are held out."""
    text = "choose the clips held out with this seed (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="N", help=text)


def add_fold(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--fold``; *what* says what the fold of that number is for."""
    text = f"test on this {what}; all: on each in turn, written to DIR/fold1, DIR/fold2, ..."
    parser.add_argument("--fold", type=number_or_word, choices=(*FOLDS, ALL), required=True, help=text)


def number_or_word(text: str) -> Fold:
    """Return a fold's number as an integer and anything else as it is."""
    return int(text) if text.isdecimal() else text


def list_runs(out: Path, fold: Fold, split: Callable[[int], Splits]) -> dict[Path, Splits]:
    """List the splits of each run of a cross-validation under the folder that its manifests go to.

    Args:
        out: folder of the one run, or the one in which ``all`` runs get the folders ``fold1`` to ``fold5``.
        fold: number of the fold tested on, or ``all``.
        split: gives the splits of the run that tests on a fold.

    Raises:
        UserError: the fold is none of these.
    """
    if fold not in (*FOLDS, ALL):
        raise UserError(f"--fold {fold}: must be one of {FOLDS} or {ALL}")
    numbers = {out / f"fold{number}": number for number in FOLDS} if fold == ALL else {out: int(fold)}
    return {folder: split(number) for folder, number in numbers.items()}
