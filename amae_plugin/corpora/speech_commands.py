"""Speech Commands (Warden 2018): ``<word>/<speaker>_nohash_<n>.wav`` and two lists of held-out clips.

The task ``v2-35`` belongs to v0.02: each clip's class is its word, and the splits are the publisher's.

The task ``v1-12`` belongs to v0.01: ten words, ``_unknown_`` and ``_silence_``, by the rules of the publisher's
training script.

* ``_unknown_``: clips of other words. Each split draws at random 10% as many as it has clips of the ten words (rounded
  up). SUPERB and the papers that follow it train and validate on all of them instead, 51,088 and 6,798 clips of words,
  with class-balanced sampling: ``--other-words all``.
* ``_silence_``: pieces of one second of the recordings in ``_background_noise_``, as many as there are unknown clips by
  the first rule. A recording's first 80% serve training, the next 10% validation and the last 10% testing, so no split
  shares noise with another; a piece may begin anywhere in its part. (The publisher's script draws from whole recordings
  in every split, anew each time and at a random volume.)
* The test split is a separate archive with a folder a class. Without it, one is made from ``testing_list.txt`` by the
  same rules; results on it are not quite comparable to published ones.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from amae_plugin.corpora.audio_files import (
    absolute_path,
    add_allow_missing,
    compare_sizes,
    find_listed,
    find_root,
    list_audio,
)
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, Scan, Splits, read_headers, write_corpus
from amae_plugin.data.lines import read_lines
from amae_plugin.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from amae_plugin.data.audio import AudioHeader

_WORDS = """
    backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one
    right seven sheila six stop three tree two up visual wow yes zero
