"""A corpus: its layout, its labelled clips, and the manifests that are written of them."""

from __future__ import annotations

import argparse
import filecmp
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, Optional, TypeVar

from amae_plugin.corpora.audio_files import absolute_path
from amae_plugin.corpora.transcripts import KINDS, VOCAB_SIZE, UnitFiles
from amae_plugin.data.lines import write_lines
from amae_plugin.errors import UserError, first_of, printable
from amae_plugin.files import replacing, writing
from amae_plugin.processes import available_cpus
from amae_plugin.progress import map_in_threads

if TYPE_CHECKING:
    from amae_plugin.data.audio import AudioHeader
    from amae_plugin.data.manifest import Row

REPORT_NAME = "unreadable.tsv"

_STAGED = ".manifests."  # how the folder of files begins that are not complete; hidden, as partial files are
_USUAL_SPLITS = ("train", "valid", "test", "trials")
_SUFFIXES = ("tsv", "lbl", *KINDS)  # of the files of a split that are line for line those of its clips
_RARE = 5  # times that a character occurs in the training texts; no model learns what it hears less often


Value = TypeVar("Value")


class LabelledClip(NamedTuple):
    """One line of a manifest to be written."""

    path: str
    """Path of the file, relative to the root or absolute."""
    labels: tuple[str, ...] = ()
    """Classes; empty in a split without ``.lbl``."""
    segment: Optional[tuple[int, int]] = None
    """First frame and number of frames, if the clip is not the whole file."""
    text: str = ""
    """What is said, in a corpus with transcripts."""
    picture: str = ""
    """Path of the picture or video, or ``path:start:length`` in milliseconds; in all clips of a corpus, or none."""

    @property
    def name(self) -> str:
        """The path in the form that a manifest takes."""
        return self.path if self.segment is None else f"{self.path}:{self.segment[0]}:{self.segment[1]}"


Splits = Mapping[str, Sequence[LabelledClip]]
"""The clips of each split."""


