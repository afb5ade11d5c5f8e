"""fairseq's audio manifest: the list of clips and the places of their bytes.

The first line is the root folder; every other line is ``path<TAB>samples``. A path is relative to the root (or
absolute) and takes one of three forms:

* ``path``                       a whole file;
* ``archive:offset:length``      a member of a ``.tar``, or one stored without compression in a ``.zip``: *length* bytes
  from byte *offset* (fairseq's stored-zip entries);
* ``path:start:frames``          a segment of a longer file, in frames at the file's own sample rate.

``samples`` is the clip's length at the file's own sample rate. A relative root is relative to the folder that holds the
manifest, so a data set can be moved as one folder.

All lines have a third column, or none: the clip's picture. That is the path of a still or a video, or
``path:start:length``, a piece of a video in milliseconds. fairseq's own readers take two columns only.
"""

from __future__ import annotations

import itertools
import mmap
import os
import posixpath
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from amae_plugin.data.lines import bad_lines
from amae_plugin.errors import UserError, first_of
from amae_plugin.files import is_file, is_folder, reading, replacing, utf_16_remedy

_FORMAT_HELP = (
    "expected '<path><TAB><samples>', and in all lines or none '<TAB><picture>'; `amae manifest` writes such files"
)
_SCAN_BYTES = 1 << 24  # bytes scanned for separators at a time, which bounds the temporary memory
_MAX_DIGITS = 18  # always fits int64
ARCHIVES = ("tar", "zip")
"""Kinds of clips that are members of an archive, and the extensions of those archives."""


@dataclass(frozen=True)
class Clip:
    """Place of one clip.

    Attributes:
        path: absolute path of the file or archive.
        kind: ``"file"``, ``"segment"``, or one of :data:`ARCHIVES`.
        start: first byte of a member, or first frame of a segment at the file's own rate; 0 for a file.
        length: bytes of a member or frames of a segment; 0 for a whole file.
    """

    path: str
    kind: str = "file"
    start: int = 0
    length: int = 0

    @classmethod
    def of(cls, root: str, name: str) -> Clip:
        """Return the clip that an entry of a manifest with this root names."""
        head, numbers = _split(name)
        path = os.path.join(root, head)  # noqa: PTH118 - called for every clip, and Path is slow
        if not numbers:
            return cls(path)
        extension = head[-3:].lower() if head[-4:-3] == "." else ""
        return cls(path, extension if extension in ARCHIVES else "segment", *numbers)

    def __str__(self) -> str:
        return self.path if self.kind == "file" else f"{self.path}:{self.start}:{self.length}"


@dataclass(frozen=True)
class Picture:
    """Place of one clip's picture.

    Attributes:
        path: absolute path of a still or a video.
        start_s: where the piece of the video begins, in seconds; None for the whole.
        length_s: length of the piece in seconds; None for the whole.
    """

    path: str
    start_s: float | None = None
    length_s: float | None = None

    def __str__(self) -> str:
        return self.path if self.start_s is None else f"{self.path} from {self.start_s:g} s on"


