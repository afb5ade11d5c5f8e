"""Tables of clips and what is said in them: ``path<TAB>text`` in each line, no header.

Paths are relative to the folder of the table. A split has a table of its own, or is drawn at random from that of the
training split.
"""

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from amae_plugin.corpora.audio_files import absolute_path, add_allow_missing, find_listed, report_missing
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, prepare_units, read_headers, write_corpus
from amae_plugin.corpora.splits import add_split_seed, split_names
from amae_plugin.corpora.transcripts import CASES, PUNCTUATION, add_units, check_text, normalize
from amae_plugin.data.lines import bad_lines, read_lines
from amae_plugin.errors import UserError
from amae_plugin.files import is_file

SPLITS = ("train", "valid", "test")

_FORMAT_HELP = "each line must be '<path><TAB><text>', without a header"


class _Row(NamedTuple):
    """Line of a table: its number, the path of the clip as written, and the normalised text."""

    number: int
    path: str
    text: str


def build(
    tables: Sequence[str],
    out: Path,
    *,
    labels: Sequence[str] | None = None,
    vocab_size: int | None = None,
    dictionary: Path | None = None,
    case: str = "lower",
    punctuation: str = "remove",
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    allow_missing: bool = False,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """Write the manifests of tables and their transcripts.

    Args:
        tables: ``FILE`` for the training split, or ``SPLIT=FILE`` with one of :data:`SPLITS`.
        out: folder of the manifests.
        labels: kinds of units; letters if None.
        vocab_size: number of pieces to learn, for ``spm``.
        dictionary: folder of other manifests, whose units are taken.
        case: how letters are written, see :func:`~amae_plugin.corpora.transcripts.normalize`.
        punctuation: what becomes of punctuation, see there.
        valid_fraction: share of the training clips held out for validation, without a table of that split.
        test_fraction: share held out for testing, without a table of that split.
        allow_missing: whether clips that do not exist are left out.
        seed: seed of the choice of clips held out.
        workers: number of threads that read headers.

    Raises:
        UserError: a table has bad lines, two lines name one clip, there is nothing to learn units from, or a fraction
            cannot be met.
    """
    paths = _read_arguments(tables)
    if dictionary is None and "train" not in paths:
        raise UserError("units are learned from training texts: give a table of train as well, or --dictionary DIR")
    root = Path(os.path.commonpath([absolute_path(path.parent) for path in paths.values()]))
    texts: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    warnings: list[str] = []
    for split, path in paths.items():
        found, more = _read_table(path, root, texts, case, punctuation, allow_missing)
        names[split] = list(found)
        texts |= found
        warnings += more
    scan = read_headers(root, list(texts), workers)
    readable = {split: [name for name in part if name in scan.headers] for split, part in names.items()}
    shares = {"valid": valid_fraction, "test": test_fraction}
    drawn = {split: share for split, share in shares.items() if share and split not in paths}
    if drawn and readable.get("train"):
        readable |= split_names(readable["train"], drawn, seed)
    splits = {
        split: [LabelledClip(name, text=texts[name]) for name in readable[split]]
        for split in SPLITS
        if split in readable
    }
    units, more = prepare_units(splits, labels or ("ltr",), vocab_size, dictionary)
    if digits := [name for name, text in texts.items() if any(map(str.isdigit, text))]:
        which = f"{len(digits):,} texts hold digits, the first of them that of {digits[0]}"
        warnings.append(f"{which}; write numbers in words, as they are spoken")
    return write_corpus(root, {out: splits}, units=units, warnings=[*warnings, *more], scan=scan)


def _read_arguments(tables: Sequence[str]) -> dict[str, Path]:
    """Return the table of each split."""
    paths: dict[str, Path] = {}
    for argument in tables:
        split, equals, path = argument.partition("=")
        if not equals or is_file(argument):
            split, path = "train", argument
        if split not in SPLITS:
            raise UserError(f"{argument}: a table is FILE, or SPLIT=FILE with the split {', '.join(SPLITS)}")
        if split in paths:
            raise UserError(f"{argument}: {paths[split]} is the table of {split} already")
        paths[split] = Path(path)
    return paths


def _read_table(
    path: Path, root: Path, before: Mapping[str, str], case: str, punctuation: str, allow_missing: bool
) -> tuple[dict[str, str], list[str]]:
    """Read the text of each clip, by its path in a manifest of *root*, and warnings.

    Args:
        path: the table.
        root: root of the manifests.
        before: clips of the tables before.
        case: see :func:`build`.
        punctuation: see :func:`build`.
        allow_missing: see :func:`build`.
    """
    rows = _read_rows(path, case, punctuation)
    names = {row.number: _name(path.parent / row.path, root) for row in rows}
    found, _ = find_listed(root, list(dict.fromkeys(names.values())), path.name, allow_missing=True)
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    missing: list[str] = []
    problems: dict[int, str] = {}
    for row in rows:
        name = found.get(names[row.number])
        if name is None:
            missing.append(f"line {row.number}: {row.path}")
        elif name in lines:
            problems[row.number] = f"'{row.path}' is the clip of line {lines[name]} too"
        elif name in before:
            problems[row.number] = f"'{row.path}' is a clip of another table too"
        else:
            texts[name], lines[name] = row.text, row.number
    warnings = report_missing(
        missing, len(rows), f"listed in {path} are not in {absolute_path(path.parent)}", allow_missing
    )
    if problems:
        raise bad_lines(path, problems, "a clip has one text; take one of the lines out")
    return texts, warnings


def _name(path: Path, root: Path) -> str:
    """Name a clip as a manifest of *root* does: relative to it where it lies there, else by its absolute path."""
    whole = absolute_path(path)
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _read_rows(path: Path, case: str, punctuation: str) -> list[_Row]:
    """Read the lines of a table and normalise their texts.

    Raises:
        UserError: the file cannot be read or is empty, or a line holds no path or no text that can be a transcript.
    """
    lines = read_lines(path, "the table")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: empty; {_FORMAT_HELP}")
    rows: list[_Row] = []
    problems: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        name, *columns = line.split("\t")
        if not line.strip():
            problems[number] = "empty"
        elif len(columns) != 1:
            problems[number] = f"{len(columns) or 'no'} tab{'s' if columns else ''} in '{textwrap.shorten(line, 80)}'"
        elif not name.strip():
            problems[number] = f"no path before the tab in '{line}'"
        elif "\0" in name:
            problems[number] = "a NUL character in the path"
        elif not columns[0].strip():
            problems[number] = f"no text for '{name}'"
        elif problem := check_text(columns[0]):
            problems[number] = problem
        elif not (text := normalize(columns[0], case, punctuation)):
            problems[number] = f"nothing but punctuation in the text '{columns[0]}'"
        else:
            rows.append(_Row(number, name, text))
    if problems:
        raise bad_lines(path, problems, f"correct it or take it out; {_FORMAT_HELP}")
    return rows


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    table = f"read this table of the training split, or of the split that is named: {', '.join(SPLITS)}"
    add("tables", nargs="+", metavar="[SPLIT=]TSV", help=table)
    add_units(parser, "ltr")
    add("--case", choices=CASES, default="lower", help="write letters so (default: %(default)s)")
    signs = "remove or keep punctuation and symbols, but for apostrophes in words (default: %(default)s)"
    add("--punctuation", choices=PUNCTUATION, default="remove", help=signs)
    held_out = "hold out this share of the training clips for {} if it has no table (default: %(default)s)"
    add("--valid-fraction", type=float, default=0.05, metavar="SHARE", help=held_out.format("validation"))
    add("--test-fraction", type=float, default=0.0, metavar="SHARE", help=held_out.format("testing"))
    add_split_seed(parser)
    add_allow_missing(parser)


LAYOUT = Layout("text", "list clips of your own with their texts, for speech recognition", _add_arguments, build)