@dataclass(frozen=True)
class Scan:
    """The headers of a list of files.

    Attributes:
        headers: headers of the readable files, in the order of the list.
        unreadable: reason for each of the others.
    """

    headers: dict[str, AudioHeader]
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """The manifests of one folder in numbers.

    Attributes:
        clips: number of clips in each split.
        hours: total duration of all splits.
        sample_rates: number of clips at each sample rate in Hz.
        unreadable: number of files left out.
        report: list of those with the reasons; None if there are none.
        rates: number of units a second in the transcripts of each kind.
    """

    clips: dict[str, int]
    hours: float
    sample_rates: dict[int, int]
    unreadable: int
    report: Path | None
    rates: Mapping[str, float]

    @property
    def size(self) -> str:
        """Clips of each split, and hours."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.clips.items())
        return f"{sum(self.clips.values()):,} ({splits}), {self.hours:.2f} hours"

    @property
    def details(self) -> str:
        """Sample rates and unreadable files, a line each."""
        rates = ", ".join(f"{rate} Hz ({count:,})" for rate, count in sorted(self.sample_rates.items()))
        listed = f", listed with reasons in {self.report}" if self.report else ""
        return f"sample rates: {rates}\nunreadable: {self.unreadable:,}{listed}"

    def __str__(self) -> str:
        return f"files: {self.size}\n{self.details}"


@dataclass(frozen=True)
class Corpus:
    """The manifests that were written.

    Attributes:
        runs: summary of each folder of manifests: one, or one a run of a cross-validation.
        classes: number of classes; 0 without labels.
        units: number of units of each kind, for transcripts.
        warnings: what differs from the corpus as published, a sentence each.
    """

    runs: dict[Path, Summary]
    classes: int
    units: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> Summary:
        """Summary of the only run, or of the first."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Layout:
    """The files of a corpus as its publisher ships them, and how they become manifests.

    Attributes:
        name: word after ``amae manifest``.
        help: line in the help text.
        add_arguments: adds the corpus's own arguments; every layout has ``--out`` and ``--workers``.
        build: writes the manifests. Takes the arguments by name, with ``out`` and ``workers``.
        sweep: recipe that trains on all runs in turn when ``task.data`` is their common folder; None if none does.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    build: Callable[..., Corpus]
    sweep: str | None = None


def read_headers(root: Path, names: Sequence[str], workers: int = 0, *, pictures: bool = False) -> Scan:
    """Read the headers of files below *root* in parallel, with a progress bar.

    Threads, because libsndfile runs without Python's lock and processes were slower (7,858 ogg files on 2 cores).

    Args:
        root: folder that the names are relative to.
        names: paths, none twice.
        workers: number of threads; 0 means one a core. More help where the files lie on a network.
        pictures: whether a file without a picture counts as unreadable.
    """
    from amae_plugin.data.audio import AudioHeader

    found = _map_files(lambda name: _header_or_reason(root, name, pictures), names, "reading headers", workers)
    return Scan(
        headers={name: header for name, header in found.items() if isinstance(header, AudioHeader)},
        unreadable={name: reason for name, reason in found.items() if isinstance(reason, str)},
    )


def check_pictures(root: Path, names: Sequence[str], workers: int = 0) -> dict[str, str]:
    """Decode pictures below *root* in parallel, with a progress bar; return the reason for each that cannot be."""
    found = _map_files(lambda name: _picture_problem(root, name), names, "reading pictures", workers)
    return {name: reason for name, reason in found.items() if reason}


def _map_files(function: Callable[[str], Value], names: Sequence[str], what: str, workers: int) -> dict[str, Value]:
    """Apply a function to files in threads, with a progress bar."""
    return dict(map_in_threads(function, names, workers or available_cpus(), desc=what, unit="file"))


def write_corpus(
    root: Path,
    runs: Mapping[Path, Splits],
    classes: Sequence[str] = (),
    *,
    units: Sequence[UnitFiles] = (),
    warnings: Iterable[str] = (),
    extras: Mapping[str, bytes] | None = None,
    workers: int = 0,
    scan: Scan | None = None,
) -> Corpus:
    """Write ``<split>.tsv``, ``<split>.lbl`` where the clips have labels, and ``labels.txt`` into the folder of a run.

    With *units*, write the transcripts ``<split>.<units>`` and ``dict.<units>.txt`` as well.

    A clip whose file cannot be read is left out of all and listed in ``unreadable.tsv``. The files of all runs take
    the places of older ones after the last of them is written whole.

    Args:
        root: folder that the paths are relative to; absolute in the manifests.
        runs: the splits that go into each folder. Folders are made if they do not exist.
        classes: class names in index order; empty for a corpus without labels.
        units: kinds of units in which the texts of the clips are written.
        warnings: warnings of the layout, to which those found here are added.
        extras: content of further files, by name.
        workers: number of threads that read headers; 0 means one a core.
        scan: headers of all files, where the layout has read them; None reads them here.

    Raises:
        UserError: a folder cannot be written, no file can be read, or a class name cannot be expressed.
    """
    from amae_plugin.data.labels import check_class

    for name in classes:
        check_class(name, root)
    if scan is None:
        clips = [clip for splits in runs.values() for part in splits.values() for clip in part]
        names = list(dict.fromkeys(clip.path for clip in clips))
        scan = read_headers(root, names, workers, pictures=any(clip.picture for clip in clips))
    if not scan.headers:
        report = next(iter(runs)) / REPORT_NAME
        with writing(report, "the list of unreadable files"):
            report.parent.mkdir(parents=True, exist_ok=True)
            with replacing(report) as partial:
                _write_report(partial, scan)
        raise UserError(f"{root}: none of the {len(scan.unreadable)} audio files can be read; see {report}")
    warnings = [*warnings, *_damages(scan)]
    summaries = {}
    found: dict[str, list[str]] = {}
    with ExitStack() as replaced:
        for out, splits in runs.items():
            readable = {name: [clip for clip in part if clip.path in scan.headers] for name, part in splits.items()}
            with writing(out, "the manifests there"):
                staged = replaced.enter_context(_replacing_manifests(out, splits))
                _write_run(staged, root, readable, classes, units, extras or {}, scan)
                left = list(_left_over(out, staged, splits))
            summaries[out] = _summarize(out, readable, units, scan)
            for warning in (*_lacking(readable, classes), *left):
                found.setdefault(warning, []).append(out.name)
    added = [text if len(outs) == len(runs) else f"{', '.join(outs)}: {text}" for text, outs in found.items()]
    return Corpus(summaries, len(classes), {kind.labels: len(kind.symbols) for kind in units}, (*warnings, *added))


@contextmanager
def _replacing_manifests(out: Path, splits: Iterable[str]) -> Iterator[Path]:
    """Give a folder for the new files of *out*, which take the places of the old ones when the block ends.

    If the block raises, the old ones stay. They go before the new ones come, and manifests come last: a process that is
    killed in between leaves no manifest with the labels of other clips.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{_STAGED}*"):  # by a process that was killed
        shutil.rmtree(left)
    with TemporaryDirectory(prefix=_STAGED, dir=out) as folder:
        yield Path(folder)
        with writing(out, "the manifests there"):
            for name in (*(f"{split}.{suffix}" for split in splits for suffix in _SUFFIXES), REPORT_NAME):
                (out / name).unlink(missing_ok=True)
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix == ".tsv"):
                path.replace(out / path.name)


