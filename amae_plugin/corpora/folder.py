"""Any tree of audio files, split at random; with labels, its topmost folders are the classes."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path

from amae_plugin.corpora.audio_files import AUDIO_EXTENSIONS, Found, find_audio
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.corpora.splits import SPLIT_OF, add_split_seed, split_classes
from amae_plugin.errors import UserError, first_of


def build(
    folder: Path,
    out: Path,
    *,
    labels: bool = False,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    extensions: Collection[str] = AUDIO_EXTENSIONS,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """Split a tree; with *labels*, each class on its own. A class without a readable clip is left out.

    Args:
        folder: root of the tree.
        out: folder of the manifests.
        labels: whether the topmost folders are classes.
        valid_fraction: share of the files held out for validation.
        test_fraction: share held out for testing, with *labels* only.
        extensions: extensions of the audio files.
        seed: seed of the choice of files held out.
        workers: number of threads that read headers.

    Raises:
        UserError: the folder does not exist or holds no readable audio; a fraction cannot be met; with *labels*, a file
            lies in no class, or a folder cannot be a class: its name holds a comma or is not UTF-8, or all are names of
            splits.
    """
    if test_fraction and not labels:
        raise UserError("--test-fraction needs --labels: what has no labels is not tested on")
    found = find_audio(folder, extensions)
    if not found.names:
        looked = f"looked for the extensions {' '.join(extensions)} (choose others with --ext)"
        raise UserError(f"{folder}: no audio; {looked}")
    classes = read_classes(folder, found.names) if labels else []
    warnings = left_out(found)
    scan = read_headers(folder, found.names, workers)
    scan.unreadable.update(found.problems)
    groups = group_by_class(scan.headers, classes)
    readable = [name for name in classes if (name,) in groups]
    warnings += without_clips(classes, groups)
    splits, few = split_classes(groups, {"valid": valid_fraction, "test": test_fraction}, seed)
    clips = {split: [LabelledClip(name, label) for name, label in part.items()] for split, part in splits.items()}
    return write_corpus(folder, {out: clips}, readable, warnings=[*warnings, *few], scan=scan)


def left_out(found: Found) -> list[str]:
    """Return warnings of what was found in a tree and left out."""
    links = len(found.duplicates)
    warnings = [f"links to other files of the tree, left out: {links:,}"] if links else []
    if found.hidden:
        warnings.append(f"hidden, or made by a system, and left out: {first_of(found.hidden)}")
    return warnings


def group_by_class(names: Iterable[str], classes: Collection[str]) -> dict[tuple[str, ...], list[str]]:
    """Group files by their topmost folders if there are classes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault((name.split("/")[0],) if classes else (), []).append(name)
    return groups


def without_clips(classes: Iterable[str], groups: Collection[tuple[str, ...]]) -> list[str]:
    """Return a warning for each class of which no clip can be read."""
    return [f"{name}: none of its clips can be read, so it is no class" for name in classes if (name,) not in groups]


def read_classes(folder: Path, names: Iterable[str]) -> list[str]:
    """List the topmost folders of a tree as classes.

    Raises:
        UserError: a file lies in none, or a folder cannot be a class; see :func:`build`.
    """
    from amae_plugin.data.labels import check_class

    stray = [name for name in names if "/" not in name]
    if stray:
        raise UserError(f"{folder / stray[0]} lies in no class; with labels, every clip must lie in a folder")
    classes = list(dict.fromkeys(name.split("/")[0] for name in names))
    if {name.lower() for name in classes} <= SPLIT_OF.keys():
        found = ", ".join(classes)
        raise UserError(f"{folder}: its folders {found} look like splits; the classes must be the topmost folders")
    for name in classes:
        check_class(name, folder / name)  # before headers are read, which takes long
    return classes


def add_splits(parser: argparse.ArgumentParser, test: str = "hold out this share for testing") -> None:
    """Add the options by which a tree is split; *test* explains ``--test-fraction``."""
    add = parser.add_argument
    add("--labels", action="store_true", help="take the topmost folders of the tree for classes")
    add(
        "--valid-fraction",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="hold out this share of the files (default: %(default)s)",
    )
    add("--test-fraction", type=float, default=0.0, metavar="SHARE", help=f"{test} (default: %(default)s)")
    add_split_seed(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add, extensions = parser.add_argument, f"take files with these extensions (default: {' '.join(AUDIO_EXTENSIONS)})"
    add("folder", type=Path, metavar="DIR", help="list this tree; symbolic links are followed")
    add_splits(parser, "hold out this share for testing, with --labels")
    add("--ext", dest="extensions", nargs="+", default=AUDIO_EXTENSIONS, metavar="EXTENSION", help=extensions)


LAYOUT = Layout("folder", "list any tree of audio files, split at random", _add_arguments, build)
