"""Any tree of sounds and pictures, which belong together by their names, split at random.

A sound belongs to the picture of its own name, or of the longest beginning of it that ends before ``_`` or ``.``, in
the same folder: ``cat.ogg`` and ``cat_desc_fr.ogg`` belong to ``cat.png``, unless there is a ``cat_desc.png``. All
sounds of a picture are in one split, so no picture of a test was seen in training.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from amae_plugin.corpora.audio_files import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, absolute_path, find_audio
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, check_pictures, read_headers, write_corpus
from amae_plugin.corpora.folder import add_splits, group_by_class, left_out, read_classes, without_clips
from amae_plugin.corpora.splits import split_classes
from amae_plugin.errors import UserError, first_of

SOUND_EXTENSIONS = tuple(extension for extension in AUDIO_EXTENSIONS if extension not in VIDEO_EXTENSIONS)
# Of several pictures of one name, the first is taken. The last three are found so that their reasons are listed.
_STILL_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "avif", "tif", "tiff", "bmp", "gif")
PICTURE_EXTENSIONS = (*_STILL_EXTENSIONS, *VIDEO_EXTENSIONS, "svg", "svgz", "heic")
_END = re.compile(r"[_.][^_./]*$")


def build(
    folder: Path,
    out: Path,
    *,
    pictures: Path | None = None,
    labels: bool = False,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.0,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """List the sounds that have a picture.

    A sound or picture that cannot be decoded is left out.

    Args:
        folder: root of the sounds.
        out: folder of the manifests.
        pictures: root of the pictures, in which a sound's has the place that the sound has in *folder*; *folder* if
            None.
        labels: whether the topmost folders are classes, see :func:`amae_plugin.corpora.folder.build`.
        valid_fraction: share of the pictures held out for validation, each with all of its sounds.
        test_fraction: share held out for testing.
        seed: seed of the choice of pictures held out.
        workers: number of threads that read the files.

    Raises:
        UserError: a folder does not exist, or there is no pair of files that can be read; with *labels*, see
            :func:`amae_plugin.corpora.folder.build`.
    """
    found = find_audio(folder, SOUND_EXTENSIONS)
    # Links between pictures are pictures of their own, as a sound may bear their names.
    found_pictures = find_audio(pictures or folder, PICTURE_EXTENSIONS)
    by_stem = _first_of_each_name([*found_pictures.names, *found_pictures.duplicates])
    pairs = {name: picture for name in found.names if (picture := _find_picture(name, by_stem))}
    if not pairs:
        counts = f"{len(found.names):,} sounds and {len(by_stem):,} pictures"
        raise UserError(f"{folder}: of {counts}, none belong together; a picture bears the name of its sound")
    classes = read_classes(folder, pairs) if labels else []
    prefix = "" if pictures is None else f"{absolute_path(pictures)}/"
    unreadable = check_pictures(pictures or folder, sorted(set(pairs.values())), workers)
    seen = {name: picture for name, picture in pairs.items() if picture not in unreadable}
    scan = read_headers(folder, list(seen), workers)
    for problems in (unreadable, found_pictures.problems):
        scan.unreadable.update({f"{prefix}{name}": reason for name, reason in problems.items()})
    scan.unreadable.update(found.problems)

    sounds: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for label, group in group_by_class(scan.headers, classes).items():
        for name in group:
            sounds.setdefault((label, seen[name]), []).append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, picture in sounds:
        groups.setdefault(label, []).append(picture)
    splits, few = split_classes(groups, {"valid": valid_fraction, "test": test_fraction}, seed)
    clips = {
        split: [
            LabelledClip(name, label, picture=f"{prefix}{picture}")
            for picture, label in part.items()
            for name in sounds[label, picture]
        ]
        for split, part in splits.items()
    }
    readable = [name for name in classes if (name,) in groups]
    warnings = [*left_out(found), *without_clips(classes, groups), *few]
    for what, alone in (
        ("sounds without a picture", set(found.names) - set(pairs)),
        ("pictures without a sound", set(by_stem.values()) - set(pairs.values())),
    ):
        if alone:
            warnings.append(f"{what}, left out: {len(alone):,}: {first_of(sorted(alone))}")
    return write_corpus(folder, {out: clips}, readable, warnings=warnings, scan=scan)


def picture_beside(sound: Path) -> Path | None:
    """Find the picture in a sound's folder that belongs to it by its name; None if there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    names = [path.name for path in sound.parent.iterdir() if path.suffix.lower()[1:] in PICTURE_EXTENSIONS]
    found = _find_picture(sound.name, _first_of_each_name(names))
    return None if found is None else sound.parent / found


def _first_of_each_name(pictures: Iterable[str]) -> dict[str, str]:
    """Choose one picture of each name without extension."""

    def rank(name: str) -> tuple[int, str]:
        return PICTURE_EXTENSIONS.index(name.rpartition(".")[2].lower()), name

    return {name.rpartition(".")[0]: name for name in sorted(pictures, key=rank, reverse=True)}


def _find_picture(sound: str, by_stem: Mapping[str, str]) -> str | None:
    """Find the picture of a sound by the longest stem that is a beginning of its name."""
    stem = _END.sub("", sound)
    while stem not in by_stem:
        shorter = _END.sub("", stem)
        if shorter == stem:
            return None
        stem = shorter
    return by_stem[stem]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="list the sounds of this tree, and its pictures")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="take the pictures from this tree instead")
    add_splits(parser)


LAYOUT = Layout("pairs", "list any tree of sounds and their pictures, split at random", _add_arguments, build)