def _write_run(
    out: Path,
    root: Path,
    splits: Splits,
    classes: Sequence[str],
    units: Sequence[UnitFiles],
    extras: Mapping[str, bytes],
    scan: Scan,
) -> None:
    """Write the files of a run, whose clips can be read, to an empty folder."""
    from amae_plugin.data.labels import LABELS_NAME, write_labels, write_names
    from amae_plugin.data.manifest import write_manifest

    if scan.unreadable:
        _write_report(out / REPORT_NAME, scan)
    if classes:
        write_names(out / LABELS_NAME, classes)
    for name, content in itertools.chain(extras.items(), *(kind.files.items() for kind in units)):
        (out / name).write_bytes(content)
    for split, part in splits.items():
        if any(clip.labels for clip in part):
            write_labels(out / f"{split}.lbl", (clip.labels for clip in part))
        for kind in units:
            write_lines(out / f"{split}.{kind.labels}", (kind.line(clip.text) for clip in part))
        write_manifest(out / f"{split}.tsv", absolute_path(root), (_row(clip, scan) for clip in part))


def _write_report(path: Path, scan: Scan) -> None:
    lines = (f"{printable(name)}\t{printable(reason)}\n" for name, reason in scan.unreadable.items())
    path.write_text("".join(lines), encoding="utf-8")


def _row(clip: LabelledClip, scan: Scan) -> Row:
    row = (clip.name, _frames(clip, scan))
    return (*row, clip.picture) if clip.picture else row


def _frames(clip: LabelledClip, scan: Scan) -> int:
    return clip.segment[1] if clip.segment else scan.headers[clip.path].frames


def _summarize(out: Path, splits: Splits, units: Sequence[UnitFiles], scan: Scan) -> Summary:
    clips = [clip for part in splits.values() for clip in part]
    rates = [scan.headers[clip.path].sample_rate for clip in clips]
    seconds = sum(_frames(clip, scan) / rate for clip, rate in zip(clips, rates))
    counts = {split: len(part) for split, part in splits.items()}
    report = out / REPORT_NAME if scan.unreadable else None
    spoken = {kind.labels: sum(len(kind.split(clip.text)) for clip in clips) / seconds for kind in units}
    return Summary(counts, seconds / 3600, Counter(rates), len(scan.unreadable), report, spoken)


def _lacking(splits: Splits, classes: Sequence[str]) -> Iterator[str]:
    """Yield warnings of splits without clips, and of classes that training lacks."""
    yield from (f"{split}: this split is empty, as no clip for it can be read" for split in splits if not splits[split])
    if splits.get("train"):
        present = {label for clip in splits["train"] for label in clip.labels}
        if absent := [name for name in classes if name not in present]:
            yield f"train: no clip of {len(absent)} of the {len(classes)} classes: {first_of(absent)}"


