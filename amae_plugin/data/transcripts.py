"""Transcripts of clips in fairseq's files: ``<split>.<labels>``, one line a clip, and ``dict.<labels>.txt``.

A transcript is a line of units with blanks between them. Units are letters with ``|`` after each word (``ltr``), words
(``wrd``), phones (``phn``), or pieces of a sentencepiece model, which mark the beginning of a word by U+2581. The
dictionary holds ``<unit> <count>`` in each line.
"""

from __future__ import annotations

import functools
import itertools
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from amae_plugin.data.lines import bad_lines, read_lines
from amae_plugin.errors import UserError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Symbols that fairseq puts before those of a dictionary. The first one is the blank of CTC."""
UNKNOWN = SPECIAL[3]
_OVERWRITE = " #fairseq:overwrite"  # a symbol that stands there twice on purpose
_WORD_MARKS = {"letter": "|", "sentencepiece": "\u2581", "wordpiece": "_"}
_CONTINUED = "@@"  # the end of a piece, in subword_nmt, that another one continues
POST_PROCESS = (*_WORD_MARKS, "subword_nmt", "none")
"""Ways to make words of units, under fairseq's names; with ``none``, each unit is a word."""


class Span(NamedTuple):
    """Unit of a transcript with its place: the steps from *begin* up to *end*, without *end*."""

    unit: int
    begin: int
    end: int


class Word(NamedTuple):
    """Word of a transcript with its place: the steps from *begin* up to *end*, without *end*."""

    text: str
    begin: int
    end: int


@dataclass(frozen=True)
class Units:
    """Units of transcripts, numbered as in fairseq's ``Dictionary``. Made by :meth:`read`.

    Attributes:
        labels: end of the names of the files: ``ltr``, ``wrd``, ``spm``, ...
        symbols: the V symbols in index order, :data:`SPECIAL` first.
        post_process: how units make words, one of :data:`POST_PROCESS`.
    """

    labels: str
    symbols: tuple[str, ...]
    post_process: str

    def __post_init__(self) -> None:
        if self.post_process not in POST_PROCESS:
            raise ValueError(f"post_process is '{self.post_process}', must be one of {', '.join(POST_PROCESS)}")

    @classmethod
    def read(cls, folder: str | os.PathLike[str], labels: str, post_process: str | None = None) -> Units:
        """Read ``dict.<labels>.txt``.

        Args:
            folder: folder of the manifests.
            labels: end of the names of the files.
            post_process: how units make words; if None, their marks tell: U+2581, ``|`` or ``@@``, else ``none``.

        Raises:
            UserError: the file cannot be read, holds no units, or has a line that fairseq would refuse.
            ValueError: *post_process* is unknown.
        """
        path = Path(folder) / f"dict.{labels}.txt"
        remedy = "fairseq's scripts and `amae manifest --labels` write such files"
        lines = read_lines(path, "the dictionary", remedy)
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            raise UserError(f"{path}: empty; it must hold one unit a line, '<unit> <count>'")
        symbols, first = list(SPECIAL), dict.fromkeys(SPECIAL, 0)
        problems: dict[int, str] = {}
        for number, line in enumerate(map(str.rstrip, lines), 1):
            symbol, _, count = line.removesuffix(_OVERWRITE).rpartition(" ")
            if not symbol or not count.removeprefix("-").isdecimal():
                problems[number] = f"not one unit, one blank and one whole number in '{line}'"
            elif symbol in first and not line.endswith(_OVERWRITE):
                where = f"stands on line {first[symbol]} too" if first[symbol] else "is fairseq's own"
                problems[number] = f"'{symbol}' {where}"
            else:
                symbols.append(symbol)
                first.setdefault(symbol, number)
        if problems:
            raise bad_lines(path, problems, f"it must hold one unit a line, '<unit> <count>'; {remedy}")
        return cls(labels, tuple(symbols), post_process or _marked(symbols[len(SPECIAL) :]))

    @classmethod
    def from_plain(cls, values: object) -> Units:
        """Read the units that :meth:`plain` gave to a checkpoint.

        Raises:
            ValueError: they are no such values.
        """
        if isinstance(values, Mapping) and values.keys() == {"labels", "symbols", "post_process"}:
            symbols, texts = values["symbols"], (values["labels"], values["post_process"])
            if isinstance(symbols, (list, tuple)) and all(isinstance(text, str) for text in (*symbols, *texts)):
                return cls(values["labels"], tuple(symbols), values["post_process"])
        raise ValueError("must be a section with labels, symbols and post_process")

    def plain(self) -> dict[str, object]:
        """Return the units as plain values, for a checkpoint."""
        return {"labels": self.labels, "symbols": list(self.symbols), "post_process": self.post_process}

    def __len__(self) -> int:
        return len(self.symbols)

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """Numbers of the symbols; of one that stands there twice, that of the last."""
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    @property
    def blank(self) -> int:
        """Number of the blank of CTC, ``<s>``."""
        return self.index[SPECIAL[0]]

    def encode(self, line: str, unknown: bool = False) -> list[int]:
        """Return the numbers of the units of a line.

        Args:
            line: units with blanks between them.
            unknown: take a unit that is not in the dictionary for ``<unk>``, as fairseq does.

        Raises:
            ValueError: a unit is not in the dictionary, or is one of fairseq's own that no transcript may hold.
        """
        symbols = line.split()
        for symbol in symbols:
            if symbol in SPECIAL[:3]:
                raise ValueError(f"'{symbol}' is fairseq's own symbol, which no transcript may hold")
            if symbol not in self.index and not unknown:
                raise ValueError(f"'{symbol}' is not among the {len(self) - len(SPECIAL)} units of the dictionary")
        return [self.index.get(symbol, self.index[UNKNOWN]) for symbol in symbols]

    def to_text(self, units: Iterable[int]) -> str:
        """Return the words that units make, with single blanks between them."""
        return self.spell(self.symbols[unit] for unit in units)

    def spell(self, symbols: Iterable[str]) -> str:
        """Return the words that symbols make, of the dictionary or not, with single blanks between them."""
        return " ".join("".join(map(self._text, symbols)).split())

    def words(self, spans: Iterable[Span]) -> list[Word]:
        """Return the words that units make, each from its first unit's begin to its last unit's end.

        A mark that stands alone belongs to no word. ``<s>``, ``<pad>`` and ``</s>`` count for nothing.
        """
        words: list[Word] = []
        inside = False
        for span in spans:
            for character in self._text(self.symbols[span.unit]):
                if character.isspace():
                    inside = False
                elif inside:
                    words[-1] = Word(words[-1].text + character, words[-1].begin, span.end)
                else:
                    words.append(Word(character, span.begin, span.end))
                    inside = True
        return words

    def _text(self, symbol: str) -> str:
        """Return what a symbol adds to a text, with a blank between words."""
        if symbol in SPECIAL[:3]:
            return ""
        if self.post_process in _WORD_MARKS:
            return symbol.replace(_WORD_MARKS[self.post_process], " ")
        continued = self.post_process == "subword_nmt" and symbol.endswith(_CONTINUED)
        return symbol.removesuffix(_CONTINUED) if continued else f"{symbol} "


