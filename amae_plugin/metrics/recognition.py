"""Errors of recognised text: substitutions, deletions and insertions of the shortest way from reference to hypothesis.

The alignment is rapidfuzz's. Rates are sums of errors over sums of lengths, so of the whole split and no mean of clips.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class Errors:
    """Errors of one text or of many.

    Attributes:
        length: words or characters of the reference.
        substitutions: words or characters in the place of others.
        deletions: words or characters that are missing.
        insertions: words or characters that the reference does not have.
    """

    length: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @classmethod
    def between(cls, reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> Errors:
        """Count the errors of a hypothesis; of words if they are lists of words, of characters if they are texts."""
        tags = [edit.tag for edit in Levenshtein.editops(reference, hypothesis)]
        return cls(len(reference), *map(tags.count, ("replace", "delete", "insert")))

    def __add__(self, other: Errors) -> Errors:
        return Errors(*(own + more for own, more in zip(vars(self).values(), vars(other).values())))

    @property
    def total(self) -> int:
        """Number of errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per word or character of the reference; above 1 with many insertions, NaN without a reference."""
        return self.total / self.length if self.length else math.nan


@dataclass(frozen=True)
class TextErrors:
    """Errors of words and of characters; blanks between words are characters."""

    words: Errors = Errors()
    characters: Errors = Errors()

    @classmethod
    def between(cls, reference: str, hypothesis: str) -> TextErrors:
        """Count the errors of a text."""
        return cls(Errors.between(reference.split(), hypothesis.split()), Errors.between(reference, hypothesis))

    def __add__(self, other: TextErrors) -> TextErrors:
        return TextErrors(self.words + other.words, self.characters + other.characters)

    @classmethod
    def of_all(cls, references: Iterable[str], hypotheses: Iterable[str]) -> TextErrors:
        """Count the errors of many texts."""
        return sum((cls.between(*pair) for pair in zip(references, hypotheses, strict=True)), cls())

    @property
    def headline(self) -> dict[str, float]:
        """Word and character error rate, under the names that training logs."""
        return {"wer": self.words.rate, "cer": self.characters.rate}
