"""Manifests of any tree of audio files, split at random into training and validation."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amae_plugin.corpora.headers import Scan, Summary, read_headers, write_splits
from amae_plugin.errors import UserError

AUDIO_EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "m4a", "mp4", "mkv", "webm")


@dataclass
class Found:
    """The audio files of a tree.

    Attributes:
        names: paths relative to the tree, sorted.
        problems: folders and links that lead nowhere, with the reason.
        duplicates: files left out because they are links to others in the tree.
    """

    names: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0


def find_audio(folder: Path, extensions: Collection[str] = AUDIO_EXTENSIONS) -> Found:
    """Find the files with one of the extensions (in either case) in a tree.

    Symbolic links are followed, after everything that is really there, so that a file is listed once and under its own
    name, and a loop of links ends.
    """
    suffixes = tuple("." + extension.lower().lstrip(".") for extension in extensions)
    found = Found()
    folders: deque[str] = deque([""])
    links: deque[str] = deque()
    seen: set[tuple[int, int]] = set()

    def add(name: str, key: tuple[int, int]) -> None:
        if key in seen:
            found.duplicates += 1
        else:
            seen.add(key)
            found.names.append(name)

    while folders or links:
        try:
            if not folders:
                name = links.popleft()
                status = (folder / name).stat()
                if (folder / name).is_dir():
                    folders.append(name)
                elif name.lower().endswith(suffixes):
                    add(name, (status.st_dev, status.st_ino))
                continue
            name = folders.popleft()
            status = (folder / name).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    inner = f"{name}/{entry.name}" if name else entry.name
                    if entry.is_symlink():
                        links.append(inner)
                    elif entry.is_dir():
                        folders.append(inner)
                    elif entry.name.lower().endswith(suffixes):
                        add(inner, (status.st_dev, entry.inode()))
        except OSError as error:
            found.problems[name or "."] = error.strerror or str(error)
    found.names.sort()
    return found


def split_names(names: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Choose files at random for each split of *fractions*; ``train`` gets the rest.

    The choice orders the names by a hash of seed and name, so it is the same on every machine and hardly changes when
    files are added. A fraction above 0 gives at least one file, and ``train`` keeps at least one.

    Raises:
        UserError: the fractions are not below 1 together, or there are fewer files than splits.
    """
    used = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if any(fraction < 0 for fraction in fractions.values()) or sum(used.values()) >= 1:
        raise UserError(f"fractions {dict(fractions)}: each must be 0 or more, and together below 1")
    if len(names) < len(used) + 1:
        raise UserError(f"{len(names)} audio files cannot be split into {len(used) + 1} parts; add files or use 0")
    shuffled = sorted(
        names, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
    )
    splits: dict[str, list[str]] = {"train": []}
    first = 0
    for position, (split, fraction) in enumerate(used.items()):
        for_others = len(used) - position  # one each for the splits after this one, and for train
        count = min(max(1, round(len(names) * fraction)), len(names) - first - for_others)
        splits[split] = sorted(shuffled[first : first + count])
        first += count
    splits["train"] = sorted(shuffled[first:])
    return splits


def build(
    folder: Path,
    out: Path,
    valid_fraction: float = 0.05,
    extensions: Collection[str] = AUDIO_EXTENSIONS,
    seed: int = 1,
    workers: int | None = None,
) -> tuple[Summary, int]:
    """Write ``train.tsv`` and ``valid.tsv`` for a tree of audio into *out*.

    Returns:
        The summary, and the number of files left out because they are links to others.

    Raises:
        UserError: the folder does not exist or holds no readable audio, or *out* cannot be written.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = find_audio(folder, extensions)
    if not found.names:
        raise UserError(
            f"{folder}: no audio; looked for the extensions {' '.join(extensions)} (choose others with --ext)"
        )
    scan = read_headers(folder, found.names, workers)
    scan = Scan(scan.headers, {**scan.unreadable, **found.problems})
    splits = split_names(list(scan.headers), {"valid": valid_fraction}, seed) if scan.headers else {}
    return write_splits(out, folder, splits, scan), found.duplicates
