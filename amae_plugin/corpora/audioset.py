"""AudioSet (Gemmeke et al. 2017): tables of YouTube clips with several labels each; the audio is the user's own.

A table's lines are ``YTID, start_seconds, end_seconds, "mid,mid,..."`` after comments that begin with ``#``.
``class_labels_indices.csv`` gives index, mid and display name of the 527 classes. Display names hold commas ("Male
speech, man speaking"), so the classes are the mids; the table of names is copied beside the manifests.

A clip is a file anywhere below the audio folder whose name is ``<YTID>``, ``Y<YTID>`` or either with ``_<start>`` or
``_<start>_<end>`` behind it, in any audio format.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, report_missing, write_corpus
from amae_plugin.corpora.folder import AUDIO_EXTENSIONS
from amae_plugin.errors import UserError

_PUBLISHED = {"balanced_train_segments": 22_160, "unbalanced_train_segments": 2_041_789, "eval_segments": 20_371}
_PUBLISHED_CLASSES = 527
# What a table's file name tells of its split.
_SPLIT_WORDS = {"train": "train", "valid": "valid", "dev": "valid", "eval": "test", "test": "test"}
_NUMBER = re.compile(r"_\d+(\.\d+)?$")
_LABELS_NAME = "class_labels_indices.csv"


def build(
    tables: Sequence[str],
    audio: Path,
    labels: Path,
    out: Path,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Corpus:
    """Write a manifest with labels for each split.

    Tables of one split are joined: the balanced and the unbalanced training table are AS-2M, the balanced alone is
    AS-20K. Without a table for ``valid``, that split is the test split once more, on which the published systems
    validate.

    Args:
        tables: paths of ``*_train_segments.csv``, ``eval_segments.csv``...; the split is told by the file name, or
            given as ``split=path``.
        audio: the folder of the clips.
        labels: ``class_labels_indices.csv``.
        out: where they go.
        allow_missing: go on without clips that are not there.
        workers: threads that read headers.

    Raises:
        UserError: a table cannot be read or has a malformed line or an unknown label, or clips are missing.
    """
    classes = _read_classes(labels)
    known = set(classes)
    listed: dict[str, list[tuple[Path, str, tuple[str, ...]]]] = {}
    for table in tables:
        split, path = _split_of(table)
        listed.setdefault(split, []).extend((path, ytid, mids) for ytid, mids in _read_table(path, known, labels))

    files = _find_clips(audio, {ytid for part in listed.values() for _, ytid, _ in part})
    missing = [f"{ytid} ({path.name})" for part in listed.values() for path, ytid, _ in part if ytid not in files]
    total = sum(map(len, listed.values()))
    warnings = report_missing(missing, total, f"listed in the tables are not in {audio}", allow_missing)
    splits, counts = {}, {_split_of(table)[1].stem: 0 for table in tables}
    for split, part in listed.items():
        splits[split] = [LabelledClip(files[ytid], mids) for _, ytid, mids in part if ytid in files]
        for path, ytid, _ in part:
            counts[path.stem] += ytid in files
    warnings += compare_counts(counts, {name: count for name, count in _PUBLISHED.items() if name in counts})
    warnings += compare_counts({"classes": len(classes)}, {"classes": _PUBLISHED_CLASSES}, "mids")
    if "valid" not in splits and "test" in splits:
        splits["valid"] = splits["test"]
    corpus = write_corpus(out, audio, splits, classes, warnings, workers)
    with contextlib.suppress(shutil.SameFileError):
        shutil.copyfile(labels, out / _LABELS_NAME)
    return corpus


def _read_classes(path: Path) -> list[str]:
    """The mids in index order."""
    with _table(path) as reader:
        header: list[str] = next(reader, [])
        if header[:2] != ["index", "mid"]:
            raise UserError(f"{path}, line 1: expected 'index,mid,display_name', found '{','.join(header)}'")
        classes: list[str] = []
        for row in reader:
            if len(row) < 2 or row[0] != str(len(classes)):
                raise UserError(f"{path}, line {reader.line_num}: expected the class of index {len(classes)}")
            classes.append(row[1])
    return classes


def _split_of(table: str) -> tuple[str, Path]:
    split, equals, path = table.partition("=")
    if equals and split.isidentifier():
        return split, Path(path)
    for word, split in _SPLIT_WORDS.items():
        if word in Path(table).stem.lower():
            return split, Path(table)
    raise UserError(f"--csv {table}: the name does not tell the split; write train={table} or test={table}")


def _read_table(path: Path, known: set[str], labels: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """YTID and mids of each clip."""
    with _table(path) as reader:
        for row in reader:
            if not row or row[0].startswith("#") or row[0] == "YTID":
                continue
            # Mids that lost their quotes are fields of their own.
            mids = tuple(mid.strip() for mid in ",".join(row[3:]).split(","))
            if len(row) < 4 or not row[0] or not all(mids):
                expected = 'YTID, start_seconds, end_seconds, "mid,mid,..."'
                raise UserError(f"{path}, line {reader.line_num}: expected '{expected}', found '{', '.join(row)}'")
            unknown = [mid for mid in mids if mid not in known]
            if unknown:
                raise UserError(f"{path}, line {reader.line_num}: '{unknown[0]}' is not a class of {labels}")
            yield row[0], mids


@contextlib.contextmanager
def _table(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file, skipinitialspace=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read the table ({error.strerror})") from None


def _find_clips(audio: Path, ytids: set[str]) -> dict[str, str]:
    """The file of each clip that is there, relative to *audio*: of several, the first in the order of their names."""
    if not audio.is_dir():
        raise UserError(f"{audio}: no such folder")
    suffixes = {f".{extension}" for extension in AUDIO_EXTENSIONS}
    found: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(audio, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116 - os.walk gives strings
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner.sort()
        prefix = os.path.relpath(folder, audio)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            ytid = _ytid(stem, ytids) if suffix.lower() in suffixes else None
            if ytid is not None:
                found.setdefault(ytid, name if prefix == "." else f"{prefix}/{name}")
    return found


def _ytid(stem: str, ytids: set[str]) -> str | None:
    """Which of the ids a file name stands for; an id may itself begin with Y or end like a number."""
    for _ in range(3):
        for candidate in (stem, stem[1:] if stem.startswith("Y") else stem):
            if candidate in ytids:
                return candidate
        stem, replaced = _NUMBER.subn("", stem)
        if not replaced:
            return None
    return None
