"""Speech Commands (Warden 2018): ``<word>/<speaker>_nohash_<n>.wav`` and two lists of held-out clips.

The task ``v2-35`` is v0.02's: each clip's class is its word, the splits are the publisher's.

The task ``v1-12`` is v0.01's: ten words, ``_unknown_`` and ``_silence_``, by the rules of the publisher's training
script.

* ``_unknown_``: clips of other words. In each split as many are drawn at random as are 10% of its clips of the ten
  words (rounded up). SUPERB and the papers that follow it train and validate on all of them instead, 51,088 and 6,798
  clips of words, with class-balanced sampling: ``other_words="all"``.
* ``_silence_``: pieces of one second of the recordings in ``_background_noise_``, as many as there are unknown ones by
  the first rule. A recording's first 80% serve training, the next 10% validation and the last 10% testing, so that no
  split hears another's noise; within these a piece may begin anywhere. (The publisher's script draws from whole
  recordings in every split, anew each time and at a random volume.)
* The test split is a separate archive with a folder a class. Without it, one is made from ``testing_list.txt`` by the
  same rules; numbers on it are not quite those published.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amae_plugin.corpora.corpus import (
    Corpus,
    LabelledClip,
    compare_counts,
    find_listed,
    find_root,
    list_audio,
    write_corpus,
)
from amae_plugin.corpora.spoken_words import COMMANDS, SILENCE, TWELVE, UNKNOWN, WORDS
from amae_plugin.data.audio import read_header
from amae_plugin.errors import UserError

TASKS = ("v2-35", "v1-12")
OTHER_WORDS = ("sampled", "all")

_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
_NOISE_FOLDER = "_background_noise_"
_SHARE = 0.10  # of unknown and of silence, each against the clips of the ten words
_NOISE_SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
_PUBLISHED_V2 = {"train": 84_843, "valid": 9_981, "test": 11_005}
_PUBLISHED_V1 = {"train": 51_088, "valid": 6_798, "test": 6_835}
_PUBLISHED_V1_TEST = 3_081


def build(
    root: Path,
    out: Path,
    task: str,
    test_root: Path | None = None,
    other_words: str = "sampled",
    seed: int = 1,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Write the manifests of one task.

    Args:
        root: the unpacked archive, or the folder that holds it.
        out: where they go.
        task: one of `TASKS`.
        test_root: the unpacked test archive, for v1-12.
        other_words: one of `OTHER_WORDS`, for v1-12.
        seed: of the other words and pieces of noise drawn for v1-12.
        allow_missing: go on without listed files that are not there.
        workers: threads that read headers.

    Raises:
        UserError: the folder has another layout, files are missing, or an option is not one of this task.
    """
    if task not in TASKS or other_words not in OTHER_WORDS:
        raise UserError(f"task '{task}' with {other_words} other words; choose from {TASKS} and {OTHER_WORDS}")
    if task == "v2-35" and (test_root is not None or other_words != "sampled"):
        raise UserError("--test-root and --other-words belong to --task v1-12; v2-35 has its own test list")
    root = find_root(root, _LISTS["test"], "Speech Commands")
    words, warnings = _words(root, allow_missing)
    if task == "v2-35":
        classes: Sequence[str] = WORDS
        there = {word for part in words.values() for word in part}
        if not there <= set(WORDS):
            classes = sorted(there)
            warnings.append(
                f"classes: the {len(there)} folders, as they are not all words of Speech Commands: "
                f"{', '.join(sorted(there - set(WORDS)))}"
            )
        warnings += compare_counts(_count(words), _PUBLISHED_V2)
        splits = {split: _label(part) for split, part in words.items()}
        return write_corpus(out, root, splits, classes, warnings, workers)

    warnings += compare_counts(_count(words), _PUBLISHED_V1, "clips of all words")
    splits = {
        split: _twelve(root, split, part, other_words, seed)
        for split, part in words.items()
        if split != "test" or test_root is None
    }
    if test_root is None:
        warnings.append(
            "test: made from testing_list.txt by the publisher's rules; published results are on the separate test "
            "archive (--test-root)"
        )
    else:
        splits["test"] = _test_archive(test_root)
        warnings += compare_counts({"test": len(splits["test"])}, {"test": _PUBLISHED_V1_TEST})
    return write_corpus(out, root, splits, TWELVE, warnings, workers)