@dataclass(frozen=True)
class Transcripts:
    """Transcripts of N clips in two integer arrays, without a Python object per clip. Made by :meth:`read`.

    Attributes:
        units: the units.
        ids: (M,) int32, units of all clips one after the other.
        offsets: (N + 1,) int64; clip i has the units ``ids[offsets[i] : offsets[i + 1]]``, perhaps none.
    """

    units: Units
    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def read(cls, path: str | os.PathLike[str], units: Units, length: int, *, unknown: bool = False) -> Transcripts:
        """Read and check the transcripts of one split.

        Windows line ends, a byte order mark and blank lines after the last clip's are tolerated. Any other empty line
        is an empty transcript, as for fairseq.

        Args:
            path: ``<split>.<labels>``.
            units: their units.
            length: number of clips in the manifest, N.
            unknown: take units that are not in the dictionary for ``<unk>``.

        Raises:
            UserError: see :func:`read_transcripts`; or a line holds what is no unit. The message names the file and the
                line.
        """
        lines = read_transcripts(path, length)
        ids = array("i")
        offsets = np.zeros(length + 1, np.int64)
        problems: dict[int, str] = {}
        for number, line in enumerate(lines, 1):
            try:
                ids.extend(units.encode(line, unknown))
            except ValueError as error:
                problems[number] = str(error)
            offsets[number] = len(ids)
        if problems:
            remedy = f"correct it, add the unit to dict.{units.labels}.txt, or have <unk> stand for it"
            raise bad_lines(path, problems, remedy)
        return cls(units, np.array(ids, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the units of one clip, (k,) int32."""
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} clips have transcripts, asked for number {index}")
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @functools.cached_property
    def steps_needed(self) -> np.ndarray:
        """Steps that CTC needs at least for each clip, (N,) int64: one a unit, and one between equal neighbours."""
        repeated = np.zeros(len(self.ids) + 1, np.int64)
        repeated[1:-1] = self.ids[1:] == self.ids[:-1]
        starts = self.offsets[:-1]
        repeated[starts] = 0  # the neighbour before the first unit is another clip's
        totals = np.concatenate([[0], repeated.cumsum()])
        return np.diff(self.offsets) + totals[self.offsets[1:]] - totals[starts]


def read_transcripts(path: str | os.PathLike[str], length: int) -> list[str]:
    """Read the lines of ``<split>.<labels>``, one a clip.

    Args:
        path: the file.
        length: number of clips in the manifest.

    Raises:
        UserError: the file cannot be read, all lines are empty, or there are not *length* of them.
    """
    lines = read_lines(path, "the transcripts", "fairseq's scripts and `amae manifest --labels` write such files")
    while len(lines) > length and not lines[-1].strip():
        lines.pop()
    if len(lines) != length:
        problem = f"has {len(lines):,} lines, but the manifest beside it has {length:,} clips"
        raise UserError(f"{path} {problem}; there must be one line a clip, in the manifest's order")
    if not any(map(str.strip, lines)):
        raise UserError(f"{path}: not one of its {length:,} lines holds a unit")
    return lines


def collapse(steps: Tensor | Sequence[int], blank: int) -> list[Span]:
    """Return the units that steps (T,) spell by the rule of CTC: equal neighbours are one, blanks are none.

    Source: Graves et al. 2006, "Connectionist Temporal Classification", section 3.1.
    """
    spans, begin = [], 0
    for unit, group in itertools.groupby(steps.tolist() if isinstance(steps, Tensor) else steps):
        end = begin + sum(1 for _ in group)
        if unit != blank:
            spans.append(Span(unit, begin, end))
        begin = end
    return spans


def _marked(symbols: Sequence[str]) -> str:
    """Guess by the marks of words how units make words."""
    if any(_WORD_MARKS["sentencepiece"] in symbol for symbol in symbols):
        return "sentencepiece"
    if _WORD_MARKS["letter"] in symbols:
        return "letter"
    return "subword_nmt" if any(symbol.endswith(_CONTINUED) for symbol in symbols) else "none"
