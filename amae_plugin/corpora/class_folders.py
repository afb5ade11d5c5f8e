"""A folder a class: the topmost folders of any tree of audio files are its classes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from amae_plugin.corpora.corpus import Corpus, LabelledClip, write_corpus
from amae_plugin.corpora.folder import AUDIO_EXTENSIONS, find_audio, split_names
from amae_plugin.errors import UserError

_SPLIT_NAMES = {"train", "training", "valid", "validation", "val", "dev", "eval", "test", "testing"}


def build(
    folder: Path,
    out: Path,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    extensions: Collection[str] = AUDIO_EXTENSIONS,
    seed: int = 1,
    workers: int | None = None,
) -> Corpus:
    """Split each class by itself at random, so that all splits have about the same shares of classes.

    A class with fewer clips than there are splits is for training only.

    Raises:
        UserError: the folder does not exist, holds no readable audio, or audio that lies in no class; *out* cannot be
            written; a folder's name cannot be a class: it holds a comma, or all of them are names of splits.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = find_audio(folder, extensions)
    classes: dict[str, list[str]] = {}
    for name in found.names:
        if "/" not in name:
            raise UserError(
                f"{folder / name} lies in no class; with labels, every clip must be in a folder of {folder}"
            )
        classes.setdefault(name.split("/")[0], []).append(name)
    if not classes:
        raise UserError(f"{folder}: no audio in its folders; looked for the extensions {' '.join(extensions)}")
    if {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise UserError(
            f"{folder}: its folders {', '.join(classes)} look like splits; the classes must be the topmost folders"
        )
    fractions = {split: share for split, share in (("valid", valid_fraction), ("test", test_fraction)) if share}
    splits: dict[str, list[LabelledClip]] = {split: [] for split in ("train", *fractions)}
    warnings = [f"{name}: {reason}; left out" for name, reason in found.problems.items()]
    if found.duplicates:
        warnings.append(f"{found.duplicates:,} files are links to others of the tree; left out")
    for label, names in classes.items():
        if len(names) > len(fractions):
            parts = split_names(names, fractions, seed)
        else:
            parts = {"train": names}
            warnings.append(f"{label}: all {len(names)} clips are in train, too few for every split")
        for split, part in parts.items():
            splits[split] += [LabelledClip(name, (label,)) for name in part]
    return write_corpus(out, folder, splits, list(classes), warnings, workers)
