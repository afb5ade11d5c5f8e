"""Pack the clips of a manifest into tar shards, decoded and resampled once, with the files that lie beside it.

What 16 bits hold exactly is stored in 16 bits, and what is resampled is rounded to them: the noise of that lies below
the floor of Kaldi's log-mel values. Anything else is stored in 24 bits (flac) or as it is (wav), so that a model hears
the same.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import shutil
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch.utils.data
from torch.utils.data import DataLoader

from amae_plugin.corpora.corpus import REPORT_NAME
from amae_plugin.data.audio import HIGHEST_RATE, LOWEST_RATE, AudioError, load_clip, read_rate
from amae_plugin.data.labels import DISPLAY_NAMES, LABELS_NAME
from amae_plugin.data.lines import read_lines, write_lines
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.data.sampling import read_weights
from amae_plugin.data.trials import read_trial_lines
from amae_plugin.errors import UserError, printable
from amae_plugin.files import is_folder, reading, remove_partial_files, replacing, write_json, writing
from amae_plugin.processes import killed_with_parent
from amae_plugin.progress import tqdm

FORMATS = ("flac", "wav")

_SHARED = (LABELS_NAME, "dict.*.txt", "spm.model", DISPLAY_NAMES)
_HEADER = 512  # bytes before a member of a tar
_WEIGHTS = "weights.npy"
_RECORD = "pack.json"


@dataclass(frozen=True)
class Packing:
    """How clips are packed.

    Attributes:
        format: one of :data:`FORMATS`.
        rate: sample rate in Hz; None keeps that of each file.
        shard_bytes: bytes from which on a shard is closed.
    """

    format: str = "flac"
    rate: int | None = None
    shard_bytes: int = 1_000_000_000


@dataclass(frozen=True)
class Packed:
    """What was packed of a manifest.

    Attributes:
        manifest: the manifest of the shards.
        clips: number of its clips.
        shards: number of its shards.
        size: bytes of all shards.
        unreadable: reasons why clips were left out, by their names.
        clipped: number of clips that were cut off at full scale.
        warnings: what was not copied, a sentence each.
        done_before: whether all of it was there already.
    """

    manifest: Path
    clips: int
    shards: int
    size: int
    unreadable: dict[str, str] = field(default_factory=dict)
    clipped: int = 0
    warnings: list[str] = field(default_factory=list)
    done_before: bool = False


class _Encoded(NamedTuple):
    """A clip as it goes into a shard."""

    content: bytes = b""
    samples: int = 0
    clipped: bool = False
    problem: str = ""
    """Why the clip cannot be decoded."""
    failure: str = ""
    """Why it cannot be encoded, which ends the work. A DataLoader would raise an error with its traceback as text."""


class _Encoder(torch.utils.data.Dataset):
    """The clips of a manifest, each decoded, encoded, and decoded again to compare."""

    def __init__(self, manifest: Manifest, packing: Packing):
        self._manifest, self._packing = manifest, packing

    def __getitem__(self, index: int) -> _Encoded:
        clip, form = self._manifest[index], self._packing.format
        try:
            own_rate = read_rate(clip)
            rate = self._packing.rate or own_rate
            waveform = load_clip(clip, rate).numpy()
        except AudioError as error:
            return _Encoded(problem=error.reason or str(error))
        stored, values, subtype = _store(waveform, form, rounds=rate != own_rate)
        file = io.BytesIO()
        try:
            soundfile.write(file, values, rate, format=form.upper(), subtype=subtype)
            file.seek(0)
            again = soundfile.read(file, dtype="float32")
        except soundfile.LibsndfileError as error:
            remedy = "choose another --rate or --format"
            reason = f"{clip}: cannot be written as {form} at {rate:,} Hz ({error.error_string}); {remedy}"
            return _Encoded(failure=reason)
        if again[1] != rate or not np.array_equal(again[0], stored):
            return _Encoded(failure=f"{clip}: the {form} that was written of it does not give its samples again")
        return _Encoded(file.getvalue(), len(stored), bool(np.abs(waveform - stored).max() > 2**-15))


def _store(waveform: np.ndarray, format: str, rounds: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """Choose how a waveform is stored.

    Args:
        waveform: (samples,) float32.
        format: one of :data:`FORMATS`.
        rounds: whether 16 bits do.

    Returns:
        The samples (samples,) float32 that reading will give, those to write, and libsndfile's name of their kind.
    """
    coarse, integers = _round(waveform, 16)
    fits = np.abs(coarse - waveform).max() <= 2**-16 if rounds else np.array_equal(coarse, waveform)
    if fits or (rounds and format == "flac"):
        return coarse, integers.astype(np.int16), "PCM_16"
    if format == "wav":
        return waveform, waveform, "FLOAT"
    fine, integers = _round(waveform, 24)
    return fine, integers << 8, "PCM_24"


def _round(waveform: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round to integers of some bits: as float32 of full scale 1, and as int32."""
    scale = 2 ** (bits - 1)
    integers = np.rint(waveform * scale).clip(-scale, scale - 1)  # float32 holds them exactly
    return integers / scale, integers.astype(np.int32)


