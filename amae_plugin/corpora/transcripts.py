"""Texts of clips as fairseq's label files: what a text may hold, its normalisation, and its units.

Units are letters with ``|`` after each word (``ltr``), words (``wrd``), or pieces of a sentencepiece model (``spm``).
"""

import argparse
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amae_plugin.errors import UserError, first_of, printable
from amae_plugin.files import reading

KINDS = ("ltr", "wrd", "spm")
CASES = ("lower", "upper", "keep")
PUNCTUATION = ("remove", "keep")
VOCAB_SIZE = 1000

_MODEL_NAME = "spm.model"
_LONGEST_BYTES = 1 << 24  # of a text; sentencepiece leaves longer ones out
_RESERVED = {"|": "which ends a word of letters", "\u2581": "which begins a word of sentencepiece"}
_JOINERS = "\u200c\u200d"  # format characters that are part of how Persian and the scripts of India are spelt
# What sentencepiece says of a number of pieces that it cannot learn.
_TOO_HIGH = re.compile(r"Please set it to a value <= (\d+)")
_TOO_LOW = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_LETTER = r"[^\W_]"
_APOSTROPHES = re.compile(rf"(?<={_LETTER})[\u2018\u2019\uff07`\u00b4](?={_LETTER})")  # what is typed for one in a word
_QUOTES = re.compile(rf"(?<!{_LETTER})'|'(?!{_LETTER})")


@dataclass(frozen=True)
class UnitFiles:
    """Units of the transcripts of a corpus.

    Attributes:
        labels: one of :data:`KINDS`, the end of the names of the files.
        symbols: the units of the dictionary, without fairseq's own.
        split: gives the units of a text.
        files: content of the files that all splits share, by name.
    """

    labels: str
    symbols: frozenset[str]
    split: Callable[[str], list[str]]
    files: Mapping[str, bytes]

    @classmethod
    def learn(
        cls, labels: str, train: Sequence[str], others: Sequence[str] = (), vocab_size: int = VOCAB_SIZE
    ) -> "UnitFiles":
        """List the units of texts, as counted in those of the training split, the most frequent first.

        Units that only other splits have are listed with a count of 0, so that their transcripts can be read back.

        Args:
            labels: one of :data:`KINDS`.
            train: texts of the training split; pieces are learned from them.
            others: texts of the other splits.
            vocab_size: number of pieces, with the four symbols that fairseq adds to a dictionary.

        Raises:
            UserError: there are no texts to learn from, or no such number of pieces can be learned from them.
        """
        if not any(train):
            raise UserError("train: no clip with a text can be read, so there are no units to learn")
        model = _learn_pieces(train, "".join(others), vocab_size) if labels == "spm" else b""
        split, known = _splitter(labels, model)
        counts = Counter(dict.fromkeys(known, 0))
        for text in train:
            counts.update(split(text))
        for text in others:
            counts.update(dict.fromkeys(split(text), 0))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        files = {f"dict.{labels}.txt": "".join(f"{unit} {count}\n" for unit, count in ordered).encode()}
        return cls(labels, frozenset(counts), split, files | ({_MODEL_NAME: model} if model else {}))

    @classmethod
    def read(cls, labels: str, folder: Path) -> "UnitFiles":
        """Read the units of other manifests.

        Raises:
            UserError: a file is missing or not what it should be.
        """
        from amae_plugin.data.transcripts import SPECIAL, Units

        units = Units.read(folder, labels)
        files = {}
        for name in (f"dict.{labels}.txt", *([_MODEL_NAME] if labels == "spm" else [])):
            with reading(folder / name, "the units", "it is a file of the manifests that the model was trained with"):
                files[name] = (folder / name).read_bytes()
        try:
            split, _ = _splitter(labels, files.get(_MODEL_NAME, b""))
        except RuntimeError:
            raise UserError(f"{folder / _MODEL_NAME}: not a model of sentencepiece") from None
        return cls(labels, frozenset(units.symbols[len(SPECIAL) :]), split, files)

    def line(self, text: str) -> str:
        """Return the line of a text in the label file."""
        return " ".join(self.split(text))

    def unknown(self, splits: Mapping[str, Iterable[str]]) -> list[str]:
        """Return a warning for each split whose texts have units that the dictionary lacks."""
        warnings = []
        for name, texts in splits.items():
            lacking = Counter(unit for text in texts for unit in self.split(text) if unit not in self.symbols)
            if lacking:
                shown = first_of([f"'{unit}'" for unit, _ in lacking.most_common()])
                warnings.append(
                    f"{name}: {lacking.total():,} units of {self.labels} are not in the dictionary, {len(lacking):,} "
                    f"different ones: {shown}; training refuses them unless task.on_unknown_unit=unk"
                )
        return warnings