class Manifest:
    """A manifest held as one memory-mapped file and integer arrays (24 bytes a line, 40 with pictures).

    Forked workers share all of it, as there are no Python objects per line. A pickled manifest is only its path, and is
    read again where it is unpickled (in workers started with ``spawn``). Made by :meth:`read`.

    Attributes:
        path: manifest file.
        root: absolute path of the folder that the entries are relative to.
        sizes: (N,) int64, samples of each clip at its file's own sample rate.
    """

    def __init__(
        self,
        path: Path,
        root: str,
        text: mmap.mmap,
        starts: np.ndarray,
        ends: np.ndarray,
        sizes: np.ndarray,
        pictures: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.path = path
        self.root = root
        self.sizes = sizes
        self._text = text
        self._starts = starts
        self._ends = ends
        self._pictures = pictures

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and check a manifest.

        Windows line ends, a byte order mark and blank lines at the end are tolerated. Names are UTF-8; other bytes are
        kept as Python keeps them in file names (``surrogateescape``).

        Raises:
            UserError: the file or its root does not exist, or lines are malformed. The message names the file and the
                first of the lines, and counts them.
        """
        path = Path(path).absolute()
        with reading(path, "the manifest", _remedy(path)), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f"{path}: empty; the first line must be the root folder. {_FORMAT_HELP}")
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        line_ends = _positions(text, b"\n")
        if not len(line_ends) or line_ends[-1] != len(text) - 1:
            line_ends = np.append(line_ends, len(text))
        first = text[: line_ends[0]].rstrip(b"\r\n")
        if remedy := utf_16_remedy(first):
            raise UserError(f"{path}: {remedy}")
        if b"\r" in first:
            raise UserError(
                f"{path}: its lines end in a carriage return alone; save it with line ends of Unix or Windows"
            )
        root = _resolve_root(path, first.removeprefix(b"\xef\xbb\xbf"))

        bytes_ = np.frombuffer(text, np.uint8)
        starts, ends = line_ends[:-1] + 1, line_ends[1:]
        ends = ends - (bytes_[ends - 1] == ord("\r"))
        while len(ends) and not text[starts[-1] : ends[-1]].strip():
            starts, ends = starts[:-1], ends[:-1]

        tabs = _positions(text, b"\t")
        tabs = tabs[np.searchsorted(tabs, line_ends[0]) :]
        with_pictures = 2 * len(tabs) > 3 * len(ends)  # as most lines are
        columns = 1 + with_pictures  # that follow a tab
        first_tabs, last_tabs = tabs[::columns], tabs[columns - 1 :: columns]
        if len(tabs) != columns * len(ends) or not ((starts < first_tabs) & (last_tabs + with_pictures < ends)).all():
            form = ("one path, one tab and one number", "a path, a number and a picture between tabs")[with_pictures]
            lines = enumerate((text[start:end] for start, end in zip(starts, ends)), 2)
            bad = {number: _show(line) for number, line in lines if _is_malformed(line, columns)}
            raise bad_lines(path, {number: f"not {form} in '{line}'" for number, line in bad.items()}, _FORMAT_HELP)
        sizes = _parse_sizes(path, bytes_, first_tabs + 1, last_tabs if with_pictures else ends)
        manifest = cls(path, root, text, starts, first_tabs, sizes, (last_tabs + 1, ends) if with_pictures else None)
        manifest._refuse_escapes()
        return manifest

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of all lines but the root."""
        return zlib.crc32(memoryview(self._text)[self._text.find(b"\n") :])

    def __getitem__(self, index: int) -> Clip:
        """Return the clip of line ``index + 2``."""
        return Clip.of(self.root, self.name(index))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Manifest.read, (self.path,)

    @property
    def has_pictures(self) -> bool:
        """Whether the lines name pictures."""
        return self._pictures is not None

    def picture(self, index: int) -> Picture:
        """Return the picture of line ``index + 2``.

        Raises:
            UserError: the manifest has no pictures.
        """
        head, numbers = _split(self.picture_name(index))
        path = os.path.join(self.root, head)  # noqa: PTH118 - called for every clip, and Path is slow
        return Picture(path, numbers[0] / 1000, numbers[1] / 1000) if numbers else Picture(path)

    def picture_name(self, index: int) -> str:
        """Return the picture's path as the manifest has it, with ``:start:length``.

        Raises:
            UserError: the manifest has no pictures.
        """
        return self._field(index, *self.require_pictures())

    def require_pictures(self, alternative: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Return where the names of the pictures begin and end in the file, both (N,) int64.

        Args:
            alternative: end of the message: what does without pictures.

        Raises:
            UserError: the manifest has no pictures.
        """
        if self._pictures is None:
            written = "`amae manifest videos` and `amae manifest pairs` write manifests with pictures"
            without = f", and {alternative} does without" if alternative else ""
            raise UserError(f"{self.path}: lists no pictures; {written}{without}")
        return self._pictures

    def require_clips(self) -> Manifest:
        """Return this manifest if it holds clips.

        Raises:
            UserError: it holds none.
        """
        if not len(self):
            raise UserError(f"{self.path}: holds no clips; add some, or take another split or share of them")
        return self

    def name(self, index: int) -> str:
        """Return the path as the manifest has it, with ``:offset:length`` or ``:start:frames``."""
        return self._field(index, self._starts, self._ends)

    def _field(self, index: int, starts: np.ndarray, ends: np.ndarray) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} clips, asked for number {index}")
        return self._text[starts[index] : ends[index]].decode("utf-8", "surrogateescape")

    def _refuse_escapes(self) -> None:
        """Refuse paths that lead elsewhere than they seem to: out of the root, or cut off at a NUL.

        An absolute path may lie anywhere, since it shows where it leads, but must not hold "..".
        """
        problems = {number: "holds a NUL character, which no path has" for number, _ in self._lines_with(b"\0")}
        # Names with ".." are rare: only the lines that hold one are looked at.
        for number, name in self._lines_with(b"../"):
            head, _ = _split(name)
            if posixpath.isabs(head):
                problems[number] = f"'{name}' is absolute and turns back with '..'; write the path that it leads to"
            elif posixpath.normpath(head).split("/", 1)[0] == "..":
                problem = f"leads out of the root {self.root}; write an absolute path or choose a higher root"
                problems[number] = f"'{name}' {problem}"
        if problems:
            raise bad_lines(self.path, dict(sorted(problems.items())), "correct the path")

    def _lines_with(self, part: bytes) -> Iterator[tuple[int, str]]:
        """Yield number and name of each clip and picture whose name holds *part*."""
        for starts, ends in ((self._starts, self._ends), *([self._pictures] if self._pictures else [])):
            found = self._text.find(part)
            while found >= 0:
                index = int(np.searchsorted(starts, found, side="right")) - 1
                if index >= 0 and found < ends[index]:
                    yield index + 2, self._field(index, starts, ends)
                    found = int(ends[index])
                found = self._text.find(part, found + 1)


def _remedy(path: Path) -> str:
    """Say what to do where a manifest cannot be read: take one that lies beside it, or make one."""
    beside: set[str] = set()
    if is_folder(path.parent) and not is_file(path):
        beside = {found.name for found in path.parent.glob("*.tsv")} - {path.name, "unreadable.tsv"}
    if not beside:
        return "make one with `amae manifest folder`"
    return f"its folder has {first_of(sorted(beside))}; run `amae manifest` again to have others"


def _split(name: str) -> tuple[str, tuple[int, ...]]:
    """Split an entry into its path and its two numbers, if it has them."""
    head, *numbers = name.rsplit(":", 2)
    if len(numbers) == 2 and all(number.isascii() and number.isdigit() for number in numbers):
        return head, (int(numbers[0]), int(numbers[1]))
    return name, ()


Row = tuple[str, int] | tuple[str, int, str]
"""A line of a manifest: path, samples, and the picture in a manifest of pictures."""


def write_manifest(path: str | os.PathLike[str], root: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write a manifest, whole or not at all.

    Args:
        path: file to write or replace, in a folder that exists.
        root: root folder, written as it is given; an absolute path makes the manifest independent of its own place.
        rows: path relative to *root*, samples at the file's own rate, and in all rows or none the picture.

    Raises:
        UserError: a name holds a tab or a line break, which the format cannot express.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as out:
        for name, *others in itertools.chain([(os.fspath(root),)], rows):
            for text in (name, *others[1:]):
                if not expressible(text):
                    raise UserError(f"{path}: {text!r} is blank or holds a tab or a line break; rename it")
            out.write("\t".join([name, *map(str, others)]) + "\n")


def expressible(name: str) -> bool:
    """Tell whether a manifest can hold this name: it is not blank, and holds neither a tab nor a line break."""
    return not any(character in name for character in "\t\n\r") and bool(name.strip())


def _is_malformed(line: bytes, columns: int) -> bool:
    """Tell whether a line has another number of columns after the first, or an empty path or picture."""
    return line.count(b"\t") != columns or line.startswith(b"\t") or (columns == 2 and line.endswith(b"\t"))


def _positions(text: mmap.mmap, character: bytes) -> np.ndarray:
    """Find the offsets of *character*: int64, ascending."""
    bytes_, offsets = np.frombuffer(text, np.uint8), range(0, len(text), _SCAN_BYTES)
    pieces = (np.flatnonzero(bytes_[start : start + _SCAN_BYTES] == ord(character)) + start for start in offsets)
    return np.concatenate(list(pieces))


def _resolve_root(path: Path, line: bytes) -> str:
    written = line.decode("utf-8", "surrogateescape")
    if not written.strip():
        raise UserError(f"{path}, line 1: no root folder; the first line must name the folder of the audio files")
    if "\t" in written:
        raise UserError(f"{path}, line 1: '{written}' is an entry; the first line must be the root folder")
    root = Path(os.path.normpath(path.parent / written))
    if not is_folder(root):
        problem = f"the root folder {root} does not exist, or may not be entered"
        raise UserError(f"{path}, line 1: {problem}; correct the line or mount the folder")
    return str(root)


def _parse_sizes(path: Path, bytes_: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Read the decimal numbers in ``bytes_[starts[i]:ends[i]]``, all lines at once: (N,) int64."""
    lengths = ends - starts
    sizes = np.zeros(len(starts), np.int64)
    bad = (lengths < 1) | (lengths > _MAX_DIGITS)
    scale = 1
    for place in range(int(lengths[~bad].max(initial=0))):
        has_place = (lengths > place) & ~bad
        digits = bytes_[ends[has_place] - 1 - place].astype(np.int64) - ord("0")
        bad[has_place] = (digits < 0) | (digits > 9)
        sizes[has_place] += digits * scale
        scale *= 10
    if bad.any():
        found = {int(index) + 2: bytes_[starts[index] : ends[index]].tobytes() for index in np.flatnonzero(bad)}
        problem = "samples, but this must be a whole number of 0 or more"
        raise bad_lines(path, {number: f"'{_show(size)}' {problem}" for number, size in found.items()}, _FORMAT_HELP)
    return sizes


def _show(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