def _left_over(out: Path, staged: Path, splits: Iterable[str]) -> Iterator[str]:
    """Yield a warning if *out* holds files of other manifests that those in *staged* will not replace."""

    def stays(name: str) -> bool:
        return all((folder / name).is_file() for folder in (out, staged)) and filecmp.cmp(
            out / name, staged / name, False
        )

    left = []
    for split in _USUAL_SPLITS:
        listed = [f"{split}.{suffix}" for suffix in _SUFFIXES]
        # Weights still fit a split whose clips and labels are those of before.
        others = [] if all(map(stays, listed[:2])) else [f"{split}.weights.npy"]
        left += [name for name in (others if split in splits else [*listed, *others]) if (out / name).exists()]
    if left:
        yield f"{', '.join(left)}: left there from other manifests; delete what does not belong to these"


def _damages(scan: Scan) -> list[str]:
    """Return a warning that counts the files that are used although a part of them is missing or damaged."""
    damages = [f"{name} ({header.damage})" for name, header in scan.headers.items() if header.damage]
    if not damages:
        return []
    return [f"incomplete or damaged files, used as far as they go: {len(damages):,}: {first_of(damages)}"]


def prepare_units(
    splits: Splits, labels: Sequence[str], vocab_size: int | None, dictionary: Path | None
) -> tuple[list[UnitFiles], list[str]]:
    """Learn the units of the texts of clips, or take those of other manifests, and return warnings too.

    Args:
        splits: clips that can be read; if there are none, no units are learned.
        labels: kinds of units.
        vocab_size: number of pieces to learn; the default of :meth:`UnitFiles.learn` if None.
        dictionary: folder of other manifests.

    Raises:
        UserError: a number of pieces is given, but none are learned; see also :meth:`UnitFiles.learn` and
            :meth:`UnitFiles.read`.
    """
    if vocab_size is not None and ("spm" not in labels or dictionary is not None):
        raise UserError(f"--vocab-size {vocab_size}: is for pieces that are learned, with --labels spm")
    texts = {split: [clip.text for clip in part] for split, part in splits.items()}
    if not any(texts.values()):
        return [], []
    if dictionary is not None:
        units = [UnitFiles.read(kind, dictionary) for kind in dict.fromkeys(labels)]
        return units, [warning for kind in units for warning in kind.unknown(texts)]
    train = texts.pop("train", [])
    others = list(itertools.chain(*texts.values()))
    size = VOCAB_SIZE if vocab_size is None else vocab_size
    units = [UnitFiles.learn(kind, train, others, size) for kind in dict.fromkeys(labels)]
    rare = [f"'{letter}'" for letter, count in Counter(itertools.chain(*train)).items() if count < _RARE]
    if not rare:
        return units, []
    few = f"train: {len(rare)} characters occur fewer than {_RARE} times"
    return units, [f"{few}: {first_of(rare)}; see that they are meant"]


def _header_or_reason(root: Path, name: str, picture: bool) -> AudioHeader | str:
    from amae_plugin.data.audio import AudioError, read_header
    from amae_plugin.data.manifest import ARCHIVES, Clip, expressible

    if not expressible(name):
        return "the name holds a tab or a line break, which a manifest cannot express"
    try:
        clip = Clip.of(str(root), name)
        header = read_header(clip if clip.kind in ARCHIVES else root / name)
    except AudioError as error:
        return error.reason or str(error)
    if not header.frames:
        return "holds no samples"
    return (_picture_problem(root, name) if picture else "") or header


def _picture_problem(root: Path, name: str) -> str:
    """Return why a picture, or the first frame of a video, cannot be used; empty if it can."""
    from amae_plugin.data.audio import AudioError
    from amae_plugin.data.manifest import Picture, expressible
    from amae_plugin.data.pictures import load_picture

    if not expressible(name):
        return "the name holds a tab or a line break, which a manifest cannot express"
    try:
        load_picture(Picture(os.fspath(root / name)), 0.0)
    except AudioError as error:
        return error.reason or str(error)
    return ""
