"""VoxCeleb1 (Nagrani et al. 2017): ``wav/<speaker>/<video>/<n>.wav``, identification and verification lists.

``iden_split.txt`` has a line ``<1|2|3> <speaker>/<video>/<n>.wav`` for each clip of train, validation and test split;
the class is the speaker, and the classes are those of the list, sorted. ``veri_test.txt`` has a line ``<0|1> <clip>
<clip>`` for each pair, 1 where both are of one speaker.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, find_listed, write_corpus
from amae_plugin.data.trials import read_trial_lines
from amae_plugin.errors import UserError

TRIALS_SPLIT = "trials"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_PUBLISHED = {"train": 138_361, "valid": 6_904, "test": 8_251}
_PUBLISHED_SPEAKERS = 1_251
# Folders are in the one given, in wav/ below it, or in dev/wav/ and test/wav/ if the two archives were kept apart.
_DEEPEST = 3


def build(
    root: Path,
    split_file: Path,
    out: Path,
    trials_file: Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Write ``train``, ``valid`` and ``test`` for speaker identification and, with trials, what verification needs.

    That is ``trials.tsv``, a manifest of all clips of the pairs without labels, and ``trials.txt``, the pairs with the
    names that this manifest has.

    Args:
        root: the folder of the speakers, or one above it.
        split_file: ``iden_split.txt``; if there is no such file, it is looked for in *root*.
        out: where they go.
        trials_file: ``veri_test.txt``, looked for in the same way.
        allow_missing: go on without listed files that are not there, and without pairs that hold one.
        workers: threads that read headers.

    Raises:
        UserError: a list cannot be read or has a malformed line, or listed files are missing.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    listed = _read_split(_in_or_at(split_file, root))
    trials = read_trial_lines(_in_or_at(trials_file, root)) if trials_file is not None else []
    of_trials = sorted({_normal(name) for _, _, pair in trials for name in pair})

    speakers = {name.split("/")[0] for names in listed.values() for name in names}
    folders = _speaker_folders(root, speakers | {name.split("/")[0] for name in of_trials})

    def path(name: str) -> str:
        speaker, *rest = name.split("/")
        return "/".join((folders.get(speaker, speaker), *rest))

    every = [path(name) for names in listed.values() for name in names]
    found, warnings = find_listed(root, every, split_file.name, allow_missing)
    splits = {
        split: [LabelledClip(found[path(name)], (name.split("/")[0],)) for name in names if path(name) in found]
        for split, names in listed.items()
    }
    warnings += compare_counts({split: len(part) for split, part in splits.items()}, _PUBLISHED)
    warnings += compare_counts({"classes": len(speakers)}, {"classes": _PUBLISHED_SPEAKERS}, "speakers")

    pairs: list[tuple[int, str, str]] = []
    if trials_file is not None:
        found, more = find_listed(root, [path(name) for name in of_trials], trials_file.name, allow_missing)
        warnings += more
        splits[TRIALS_SPLIT] = [LabelledClip(name) for name in found.values()]
        for _, same, names in trials:
            left, right = (found.get(path(_normal(name))) for name in names)
            if left is not None and right is not None:
                pairs.append((same, left, right))
    corpus = write_corpus(out, root, splits, sorted(speakers), warnings, workers)
    if trials_file is not None:
        text = "".join(f"{same} {left} {right}\n" for same, left, right in pairs)
        (out / f"{TRIALS_SPLIT}.txt").write_text(text, encoding="utf-8")
    return corpus


def _in_or_at(path: Path, root: Path) -> Path:
    return path if path.is_file() or not (root / path).is_file() else root / path


def _normal(name: str) -> str:
    """``<speaker>/<video>/<n>.wav``, also of a name that begins with folders above."""
    return "/".join(PurePosixPath(name).parts[-3:])


def _read_split(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the split ({error.strerror}); VoxCeleb calls it iden_split.txt") from None
    listed: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[0] not in _SPLITS or "/" not in fields[1]:
            raise UserError(f"{path}, line {number}: expected '<1|2|3> <speaker>/<video>/<n>.wav', found '{line}'")
        listed[_SPLITS[fields[0]]].append(_normal(fields[1]))
    if not listed["train"]:
        raise UserError(f"{path}: holds no clip for training, whose lines begin with 1")
    return listed


def _speaker_folders(root: Path, speakers: Collection[str]) -> dict[str, str]:
    """Where the folder of each speaker lies, relative to *root*, for those found."""
    found: dict[str, str] = {}
    level = [""]
    for _ in range(_DEEPEST):
        below = []
        for folder in level:
            with os.scandir(root / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    inner = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name in speakers:
                        found.setdefault(entry.name, inner)
                    elif entry.is_dir() and len(found) < len(speakers):
                        below.append(inner)
        level = below
        if len(found) == len(speakers):
            break
    return found
