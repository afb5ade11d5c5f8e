"""What the publishers' layouts share: find the files they list, write manifests with labels, compare the counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from amae_plugin.corpora.folder import AUDIO_EXTENSIONS
from amae_plugin.corpora.headers import Scan, Summary, read_headers, write_splits
from amae_plugin.data.audio import AudioHeader
from amae_plugin.data.labels import LABELS_NAME, write_labels, write_names
from amae_plugin.errors import UserError

_SHOWN = 10  # missing files named in a message


class LabelledClip(NamedTuple):
    """One line of a manifest to be written."""

    path: str
    """Relative to the root, or absolute."""
    labels: tuple[str, ...] = ()
    """None for a split that gets no ``.lbl``."""
    segment: Optional[tuple[int, int]] = None
    """First frame and number of frames, if the clip is not the whole file."""

    @property
    def name(self) -> str:
        """The path as a manifest has it."""
        return self.path if self.segment is None else f"{self.path}:{self.segment[0]}:{self.segment[1]}"


@dataclass(frozen=True)
class Corpus:
    """What was written.

    Attributes:
        summary: clips, hours and sample rates.
        classes: number of classes; 0 if the corpus has no labels.
        warnings: what is not as the publisher has it, a sentence each.
    """

    summary: Summary
    classes: int
    warnings: tuple[str, ...]


def find_root(root: Path, marker: str, corpus: str) -> Path:
    """The folder that holds *marker* (a pattern): *root*, or the one folder in it that does.

    Raises:
        UserError: there is none, or several.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if any(root.glob(marker)):
        return root
    inner = sorted({folder for folder in root.iterdir() if folder.is_dir() and any(folder.glob(marker))})
    if len(inner) == 1:
        return inner[0]
    if inner:
        raise UserError(f"{root} holds {corpus} more than once; choose one of {', '.join(map(str, inner))}")
    raise UserError(f"{root}: not the layout of {corpus}, which has {marker} there")


def list_audio(folder: Path) -> list[str]:
    """Names of the audio files directly in a folder, sorted; hidden ones are left out."""
    suffixes = tuple(f".{extension}" for extension in AUDIO_EXTENSIONS)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))


def find_listed(
    root: Path, names: Sequence[str], listed_in: str, allow_missing: bool
) -> tuple[dict[str, str], list[str]]:
    """Find listed files, also those that were converted to another format and so have another extension.

    Args:
        root: folder that the names are relative to.
        names: as the publisher lists them.
        listed_in: where, for the message.
        allow_missing: go on without those that are not there.

    Returns:
        The name under which each listed file is there, and warnings.

    Raises:
        UserError: files are missing and that is not allowed.
    """
    with ThreadPoolExecutor() as pool:
        found = dict(zip(names, pool.map(lambda name: _find(root, name), names)))
    missing = [name for name, there in found.items() if there is None]
    warnings = report_missing(missing, len(found), f"listed in {listed_in} are not in {root}", allow_missing)
    return {name: there for name, there in found.items() if there is not None}, warnings


def report_missing(missing: Sequence[str], listed: int, what: str, allow_missing: bool) -> list[str]:
    """A warning with the number of missing files, or none if there are none.

    Raises:
        UserError: files are missing and that is not allowed; names the first ten, and the total.
    """
    if not missing:
        return []
    message = f"{len(missing):,} of {listed:,} files {what}"
    if allow_missing:
        return [f"{message}; left out"]
    shown = "".join(f"\n  {name}" for name in missing[:_SHOWN])
    more = f"\n  ... and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    raise UserError(f"{message}:{shown}{more}\nGo on without them with --allow-missing")


def compare_counts(found: Mapping[str, int], published: Mapping[str, int], what: str = "clips") -> list[str]:
    """A warning for each part of the corpus of which there are more or fewer than its publisher states."""
    return [
        f"{part}: {found.get(part, 0):,} {what}, as published there are {count:,}"
        for part, count in published.items()
        if found.get(part, 0) != count
    ]


def write_corpus(
    out: Path,
    root: Path,
    splits: Mapping[str, Sequence[LabelledClip]],
    classes: Sequence[str] = (),
    warnings: Iterable[str] = (),
    workers: int | None = None,
    scan: Scan | None = None,
) -> Corpus:
    """Write ``<split>.tsv``, ``<split>.lbl`` where the clips have labels, and ``labels.txt`` into *out*.

    A clip whose file cannot be read is left out of both and listed in ``unreadable.tsv``.

    Args:
        out: made if it does not exist.
        root: folder that the paths are relative to; absolute in the manifests.
        splits: the clips of each.
        classes: in index order; none for a corpus without labels.
        warnings: to be handed on, before those found here.
        workers: threads that read headers; None means one a core.
        scan: the headers of all files, where they have been read; None reads them here.

    Raises:
        UserError: *out* cannot be written, no file can be read, or a class name cannot be expressed.
    """
    clips = [clip for part in splits.values() for clip in part]
    if scan is None:
        scan = read_headers(root, list(dict.fromkeys(clip.path for clip in clips)), workers)
    headers = dict(scan.headers)
    for clip in clips:
        if clip.segment is not None and clip.path in scan.headers:
            whole = scan.headers[clip.path]
            headers[clip.name] = AudioHeader(clip.segment[1], whole.sample_rate, whole.channels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The manifests are written last and old ones removed first: whatever interrupts this, no manifest is ever
        # beside labels of other clips.
        for split in splits:
            (out / f"{split}.tsv").unlink(missing_ok=True)
            (out / f"{split}.lbl").unlink(missing_ok=True)
        if classes:
            write_names(out / LABELS_NAME, classes)
        for split, part in splits.items():
            if any(clip.labels for clip in part):
                write_labels(out / f"{split}.lbl", (clip.labels for clip in part if clip.name in headers))
    except OSError as error:
        raise UserError(f"{out}: cannot write the manifests there ({error.strerror})") from None
    names = {split: [clip.name for clip in part] for split, part in splits.items()}
    summary = write_splits(out, root, names, Scan(headers, scan.unreadable))
    return Corpus(summary, len(classes), (*warnings, *_classes_without_clips(splits, classes)))


def _classes_without_clips(splits: Mapping[str, Sequence[LabelledClip]], classes: Sequence[str]) -> list[str]:
    if "train" not in splits:
        return []
    present = {label for clip in splits["train"] for label in clip.labels}
    absent = [name for name in classes if name not in present]
    shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
    return [f"train: no clip of {len(absent)} of the {len(classes)} classes: {shown}"] if absent else []


def _find(root: Path, name: str) -> str | None:
    if (root / name).is_file():
        return name
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - Path has no way to do this to a string
    for extension in AUDIO_EXTENSIONS:
        if (root / f"{stem}.{extension}").is_file():
            return f"{stem}.{extension}"
    return None
