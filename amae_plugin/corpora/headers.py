"""From lists of audio files to manifests: read the headers in parallel, write the splits, report what is unreadable."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from amae_plugin.data.audio import AudioError, AudioHeader, read_header
from amae_plugin.data.manifest import expressible, write_manifest
from amae_plugin.errors import UserError

REPORT_NAME = "unreadable.tsv"


@dataclass(frozen=True)
class Scan:
    """What the headers of a list of files said.

    Attributes:
        headers: of the readable files, in the order of the list.
        unreadable: the reason for each of the others.
    """

    headers: dict[str, AudioHeader] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        clips: number of clips in each split.
        hours: total duration of all splits.
        sample_rates: number of files at each sample rate in Hz.
        unreadable: number of files left out.
        report: the list of those, with reasons; None if there are none.
    """

    clips: dict[str, int]
    hours: float
    sample_rates: dict[int, int]
    unreadable: int
    report: Path | None

    @property
    def size(self) -> str:
        """Files of each split, and hours."""
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


def read_headers(root: Path, names: Sequence[str], workers: int | None = None) -> Scan:
    """Read the headers of files below *root* in parallel, with a progress bar.

    Threads, because libsndfile runs without Python's lock and processes were slower (7,858 ogg files on 2 cores).

    Args:
        root: folder that the names are relative to.
        names: relative paths, none twice.
        workers: threads; None means one a core. More help where the files lie on a network.
    """
    scan = Scan()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(lambda name: _header_or_reason(root, name), names)
        for name, result in tqdm(zip(names, results), total=len(names), desc="reading headers", unit="file"):
            if isinstance(result, AudioHeader):
                scan.headers[name] = result
            else:
                scan.unreadable[name] = result
    return scan


def write_splits(out: Path, root: Path, splits: Mapping[str, Iterable[str]], scan: Scan) -> Summary:
    """Write ``<split>.tsv`` for each split, and the report of unreadable files, into the folder *out*.

    Args:
        out: made if it does not exist.
        root: written into the manifests as an absolute path.
        splits: names of each split's files; those that *scan* found unreadable are left out of the manifest.
        scan: headers of all of them.

    Raises:
        UserError: *out* cannot be written, or no file is readable.
    """
    report = out / REPORT_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        if scan.unreadable:
            lines = (f"{_one_line(name)}\t{_one_line(reason)}\n" for name, reason in scan.unreadable.items())
            report.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        else:
            report.unlink(missing_ok=True)
        readable = {split: [name for name in names if name in scan.headers] for split, names in splits.items()}
        if not any(readable.values()):
            raise UserError(f"{root}: none of the {len(scan.unreadable)} audio files can be read; see {report}")
        for split, names in readable.items():
            rows = ((name, scan.headers[name].frames) for name in names)
            write_manifest(out / f"{split}.tsv", root.absolute(), rows)
    except OSError as error:
        raise UserError(f"{out}: cannot write the manifests there ({error.strerror})") from None
    used = [scan.headers[name] for names in readable.values() for name in names]
    return Summary(
        clips={split: len(names) for split, names in readable.items()},
        hours=sum(header.frames / header.sample_rate for header in used) / 3600,
        sample_rates=dict(Counter(header.sample_rate for header in used)),
        unreadable=len(scan.unreadable),
        report=report if scan.unreadable else None,
    )


def _header_or_reason(root: Path, name: str) -> AudioHeader | str:
    if not expressible(name):
        return "the name holds a tab or a line break, which a manifest cannot express"
    try:
        header = read_header(root / name)
    except AudioError as error:
        return error.reason or str(error)
    return header if header.frames > 0 else "its header states no samples"


def _one_line(text: str) -> str:
    return text if expressible(text) else text.encode("unicode_escape").decode("ascii")
