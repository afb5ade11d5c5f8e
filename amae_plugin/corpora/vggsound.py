"""VGGSound (Chen et al. 2020): a table of YouTube clips of ten seconds with one label each; they are the user's own.

The lines of ``vggsound.csv`` are ``id,start_seconds,label,split``, with the splits ``train`` and ``test``. Some labels
hold commas ("subway, metro, underground"), which no class may: a slash takes the place of each.

A clip is a file anywhere below the folder. Downloaders name it ``<id>_<start as six digits>``, ``<id>``, or as those of
AudioSet do. Whole videos are cut as those of AudioSet are.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from amae_plugin.corpora.audio_files import add_allow_missing, compare_sizes, report_missing
from amae_plugin.corpora.audioset import add_folders, cut_whole_video, find_clips
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.data.lines import bad_lines
from amae_plugin.files import reading

_PUBLISHED = {"train": 183_730, "test": 15_446}
_PUBLISHED_CLASSES = 309
_ROW = "id,start_seconds,label,train|test"
_SECONDS = 10


def build(
    table: Path,
    audio: Path | None,
    out: Path,
    *,
    videos: Path | None = None,
    allow_missing: bool = False,
    workers: int = 0,
) -> Corpus:
    """Write ``train`` and ``test``, and as ``valid`` the test split once more, on which the published systems validate.

    Args:
        table: ``vggsound.csv``.
        audio: folder of the clips; None where they are videos.
        out: folder of the manifests.
        videos: folder of the clips as videos, whose pictures are listed as well.
        allow_missing: whether listed clips that do not exist are left out.
        workers: number of threads that read the files.

    Raises:
        UserError: the table cannot be read or has a malformed line, or clips are missing.
    """
    listed = _read_table(table)
    root, files = find_clips(audio, videos, {row.id for row in listed})
    missing = [row.id for row in listed if row.id not in files]
    named = "<id>_<start as six digits>, <id>, or as those of AudioSet"
    what = f"listed in {table.name} are not in {root}, where they may be named {named}"
    warnings = report_missing(missing, len(listed), what, allow_missing)
    found = [row for row in listed if row.id in files]
    scan = read_headers(root, list(dict.fromkeys(files.values())), workers, pictures=videos is not None)
    splits: dict[str, list[LabelledClip]] = {"train": [], "test": []}
    for row in found:
        name = files[row.id]
        clip = LabelledClip(name, (row.label,), picture=name if videos else "")
        splits[row.split].append(cut_whole_video(clip, row.id, row.start, row.start + _SECONDS, scan.headers))
    classes = sorted({row.label for row in listed})
    warnings += compare_sizes(splits, _PUBLISHED)
    warnings += compare_sizes({"classes": classes}, {"classes": _PUBLISHED_CLASSES}, "labels")
    runs = {out: {**splits, "valid": splits["test"]}}
    return write_corpus(root, runs, classes, warnings=warnings, scan=scan)


class _Row(NamedTuple):
    id: str
    start: int
    label: str
    split: str


def _read_table(path: Path) -> list[_Row]:
    rows: list[_Row] = []
    problems: dict[int, str] = {}
    with reading(path, "the table"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for fields in reader:
            match fields:
                case []:
                    pass
                case [str() as name, start, label, "train" | "test" as split] if name and label and start.isdecimal():
                    rows.append(_Row(name, int(start), " / ".join(map(str.strip, label.split(","))), split))
                case _:
                    problems[reader.line_num] = f"expected '{_ROW}', found '{','.join(fields)}'"
    if problems:
        raise bad_lines(path, problems, "correct it")
    return rows


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv", dest="table", type=Path, required=True, metavar="FILE", help="read this table, vggsound.csv"
    )
    add_folders(parser)
    add_allow_missing(parser)


LAYOUT = Layout("vggsound", "list VGGSound, from its table and a folder of clips", _add_arguments, build)