def find_manifests(path: Path) -> list[Path]:
    """List the manifests of a folder, or the one manifest that a path is.

    Raises:
        UserError: there are none.
    """
    if not is_folder(path):
        return [path]
    found = sorted(each for each in path.glob("*.tsv") if each.name != REPORT_NAME and not each.name.startswith("."))
    if not found:
        raise UserError(f"{path}: holds no manifests (*.tsv); `amae manifest` writes them")
    return found


def pack(path: Path, out: Path, packing: Packing, workers: int = 1) -> Packed:
    """Pack a manifest into *out*: ``<split>-000000.tar`` and so on, and the manifest of these.

    A clip that cannot be decoded is left out, with its lines in the files beside the manifest, and listed in
    ``unreadable.tsv``. A run that was interrupted is continued from the last shard that it finished; the result is the
    same to the byte, whatever the number of workers. Where all shards are there already, the files beside the manifest
    are copied again.

    Args:
        path: the manifest.
        out: folder of the shards, which is made if it does not exist.
        packing: how clips are packed.
        workers: processes that decode and encode.

    Raises:
        UserError: the manifest cannot be read, or names pictures; *out* is its folder or holds other shards; no clip
            can be decoded; the system cannot write, or gives back other bytes than were written.
    """
    if packing.rate is not None and not LOWEST_RATE <= packing.rate <= HIGHEST_RATE:
        raise UserError(f"--rate {packing.rate}: must be {LOWEST_RATE} to {HIGHEST_RATE:,} Hz")
    manifest = Manifest.read(path).require_clips()
    if manifest.has_pictures:
        raise UserError(f"{path}: its clips have pictures, which shards do not hold; train on the manifest as it is")
    job = _Job(manifest, out, packing)
    with writing(out, "the shards there"):
        out.mkdir(parents=True, exist_ok=True)
        if job.begin():
            return job.describe_finished()
        job.write_shards(workers)
        return job.finish()


