"""Find the audio files of a corpus, and tell what differs from the publisher's lists and counts."""

import argparse
import functools
import os
import stat
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amae_plugin.errors import SHOWN, UserError
from amae_plugin.files import is_file, is_folder, reading
from amae_plugin.progress import map_in_threads

AUDIO_EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "m4a", "mp4", "mkv", "webm")
VIDEO_EXTENSIONS = ("mp4", "mkv", "webm", "mov", "m4v", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp")

# What a system, an archiver or a file server puts beside the files of its user, and hides.
_HIDDEN_NAMES = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


@dataclass
class Found:
    """The audio files of a tree.

    Attributes:
        names: paths relative to the tree, sorted.
        duplicates: paths left out because they link to other files of the tree.
        hidden: folders and audio files left out because their names begin with a dot or are those of a system.
        problems: folders that cannot be read and links that lead nowhere, with the reason.
    """

    names: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def find_audio(folder: Path, extensions: Collection[str] = AUDIO_EXTENSIONS) -> Found:
    """Find the files of a tree that have one of the extensions, in either case.

    Symbolic links are followed last: a file that lies in the tree goes by its own name, and a loop of links ends. What
    is hidden stays hidden, but the folder itself may be.

    Raises:
        UserError: the folder does not exist or cannot be reached.
    """
    require_folder(folder)
    suffixes = _suffixes(extensions)
    found = Found()
    folders, links = deque([""]), deque[str]()
    seen: set[tuple[int, int]] = set()
    linked: set[tuple[int, int]] = set()  # files to which a symbolic link led

    def add(name: str, file: Path | os.DirEntry[str], is_link: bool = False) -> None:
        if not name.lower().endswith(suffixes):
            return
        try:
            status = file.stat()  # not DirEntry.inode(), which is made up where a folder is shared or remote
        except OSError as error:
            found.problems[name] = error.strerror or str(error)
            return
        identity = (status.st_dev, status.st_ino)
        is_known = identity in (seen if is_link or status.st_nlink > 1 else linked)
        (found.duplicates if is_known else found.names).append(name)
        seen.add(identity)
        if is_link:
            linked.add(identity)

    while folders or links:
        name = (folders or links).popleft()
        try:
            status = (folder / name).stat()
            identity = (status.st_dev, status.st_ino)
            if not stat.S_ISDIR(status.st_mode):
                add(name, folder / name, is_link=True)
            elif identity not in seen:
                seen.add(identity)
                with os.scandir(folder / name) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        path = f"{name}/{entry.name}" if name else entry.name
                        if is_hidden(entry.name):
                            if is_folder(folder / path) or entry.name.lower().endswith(suffixes):
                                found.hidden.append(path)
                        elif entry.is_symlink():
                            links.append(path)
                        elif entry.is_dir():
                            folders.append(path)
                        else:
                            add(path, entry)
        except OSError as error:
            found.problems[name or "."] = error.strerror or str(error)
    found.names.sort()
    return found


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name is hidden from its user."""
    return name.startswith(".") or name in _HIDDEN_NAMES


def require_folder(folder: Path) -> None:
    """Refuse a path that is no folder.

    Raises:
        UserError: there is no such folder, or it cannot be reached.
    """
    try:
        found = folder.is_dir()
    except OSError as error:
        raise UserError(f"{folder}: cannot be reached ({error.strerror or error})") from None
    if not found:
        raise UserError(f"{folder}: no such folder")


def list_audio(folder: Path, pattern: str) -> tuple[list[str], int]:
    """List the audio files that match a pattern, relative to *folder* and sorted, without hidden ones.

    Returns:
        The files, and the number of copies in another format that are left out: of files whose names differ in the
        extension alone, the one that :func:`find_listed` finds is taken.
    """
    suffixes = _suffixes(AUDIO_EXTENSIONS)
    paths = [path for path in folder.glob(pattern) if not path.name.startswith(".") and path.suffix.lower() in suffixes]
    kept: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: suffixes.index(path.suffix.lower())):
        kept.setdefault(path.with_suffix(""), path)
    return sorted(path.relative_to(folder).as_posix() for path in kept.values()), len(paths) - len(kept)


def absolute_path(path: Path) -> Path:
    """Return the absolute path without ``..``, as a manifest takes it."""
    return Path(os.path.normpath(path.absolute()))


def find_root(root: Path, marker: str | tuple[str, ...], corpus: str) -> Path:
    """Find the folder that holds *marker* (a pattern, or one of several): *root*, or the one folder in it that does.

    Raises:
        UserError: no folder holds it, or several do; *root* cannot be read.
    """
    require_folder(root)
    markers = (marker,) if isinstance(marker, str) else marker

    def is_root(folder: Path) -> bool:
        return any(any(folder.glob(marker)) for marker in markers)

    with reading(root, "the folder"):
        folders = [root] if is_root(root) else sorted(root.iterdir())
    found = [folder for folder in folders if is_folder(folder) and is_root(folder)]
    if not found:
        raise UserError(f"{root}: not the layout of {corpus}, which has {' or '.join(markers)} there")
    if len(found) > 1:
        raise UserError(f"{root} holds {corpus} more than once; choose one of {', '.join(map(str, found))}")
    return found[0]


def add_allow_missing(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-missing``."""
    parser.add_argument("--allow-missing", action="store_true", help="leave out listed files that do not exist")


def compare_sizes(found: Mapping[str, Collection], published: Mapping[str, int], what: str = "clips") -> list[str]:
    """Return a warning for each part of a corpus that has more or fewer members than published."""
    return [
        f"{part}: {count:,} {what}, as published there are {size:,}"
        for part, size in published.items()
        if (count := len(found.get(part, ()))) != size
    ]


def find_listed(
    root: Path, names: Sequence[str], listed_in: str, allow_missing: bool
) -> tuple[dict[str, str], list[str]]:
    """Find listed files. One that was converted to another format, and so has another extension, counts as found.

    Args:
        root: folder that the names are relative to.
        names: files as the publisher lists them.
        listed_in: name of the list, for the message.
        allow_missing: whether missing files are left out.

    Returns:
        The file of each listed name that was found, and warnings.

    Raises:
        UserError: files are missing although *allow_missing* is False.
    """
    find = functools.partial(_find, root)
    paths = dict(map_in_threads(find, names, desc="looking for files", unit="file", delay=5))
    found = {name: path for name, path in paths.items() if path is not None}
    missing = [name for name in paths if name not in found]
    return found, report_missing(missing, len(paths), f"listed in {listed_in} are not in {root}", allow_missing)


def report_missing(missing: Sequence[str], listed: int, what: str, allow_missing: bool) -> list[str]:
    """Return a warning that counts the missing files, or an empty list if none are missing.

    Raises:
        UserError: files are missing although *allow_missing* is False; names the first ten of them.
    """
    if not missing:
        return []
    message = f"{len(missing):,} of {listed:,} files {what}"
    if allow_missing:
        return [f"{message}; left out"]
    shown = "".join(f"\n  {name}" for name in missing[:SHOWN])
    more = f"\n  ... and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    raise UserError(f"{message}:{shown}{more}\nGo on without them with --allow-missing")


def _suffixes(extensions: Collection[str]) -> tuple[str, ...]:
    return tuple(f".{extension.lower().lstrip('.')}" for extension in extensions)


def _find(root: Path, name: str) -> str | None:
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - Path has no way to do this to a string
    candidates = (name, *(f"{stem}.{extension}" for extension in AUDIO_EXTENSIONS))
    return next((candidate for candidate in candidates if is_file(root / candidate)), None)
