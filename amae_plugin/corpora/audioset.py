"""AudioSet (Gemmeke et al. 2017): tables of YouTube clips with several labels each; the audio is the user's own.

The lines of a table are ``YTID, start_seconds, end_seconds, "mid,mid,..."`` after comments that begin with ``#``.
``class_labels_indices.csv`` gives index, mid and display name of the 527 classes. Display names hold commas ("Male
speech, man speaking"), so the classes are the mids; the table of names is copied to the manifests.

A clip is a file anywhere below the audio folder, in any audio format. Downloaders name it ``<YTID>`` or ``Y<YTID>``,
optionally followed by the times, ``_<start>``, ``_<start>_<end>`` or ``_<start>-<end>``, or put the id last, after the
title, as yt-dlp does: ``<title> [<YTID>]``. A file without times that is much longer than its clip is the whole video,
of which the clip is a piece.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from amae_plugin.corpora.audio_files import (
    AUDIO_EXTENSIONS,
    VIDEO_EXTENSIONS,
    add_allow_missing,
    compare_sizes,
    find_audio,
    report_missing,
)
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.corpora.videos import piece_of_video
from amae_plugin.data.lines import bad_lines
from amae_plugin.errors import UserError
from amae_plugin.files import reading

if TYPE_CHECKING:
    from amae_plugin.data.audio import AudioHeader

_PUBLISHED = {"balanced_train_segments": 22_160, "unbalanced_train_segments": 2_041_789, "eval_segments": 20_371}
_PUBLISHED_CLASSES = 527
# A word in a table's file name, and the split that it stands for.
_SPLIT_WORDS = {"train": "train", "valid": "valid", "dev": "valid", "eval": "test", "test": "test"}
_TIME = re.compile(r"[_-]\d+(\.\d+)?s?$")
_TIMES = 2  # at the end of a name
_LAST_ID = re.compile(r".*[\s_\[-]([\w-]{11})\]?", re.DOTALL)
_NAMES = "<YTID>, Y<YTID>, <YTID>_<start>, <YTID>_<start>_<end>, <YTID>_<start>-<end>, <title>-<YTID>, <title> [<YTID>]"
_ROW = 'YTID, start_seconds, end_seconds, "mid,mid,..."'
_LABELS_NAME = "class_labels_indices.csv"
_SPARE = 5  # seconds by which a file that is the clip may be longer than its times say


def build(
    tables: Sequence[str],
    audio: Path | None,
    labels: Path,
    out: Path,
    *,
    videos: Path | None = None,
    allow_missing: bool = False,
    workers: int = 0,
) -> Corpus:
    """Write a manifest with labels for each split.

    Tables of one split are joined: the balanced and the unbalanced training table make AS-2M, the balanced one alone
    makes AS-20K. Without a table for ``valid``, that split is the test split once more, on which the published systems
    validate.

    Args:
        tables: paths of ``*_train_segments.csv``, ``eval_segments.csv``..., or ``split=path`` where the file name does
            not tell the split.
        audio: folder of the clips; None where they are videos.
        videos: folder of the clips as videos, whose pictures are listed as well.
        labels: ``class_labels_indices.csv``.
        out: folder of the manifests.
        allow_missing: whether listed clips that do not exist are left out.
        workers: number of threads that read headers.

    Raises:
        UserError: a table cannot be read or has a malformed line or an unknown label, or clips are missing.
    """
    classes = _read_classes(labels)
    paths = [_parse_table(table) for table in tables]
    listed = [(split, path, row) for split, path in paths for row in _read_table(path, set(classes), labels)]
    root, files = find_clips(audio, videos, {row.ytid for _, _, row in listed})
    missing = [f"{row.ytid} ({path.name})" for _, path, row in listed if row.ytid not in files]
    what = f"listed in the tables are not in {root}, where they may be named {_NAMES}"
    warnings = report_missing(missing, len(listed), what, allow_missing)
    scan = read_headers(root, list(dict.fromkeys(files.values())), workers, pictures=videos is not None)
    splits: dict[str, list[LabelledClip]] = {split: [] for split, _ in paths}
    by_table: dict[str, list[str]] = {path.stem: [] for _, path in paths}
    for split, path, row in listed:
        if name := files.get(row.ytid):
            clip = LabelledClip(name, row.mids, picture=name if videos else "")
            splits[split].append(cut_whole_video(clip, row.ytid, row.start, row.end, scan.headers))
            by_table[path.stem].append(row.ytid)
    warnings += compare_sizes(by_table, {name: size for name, size in _PUBLISHED.items() if name in by_table})
    warnings += compare_sizes({"classes": classes}, {"classes": _PUBLISHED_CLASSES}, "mids")
    if "test" in splits:
        splits.setdefault("valid", splits["test"])
    extras = {_LABELS_NAME: labels.read_bytes()}
    return write_corpus(root, {out: splits}, classes, warnings=warnings, extras=extras, scan=scan)


class _Row(NamedTuple):
    ytid: str
    start: float
    end: float
    mids: tuple[str, ...]


def _parse_table(argument: str) -> tuple[str, Path]:
    """Return the split and the path of a table."""
    split, equals, path = argument.partition("=")
    if equals and split.isidentifier():
        return split, Path(path)
    for word, split in _SPLIT_WORDS.items():
        if word in Path(argument).stem.lower():
            return split, Path(argument)
    raise UserError(f"--csv {argument}: the name does not tell the split; write train={argument} or test={argument}")


def _read_classes(path: Path) -> list[str]:
    """Read the mids in index order."""
    classes: list[str] = []
    with reading(path, "the table"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = list(reader.fieldnames or ())
        if header[:2] != ["index", "mid"]:
            raise UserError(f"{path}, line 1: expected 'index,mid,display_name', found '{','.join(header)}'")
        for row in reader:
            if row["index"] != str(len(classes)) or not row["mid"]:
                raise UserError(f"{path}, line {reader.line_num}: expected the class of index {len(classes)}")
            classes.append(row["mid"])
    return classes


def _read_table(path: Path, known: Collection[str], labels: Path) -> list[_Row]:
    rows: list[_Row] = []
    problems: dict[int, str] = {}
    with reading(path, "the table"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            if not row or row[0].startswith("#") or row[0] == "YTID":
                continue
            # Mids that lost their quotes are fields of their own.
            mids = tuple(mid.strip() for mid in ",".join(row[3:]).split(","))
            if len(row) < 4 or not row[0] or not all(mids) or not _are_times(*row[1:3]):
                problems[reader.line_num] = f"expected '{_ROW}', found '{', '.join(row)}'"
            elif unknown := [mid for mid in mids if mid not in known]:
                problems[reader.line_num] = f"'{unknown[0]}' is not a class of {labels}"
            else:
                rows.append(_Row(row[0], float(row[1]), float(row[2]), mids))
    if problems:
        raise bad_lines(path, problems, "correct it, or take the table that belongs to these classes")
    return rows


def _are_times(start: str, end: str) -> bool:
    try:
        return 0 <= float(start) < float(end)
    except ValueError:
        return False


def find_clips(audio: Path | None, videos: Path | None, ytids: set[str]) -> tuple[Path, dict[str, str]]:
    """Find the file of each clip in the folder of sounds or of videos; of several, the first by name.

    Returns:
        The folder, and for each id that was found the path relative to it.

    Raises:
        UserError: the folder does not exist, or none was given.
    """
    root, extensions = (videos, VIDEO_EXTENSIONS) if audio is None else (audio, AUDIO_EXTENSIONS)
    if root is None:
        raise UserError("the folder of the clips is missing: give --audio or --videos")
    found = find_audio(root, extensions)
    files: dict[str, str] = {}
    # A link may bear the name of a clip, whatever the file that it leads to is called.
    for name in sorted(found.names + found.duplicates):
        if ytid := _match_ytid(PurePosixPath(name).stem, ytids):
            files.setdefault(ytid, name)
    return root, files


def cut_whole_video(
    clip: LabelledClip, ytid: str, start: float, end: float, headers: Mapping[str, AudioHeader]
) -> LabelledClip:
    """Return the clip between two times, in seconds, if its file is the whole video; else the clip as it is.

    Args:
        clip: a whole file.
        ytid: id of the video, with which the name of a file without times ends.
        start: first second of the clip.
        end: its end.
        headers: headers of the readable files.
    """
    header = headers.get(clip.path)
    if header is None or not PurePosixPath(clip.path).stem.removesuffix("]").endswith(ytid):
        return clip
    seconds = header.frames / header.sample_rate
    if seconds <= max(end - start + _SPARE, start):
        return clip
    piece = piece_of_video(clip.path, clip.labels, header, start, min(end, seconds))
    return piece if clip.picture else piece._replace(picture="")


def _match_ytid(stem: str, ytids: set[str]) -> str | None:
    """Find the id that a file name stands for; an id may itself begin with Y or end like a number."""
    stems = [stem]
    for _ in range(_TIMES):
        stems.append(_TIME.sub("", stems[-1]))
    candidates = [name for part in stems for name in (part, part.removeprefix("Y"))]
    candidates += [match[1] for part in stems if (match := _LAST_ID.fullmatch(part))]
    return next((name for name in candidates if name in ytids), None)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add ``--audio`` and ``--videos``, one of which is needed."""
    folders = parser.add_mutually_exclusive_group(required=True)
    folders.add_argument("--audio", type=Path, metavar="DIR", help="search this tree for the clips")
    folders.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="search this tree for the clips as videos, and list their pictures as well",
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    tables = (
        "read these tables; train, eval or valid in a file name tells the split, and tables of one split are joined"
    )
    parser.add_argument("--csv", dest="tables", nargs="+", required=True, metavar="[SPLIT=]FILE", help=tables)
    add_folders(parser)
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="FILE", help=f"read the classes from this file, {_LABELS_NAME}"
    )
    add_allow_missing(parser)


LAYOUT = Layout("audioset", "list AudioSet, from its tables and a folder of clips", _add_arguments, build)