class _Job:
    """The packing of a manifest.

    Attributes:
        shards: pattern of the names of its shards, and of no other split's whose name begins with that of this one.
        record: file of what is packed there: the settings, and once all is packed the clips that were left out.
        before: content of that file when this run began.
        notes_folder: holds a note of each finished shard until all are: its rows, what was left out, and the number of
            the clip that the next shard begins with.
    """

    def __init__(self, manifest: Manifest, out: Path, packing: Packing):
        self.manifest, self.out, self.packing = manifest, out, packing
        self.split = manifest.path.stem
        self.pattern = glob.escape(self.split)
        self.shards = f"{self.pattern}-{'[0-9]' * 6}.tar"
        self.record = out / f"{self.split}.{_RECORD}"
        self.notes_folder = out / f".packing-{self.split}"
        self.target = out / manifest.path.name
        self.before: dict[str, Any] = {}

    def begin(self) -> bool:
        """Note what is packed, and tell whether all of it is there already."""
        if self.out.samefile(self.manifest.path.parent):
            raise UserError(
                f"{self.out}: holds the manifest that is packed, which its own would replace; choose another"
            )
        wanted = {**asdict(self.packing), "clips": len(self.manifest), "checksum": self.manifest.checksum}
        if not self.record.exists():
            if self.target.exists() or any(self.out.glob(self.shards)):
                others = f"{self.target.name} or {self.split}-*.tar"
                raise UserError(f"{self.out}: holds {others} that this command did not write; choose another folder")
            write_json(self.record, {"manifest": str(self.manifest.path), **wanted})
        with reading(self.record, "the record of what is packed there"):
            try:
                before = self.before = json.loads(self.record.read_text(encoding="utf-8"))
                other = [f"{key} {before[key]}, not {value}" for key, value in wanted.items() if before[key] != value]
            except (ValueError, KeyError, TypeError):
                remedy = "delete it and the shards beside it"
                raise UserError(f"{self.record}: not a record of amae pack; {remedy}") from None
        if other:
            remedy = "choose another folder, or delete what is there"
            raise UserError(f"{self.out}: holds {self.split} packed with {', '.join(other)}; {remedy}")
        return self.target.exists()

    def describe_finished(self) -> Packed:
        """Copy the files beside the manifest again, as they may have changed, and tell again what was left out."""
        shutil.rmtree(self.notes_folder, ignore_errors=True)  # left where the last run was killed at its very end
        packed = Manifest.read(self.target)
        clips, clipped = len(packed), self.before.get("clipped", 0)
        left = self._left_out(clips)
        sizes = [path.stat().st_size for path in self.out.glob(self.shards)]
        warnings = list(self._copy_companions(left, map(packed.name, range(clips))))
        return Packed(self.target, clips, len(sizes), sum(sizes), self._report(left), clipped, warnings, True)

    def _left_out(self, packed: int) -> dict[int, str]:
        """Return the reasons why clips were left out, by their numbers, where *packed* were not.

        Raises:
            UserError: neither the record nor the list of all splits tells them.
        """
        if "left" in self.before:
            return {int(index): reason for index, reason in self.before["left"].items()}
        listed = self._listed() if packed < len(self.manifest) else {}
        names = (printable(self.manifest.name(index)) for index in range(len(self.manifest)))
        left = {index: listed[name] for index, name in enumerate(names) if name in listed}
        if packed + len(left) != len(self.manifest):
            raise UserError(f"{self.record}: does not tell what was left out; delete it and the shards beside it")
        return left

    def write_shards(self, workers: int) -> None:
        """Write the shards that are not finished."""
        self.notes_folder.mkdir(exist_ok=True)
        remove_partial_files(self.out, self.shards)
        nexts = [note["next"] for _, note in self.notes()]
        first = nexts[-1] if nexts else 0
        remaining = range(first, len(self.manifest))
        # Workers compute in one thread each, so that their number changes no bit.
        encoder: Any = _Encoder(self.manifest, self.packing)
        options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": killed_with_parent}
        loader = DataLoader(encoder, batch_size=None, sampler=remaining, **options)
        clips = zip(remaining, loader)
        with tqdm(total=len(self.manifest), initial=first, desc=f"packing {self.split}", unit="clip") as bar:
            for number in itertools.count(len(nexts)):
                if (clip := next(clips, None)) is None:
                    return
                with replacing(self._shard(number)) as partial:
                    note = self._write_shard(partial, itertools.chain([clip], clips), bar)
                write_json(self._note(number), note)

    def _write_shard(self, path: Path, clips: Iterator[tuple[int, _Encoded]], bar: tqdm) -> dict[str, Any]:
        """Write clips until the shard is full, compare what the disk holds, and return the note of it."""
        rows: list[tuple[int, int, int]] = []
        checksums, unreadable, clipped = [], {}, 0
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for index, encoded in clips:
                if encoded.failure:
                    raise UserError(encoded.failure)
                bar.update()
                if encoded.problem:
                    unreadable[index] = encoded.problem
                    continue
                member = tarfile.TarInfo(f"{index:09d}.{self.packing.format}")
                member.size = len(encoded.content)
                rows.append((archive.offset + _HEADER, member.size, encoded.samples))
                checksums.append(zlib.crc32(encoded.content))
                clipped += encoded.clipped
                archive.addfile(member, io.BytesIO(encoded.content))
                if archive.offset >= self.packing.shard_bytes:
                    break
        with path.open("rb") as file:
            for (start, length, _), checksum in zip(rows, checksums):
                file.seek(start)
                if zlib.crc32(file.read(length)) != checksum:
                    raise UserError(f"{self.out}: the disk gives back other bytes than were written to {path.name}")
        size = path.stat().st_size
        return {"next": index + 1, "size": size, "clipped": clipped, "unreadable": unreadable, "rows": rows}

    def _shard(self, number: int) -> Path:
        return self.out / f"{self.split}-{number:06d}.tar"

    def _note(self, number: int) -> Path:
        return self.notes_folder / f"{number:06d}.json"

    def notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and note of the finished shards, up to the first that is not."""
        for number in itertools.count():
            try:
                note = json.loads(self._note(number).read_text(encoding="utf-8"))
                if self._shard(number).stat().st_size != note["size"]:
                    return
            except FileNotFoundError:
                return
            yield self._shard(number).name, note

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield entry and samples of each clip."""
        for name, note in self.notes():
            yield from ((f"{name}:{start}:{length}", samples) for start, length, samples in note["rows"])

    def finish(self) -> Packed:
        """Write the files beside the manifest, and last of all the manifest itself."""
        left: dict[int, str] = {}
        clips, clipped, sizes = 0, 0, []
        for _, note in self.notes():
            left |= {int(index): reason for index, reason in note["unreadable"].items()}
            clips, clipped = clips + len(note["rows"]), clipped + note["clipped"]
            sizes.append(note["size"])
        unreadable = self._report(left)
        if not clips:
            raise UserError(f"{self.manifest.path}: none of its clips can be decoded; see {self.out / REPORT_NAME}")
        write_json(self.record, {**self.before, "left": left, "clipped": clipped})
        warnings = list(self._copy_companions(left, (name for name, _ in self.rows())))
        write_manifest(self.target, ".", self.rows())
        shutil.rmtree(self.notes_folder)
        return Packed(self.target, clips, len(sizes), sum(sizes), unreadable, clipped, warnings)

    def _report(self, left: Mapping[int, str]) -> dict[str, str]:
        """Add clips to the list of those that were left out, which all splits share, and return them by their names."""
        unreadable = {self.manifest.name(index): reason for index, reason in left.items()}
        if unreadable:
            added = {printable(name): printable(reason) for name, reason in unreadable.items()}
            lines = (f"{name}\t{reason}" for name, reason in (self._listed() | added).items())
            write_lines(self.out / REPORT_NAME, lines)
        return unreadable

    def _listed(self) -> dict[str, str]:
        """Read that list."""
        path = self.out / REPORT_NAME
        return dict(line.split("\t", 1) for line in read_lines(path, "the list")) if path.exists() else {}

    def _copy_companions(self, left: Collection[int], names: Iterable[str]) -> Iterator[str]:
        """Copy labels, transcripts, weights and trials, and yield warnings.

        Args:
            left: numbers of the clips left out, whose lines are too.
            names: names of the others in the shards.
        """
        folder = self.manifest.path.parent
        kept = np.ones(len(self.manifest), bool)
        kept[list(left)] = False
        for source in sorted(path for pattern in _SHARED for path in folder.glob(pattern)):
            with reading(source):
                content = source.read_bytes()
            target = self.out / source.name
            if target.exists() and target.read_bytes() != content:
                remedy = f"delete it if all that is packed there is of {folder}, or choose another folder"
                raise UserError(f"{target}: another than {source}; {remedy}")
            _write(target, content)
        companions = self._companions(folder)
        for source in companions:
            if source.name == "trials.txt" and self.split == "trials":
                self._write_trials(source, dict(zip(map(self.manifest.name, np.flatnonzero(kept).tolist()), names)))
            elif (entries := _entries_of(source, kept)) is not None:
                _write(self.out / source.name, entries)
            else:
                yield f"{source.name}: not copied, as it has not one entry a clip"
        copied = {source.name for source in companions}
        if stay := [path.name for path in self._companions(self.out) if path.name not in copied]:
            yield f"{', '.join(stay)}: left there, as {folder} holds none; delete what does not belong to these clips"

    def _companions(self, folder: Path) -> list[Path]:
        """List the files beside the manifest in a folder that belong to it by their names."""
        places = (self.manifest.path.parent, self.out)
        longer = [path.stem for place in places for path in place.glob(f"{self.pattern}.*.tsv")]  # as train.clean
        others = tuple(f"{split}{end}" for split in longer for end in ".-")
        own = (self.target.name, self.record.name)
        found = sorted(path for path in folder.glob(f"{self.pattern}.*") if not path.is_dir())
        return [path for path in found if path.name not in own and not path.name.startswith(others)]

    def _write_trials(self, source: Path, names: Mapping[str, str]) -> None:
        """Write pairs by the names that their clips have in the shards."""
        pairs = ((label, pair) for _, label, pair in read_trial_lines(source) if all(name in names for name in pair))
        write_lines(self.out / source.name, (f"{label} {names[one]} {names[other]}" for label, (one, other) in pairs))


def _entries_of(source: Path, kept: np.ndarray) -> bytes | None:
    """Return the content of a file with one entry a clip, for the clips that are kept; None if it is not one."""
    with reading(source):
        content = source.read_bytes()
    if source.name.endswith(_WEIGHTS):
        weights = read_weights(source, len(kept))
        buffer = io.BytesIO()
        np.save(buffer, weights[kept])
        return buffer.getvalue()
    # As read_lines() and the readers of labels and transcripts count them, in a file that need not be a text.
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n").split(b"\n")
    while len(lines) > len(kept) and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(kept):
        return None
    return content if kept.all() else b"".join(line + b"\n" for line, keep in zip(lines, kept) if keep)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)