def _splitter(labels: str, model: bytes) -> tuple[Callable[[str], list[str]], Iterable[str]]:
    """Return the function that splits a text into units, and the units that are known beforehand."""
    if labels == "wrd":
        return str.split, ()
    if labels == "ltr":
        return lambda text: list(f"{'|'.join(text.split())}|"), ()
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    pieces = range(processor.get_piece_size())
    plain = [number for number in pieces if not (processor.is_control(number) or processor.is_unknown(number))]
    return lambda text: processor.encode(text, out_type=str), [processor.id_to_piece(number) for number in plain]


def _learn_pieces(texts: Sequence[str], others: str, vocab_size: int) -> bytes:
    """Train a unigram model with fairseq's four symbols in their places.

    Its pieces spell texts as they are, all characters of *others* among them.
    """
    import sentencepiece

    from amae_plugin.data.transcripts import SPECIAL

    if vocab_size <= len(SPECIAL):
        raise UserError(f"--vocab-size {vocab_size}: must be above {len(SPECIAL)}, the number of fairseq's own symbols")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=1.0,
            required_chars="".join(sorted(set(others) - {" "})),
            normalization_rule_name="identity",
            max_sentence_length=_LONGEST_BYTES,
            minloglevel=2,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
        )
    except RuntimeError as error:
        if (most := _TOO_HIGH.search(str(error))) is not None:
            bound = f"at most {int(most[1]):,} for this training text"
        elif (least := _TOO_LOW.search(str(error))) is not None:
            bound = f"at least {int(least[1]):,}, as this training text has so many characters"
        else:
            raise
        raise UserError(f"--vocab-size {vocab_size}: must be {bound}") from None
    return model.getvalue()


def check_text(text: str) -> str | None:
    """Say what a text holds that no transcript can; None if nothing."""
    from amae_plugin.data.transcripts import SPECIAL

    for character in dict.fromkeys(text):
        if character in _RESERVED:
            return f"'{character}' in the text, {_RESERVED[character]}"
        if unicodedata.category(character) == "Cc":
            return f"the control character '{printable(character)}' in the text"
        if character == "\ufffd":
            return "U+FFFD in the text, which stands for a character that another program could not read"
    symbol = next((word for word in text.split() if word in SPECIAL), None)
    return f"'{symbol}' in the text, which is a symbol of fairseq" if symbol else None


def normalize(text: str, case: str = "keep", punctuation: str = "keep") -> str:
    """Write a text in one way: composed characters (NFC), single blanks, no characters that are not seen.

    Args:
        text: text that passes :func:`check_text`.
        case: one of :data:`CASES`.
        punctuation: one of :data:`PUNCTUATION`. With ``remove``, a blank takes the place of each punctuation mark and
            symbol, but an apostrophe between two letters stays, as ``'``.
    """
    text = unicodedata.normalize("NFC", text).replace("\u200b", " ")
    text = text.lower() if case == "lower" else text.upper() if case == "upper" else text
    if punctuation == "remove":
        text = _APOSTROPHES.sub("'", text)
        text = _QUOTES.sub(" ", text)
        text = text.translate({ord(c): " " for c in set(text) if unicodedata.category(c)[0] in "PS" and c != "'"})
        text = " ".join(word for word in text.split() if any(map(str.isalnum, word)))  # no rests of emoji
    text = text.translate({ord(c): None for c in set(text) if unicodedata.category(c) == "Cf" and c not in _JOINERS})
    return unicodedata.normalize("NFC", " ".join(text.split()))


def add_units(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the kinds of units, and where they come from; no transcripts are written by default if *default* is None."""
    add = parser.add_argument
    kinds = (
        f"write units: letters, words or spm's pieces; repeat it for several (default: {default or 'no transcripts'})"
    )
    add("--labels", action="append", choices=KINDS, help=kinds)
    add(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"learn this many pieces of spm from the training text (default: {VOCAB_SIZE})",
    )
    folder = "take dictionary and sentencepiece model from these manifests, as for testing a trained model"
    add("--dictionary", type=Path, metavar="DIR", help=folder)