"""
WORDS = tuple(_WORDS.split())
"""The 35 words of v0.02, the classes of v2-35 in index order."""
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
TWELVE = (*COMMANDS, UNKNOWN, SILENCE)
"""The classes of v1-12 in index order."""
TASKS = ("v2-35", "v1-12")
OTHER_WORDS = ("sampled", "all")

_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
_NOISE_FOLDER = "_background_noise_"
_SHARE = 0.10  # unknown clips and pieces of silence, each as a share of the clips of the ten words
_NOISE_SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
_PUBLISHED_V2 = {"train": 84_843, "valid": 9_981, "test": 11_005}
_PUBLISHED_V1 = {"train": 51_088, "valid": 6_798, "test": 6_835}
_PUBLISHED_V1_TEST = {"test": 3_081}


def build(
    root: Path,
    out: Path,
    task: str,
    *,
    test_root: Path | None = None,
    other_words: str = "sampled",
    seed: int = 1,
    allow_missing: bool = False,
    workers: int = 0,
) -> Corpus:
    """Write the manifests of one task.

    Args:
        root: unpacked archive, or the folder that holds it.
        out: folder of the manifests.
        task: one of `TASKS`.
        test_root: unpacked test archive, for v1-12.
        other_words: one of `OTHER_WORDS`, for v1-12.
        seed: seed of the draw of other words and pieces of noise, for v1-12.
        allow_missing: whether listed files that do not exist are left out.
        workers: number of threads that read headers.

    Raises:
        UserError: the folder has another layout, files are missing, or the task does not have that option.
    """
    if task == "v2-35" and (test_root is not None or other_words != "sampled"):
        raise UserError("--test-root and --other-words belong to --task v1-12; v2-35 has its own test list")
    root = find_root(root, _LISTS["test"], "Speech Commands")
    words, warnings = _read_words(root, allow_missing)
    if task == "v2-35":
        splits, classes, more = _every_word(words)
        return write_corpus(root, {out: splits}, classes, warnings=warnings + more, workers=workers)
    splits, scan, more = _ten_words(root, words, test_root, other_words, seed, workers)
    return write_corpus(root, {out: splits}, TWELVE, warnings=warnings + more, scan=scan)


def _every_word(words: Splits) -> tuple[Splits, Sequence[str], list[str]]:
    """Return splits, classes and warnings of v2-35."""
    warnings = compare_sizes(words, _PUBLISHED_V2)
    found = sorted({word for part in words.values() for clip in part for word in clip.labels})
    others = [word for word in found if word not in WORDS]
    if not others:
        return words, WORDS, warnings
    reason = f"as they are not all words of Speech Commands: {', '.join(others)}"
    return words, found, [f"classes: the {len(found)} folders, {reason}", *warnings]


def _ten_words(
    root: Path, words: Splits, test_root: Path | None, other_words: str, seed: int, workers: int
) -> tuple[Splits, Scan, list[str]]:
    """Return splits, headers and warnings of v1-12; what is drawn is drawn from clips that can be read."""
    import numpy as np

    warnings = compare_sizes(words, _PUBLISHED_V1, "clips of all words")
    archive = {} if test_root is None else {"test": _read_test_archive(test_root)}
    warnings += compare_sizes(archive, _PUBLISHED_V1_TEST) if archive else []
    words = {**words, **archive}
    if not (root / _NOISE_FOLDER).is_dir():
        raise UserError(f"{root / _NOISE_FOLDER}: no such folder; v1-12 takes its silence from there")
    noises, _ = list_audio(root, f"{_NOISE_FOLDER}/*")
    scan = read_headers(root, [*(clip.path for clips in words.values() for clip in clips), *noises], workers)
    splits = {}
    for split, listed in words.items():
        clips = [clip for clip in listed if clip.path in scan.headers]
        if split in archive:
            splits[split] = clips
            continue
        rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
        commands = [clip for clip in clips if clip.labels[0] in COMMANDS]
        unknown = [LabelledClip(clip.path, (UNKNOWN,)) for clip in clips if clip.labels[0] not in COMMANDS]
        few = math.ceil(_SHARE * len(commands))
        if other_words == "sampled" and few < len(unknown):
            unknown = [unknown[index] for index in np.sort(rng.choice(len(unknown), few, replace=False))]
        recordings = {path: scan.headers[path] for path in noises if path in scan.headers}
        splits[split] = [*commands, *unknown, *_draw_silence(root, recordings, split, few, rng)]
    if not archive:
        published = "published results are on the separate test archive (--test-root)"
        warnings.append(f"test: made from testing_list.txt by the publisher's rules; {published}")
    return splits, scan, warnings


def _read_words(root: Path, allow_missing: bool) -> tuple[Splits, list[str]]:
    """Read the publisher's splits, in which a clip's class is its word, and warnings."""
    listed: dict[str, list[str]] = {}
    warnings: list[str] = []
    for split, name in _LISTS.items():
        names = [line.strip() for line in read_lines(root / name, "the list") if line.strip()]
        found, missing = find_listed(root, names, name, allow_missing)
        listed[split] = sorted(found.values())
        warnings += missing
    clips, copies = list_audio(root, "[!._]*/*")
    if copies:
        warnings.append(f"copies of clips in another format, left out: {copies:,}")
    held_out = {PurePosixPath(path).with_suffix("") for paths in listed.values() for path in paths}
    train = [path for path in clips if PurePosixPath(path).with_suffix("") not in held_out]
    if not train:
        raise UserError(f"{root}: no clips in its folders but those of the lists")
    splits = {"train": train, **listed}
    words = {split: [LabelledClip(path, (path.split("/")[0],)) for path in paths] for split, paths in splits.items()}
    return words, warnings


def _draw_silence(
    root: Path, noises: Mapping[str, AudioHeader], split: str, count: int, rng: np.random.Generator
) -> list[LabelledClip]:
    """Draw pieces of one second, uniformly over all frames at which one may begin."""
    import numpy as np

    recordings = []
    for path, header in noises.items():
        first, last = (int(share * header.frames) for share in _NOISE_SHARES[split])
        recordings.append((path, range(first, last - header.sample_rate + 1), header.sample_rate))
    choices = sum(len(starts) for _, starts, _ in recordings)
    if not choices:
        folder = root / _NOISE_FOLDER
        raise UserError(f"{folder}: no recording whose share for {split} is a second long; 10 seconds suffice")
    clips = []
    for drawn in np.sort(rng.integers(choices, size=count)).tolist():
        for path, starts, second in recordings:
            if drawn < len(starts):
                clips.append(LabelledClip(path, (SILENCE,), (starts[drawn], second)))
                break
            drawn -= len(starts)
    return clips


def _read_test_archive(root: Path) -> list[LabelledClip]:
    root = absolute_path(find_root(root, UNKNOWN, "Speech Commands' test archive"))
    absent = [name for name in TWELVE if not (root / name).is_dir()]
    if absent:
        raise UserError(f"{root}: lacks the folders {', '.join(absent)}; it must have one a class")
    return [LabelledClip(str(root / path), (name,)) for name in TWELVE for path in list_audio(root, f"{name}/*")[0]]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="take the archive that was unpacked here")
    parser.add_argument(
        "--task", choices=TASKS, required=True, help="take the 35 words of v0.02, or the 12 classes of v0.01"
    )
    parser.add_argument(
        "--test-root", type=Path, metavar="DIR", help="take the test archive of v1-12 that was unpacked here"
    )
    others = "take unknown clips for v1-12, a tenth as many as clips of the ten words or all (default: %(default)s)"
    parser.add_argument("--other-words", choices=OTHER_WORDS, default="sampled", help=others)
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="draw the clips of v1-12 with this seed (default: %(default)s)"
    )
    add_allow_missing(parser)


LAYOUT = Layout(
    "speech_commands", "list Speech Commands: 35 words, or 10 with unknown and silence", _add_arguments, build
)
