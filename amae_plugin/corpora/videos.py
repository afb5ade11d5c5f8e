"""Any tree of videos, of which sound and picture are one clip, split at random."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.corpora.audio_files import VIDEO_EXTENSIONS, find_audio
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.corpora.folder import add_splits, group_by_class, left_out, read_classes, without_clips
from amae_plugin.corpora.splits import split_classes
from amae_plugin.errors import UserError

if TYPE_CHECKING:
    from amae_plugin.data.audio import AudioHeader

_SECONDS = 10.0  # of the clips of AudioSet and VGGSound


def build(
    folder: Path,
    out: Path,
    *,
    labels: bool = False,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    seconds: float = _SECONDS,
    extensions: Collection[str] = VIDEO_EXTENSIONS,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """List the pieces of all videos; those of one video are in one split. Nothing is copied.

    A video without sound, without a picture, or of which either cannot be decoded, is left out.

    Args:
        folder: root of the tree.
        out: folder of the manifests.
        labels: whether the topmost folders are classes, see :func:`amae_plugin.corpora.folder.build`.
        valid_fraction: share of the videos held out for validation.
        test_fraction: share held out for testing.
        seconds: length of the pieces; the last one of a video has half as much to half as much again. 0 lists whole
            videos.
        extensions: extensions of the videos.
        seed: seed of the choice of videos held out.
        workers: number of threads that read the videos.

    Raises:
        UserError: the folder does not exist or holds no readable video, or a number is out of range; with *labels*, see
            :func:`amae_plugin.corpora.folder.build`.
    """
    if seconds < 0:
        raise UserError(f"--seconds {seconds:g}: must be 0, for whole videos, or more")
    found = find_audio(folder, extensions)
    if not found.names:
        looked = f"looked for the extensions {' '.join(extensions)} (choose others with --ext)"
        raise UserError(f"{folder}: no videos; {looked}")
    classes = read_classes(folder, found.names) if labels else []
    scan = read_headers(folder, found.names, workers, pictures=True)
    scan.unreadable.update(found.problems)
    groups = group_by_class(scan.headers, classes)
    splits, few = split_classes(groups, {"valid": valid_fraction, "test": test_fraction}, seed)
    clips = {
        split: [clip for name, label in part.items() for clip in _pieces(name, label, scan.headers[name], seconds)]
        for split, part in splits.items()
    }
    readable = [name for name in classes if (name,) in groups]
    warnings = [*left_out(found), *without_clips(classes, groups), *few]
    return write_corpus(folder, {out: clips}, readable, warnings=warnings, scan=scan)


def _pieces(name: str, label: tuple[str, ...], header: AudioHeader, seconds: float) -> Iterator[LabelledClip]:
    """Yield the pieces of a video, or the whole of it."""
    total = header.frames / header.sample_rate
    count = round(total / seconds) if seconds else 1
    if count < 2:
        yield LabelledClip(name, label, picture=name)
        return
    bounds = [*(number * seconds for number in range(count)), total]
    for start, end in itertools.pairwise(bounds):
        yield piece_of_video(name, label, header, start, end)


def piece_of_video(name: str, label: tuple[str, ...], header: AudioHeader, start: float, end: float) -> LabelledClip:
    """Return the clip of a video from one time to another, in seconds."""
    first, last = round(start * header.sample_rate), min(round(end * header.sample_rate), header.frames)
    piece = f"{name}:{round(start * 1000)}:{round((end - start) * 1000)}"
    return LabelledClip(name, label, (first, last - first), picture=piece)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add, extensions = parser.add_argument, f"take files with these extensions (default: {' '.join(VIDEO_EXTENSIONS)})"
    add("folder", type=Path, metavar="DIR", help="list this tree; symbolic links are followed")
    add_splits(parser)
    seconds = "cut videos into pieces of this length; 0: take whole ones (default: %(default)s)"
    add("--seconds", type=float, default=_SECONDS, metavar="S", help=seconds)
    add("--ext", dest="extensions", nargs="+", default=VIDEO_EXTENSIONS, metavar="EXTENSION", help=extensions)


LAYOUT = Layout("videos", "list any tree of videos, sound and picture, split at random", _add_arguments, build)