def _words(root: Path, allow_missing: bool) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    listed: dict[str, list[str]] = {}
    warnings: list[str] = []
    for split, name in _LISTS.items():
        try:
            names = (root / name).read_text(encoding="utf-8").split()
        except OSError as error:
            raise UserError(f"{root / name}: cannot read the list ({error.strerror})") from None
        found, more = find_listed(root, names, name, allow_missing)
        listed[split] = list(found.values())
        warnings += more
    held_out = {path for paths in listed.values() for path in paths}
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] not in "_.")
    every = [f"{folder}/{name}" for folder in folders for name in list_audio(root / folder)]
    listed = {"train": [path for path in every if path not in held_out], **listed}
    if not listed["train"]:
        raise UserError(f"{root}: no clips in its folders but those of the lists")
    words: dict[str, dict[str, list[str]]] = {}
    for split, paths in listed.items():
        words[split] = {}
        for path in sorted(paths):
            words[split].setdefault(path.split("/")[0], []).append(path)
    return words, warnings


def _count(words: dict[str, dict[str, list[str]]]) -> dict[str, int]:
    return {split: sum(map(len, part.values())) for split, part in words.items()}


def _label(part: dict[str, list[str]]) -> list[LabelledClip]:
    return [LabelledClip(path, (word,)) for word, paths in part.items() for path in paths]


def _twelve(root: Path, split: str, part: dict[str, list[str]], other_words: str, seed: int) -> list[LabelledClip]:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    clips = _label({word: paths for word, paths in part.items() if word in COMMANDS})
    few = math.ceil(_SHARE * len(clips))
    others = sorted(path for word, paths in part.items() if word not in COMMANDS for path in paths)
    if other_words == "sampled" and few < len(others):
        others = [others[index] for index in np.sort(rng.choice(len(others), few, replace=False))]
    silence = _silence(root, split, few, rng)
    return [*clips, *(LabelledClip(path, (UNKNOWN,)) for path in others), *silence]


def _silence(root: Path, split: str, count: int, rng: np.random.Generator) -> list[LabelledClip]:
    folder = root / _NOISE_FOLDER
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; v1-12 takes its silence from there")
    paths, firsts, choices, seconds = [], [], [], []
    for name in list_audio(folder):
        header = read_header(folder / name)
        first, last = (int(share * header.frames) for share in _NOISE_SHARES[split])
        if last - first >= header.sample_rate:
            paths.append(f"{_NOISE_FOLDER}/{name}")
            firsts.append(first)
            choices.append(last - first - header.sample_rate + 1)
            seconds.append(header.sample_rate)
    if not paths:
        raise UserError(f"{folder}: no recording whose share for {split} is a second long; 10 seconds suffice")
    ends = np.cumsum(choices)
    clips = []
    for drawn in np.sort(rng.integers(ends[-1], size=count)).tolist():
        file = int(np.searchsorted(ends, drawn, side="right"))
        start = firsts[file] + drawn - int(ends[file] - choices[file])
        clips.append(LabelledClip(paths[file], (SILENCE,), (start, seconds[file])))
    return clips


def _test_archive(test_root: Path) -> list[LabelledClip]:
    test_root = find_root(test_root, UNKNOWN, "Speech Commands' test archive").absolute()
    absent = [name for name in TWELVE if not (test_root / name).is_dir()]
    if absent:
        raise UserError(f"{test_root}: lacks the folders {', '.join(absent)}; it must have one a class")
    return [
        LabelledClip(str(test_root / name / clip), (name,)) for name in TWELVE for clip in list_audio(test_root / name)
    ]
