"""VoxCeleb1 (Nagrani et al. 2017): ``wav/<speaker>/<video>/<n>.wav``, identification and verification lists.

``iden_split.txt`` has a line ``<1|2|3> <speaker>/<video>/<n>.wav`` for each clip of the training, validation and test
split; the classes are the speakers of the list, sorted. ``veri_test.txt`` has a line ``<0|1> <clip> <clip>`` for each
pair, 1 where both clips are of one speaker.
"""

import argparse
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from amae_plugin.corpora.audio_files import add_allow_missing, compare_sizes, find_listed, require_folder
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.data.lines import bad_lines, read_lines
from amae_plugin.errors import UserError
from amae_plugin.files import is_file

_TRIALS = "trials"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_PUBLISHED = {"train": 138_361, "valid": 6_904, "test": 8_251}
_PUBLISHED_SPEAKERS = 1_251
# Where the folders of the speakers lie: in the one given, in wav/ below it, or in dev/wav/ and test/wav/ where the two
# archives were kept apart.
_PLACES = ("*", "*/*", "*/*/*")


def build(
    root: Path, out: Path, split: Path, *, trials: Path | None = None, allow_missing: bool = False, workers: int = 0
) -> Corpus:
    """Write ``train``, ``valid`` and ``test`` for speaker identification and, with *trials*, the verification task.

    That is ``trials.tsv``, a manifest without labels of all clips of the pairs, and ``trials.txt``, the pairs by the
    names of that manifest.

    Args:
        root: folder of the speakers, or one above it.
        out: folder of the manifests.
        split: ``iden_split.txt``; if that file does not exist, it is looked for in *root*.
        trials: ``veri_test.txt``, looked for in the same way.
        allow_missing: whether listed files that do not exist are left out, with the pairs that hold one.
        workers: number of threads that read headers.

    Raises:
        UserError: a list cannot be read or has a malformed line, or listed files are missing.
    """
    from amae_plugin.data.trials import read_trial_lines

    require_folder(root)
    listed = _read_split(_in_or_at(split, root))
    pairs = [] if trials is None else read_trial_lines(_in_or_at(trials, root))
    names = [name for part in listed.values() for name in part]
    paths = _locate(root, [*names, *(_normalize(name) for _, _, pair in pairs for name in pair)])
    found, warnings = find_listed(root, [paths[name] for name in names], split.name, allow_missing)
    splits = {
        part: [LabelledClip(found[paths[name]], (_speaker(name),)) for name in listed[part] if paths[name] in found]
        for part in listed
    }
    speakers = sorted(set(map(_speaker, names)))
    warnings += compare_sizes(splits, _PUBLISHED)
    warnings += compare_sizes({"classes": speakers}, {"classes": _PUBLISHED_SPEAKERS}, "speakers")
    extras = {}
    in_pairs = sorted({_normalize(name) for _, _, pair in pairs for name in pair})
    in_trials, missing = find_listed(root, [paths[name] for name in in_pairs], str(trials), allow_missing)
    # Blanks separate the names, and bytes that are not UTF-8 could not be read back.
    if odd := [path for path in in_trials.values() if path.encode("utf-8", "ignore").decode().split() != [path]]:
        reason = "trials cannot name a path that holds a blank or is not UTF-8"
        raise UserError(f"{root / odd[0]}: {reason}; give the folder of the speakers itself")
    scan = read_headers(root, list(dict.fromkeys([*found.values(), *in_trials.values()])), workers)
    if trials is not None:
        splits[_TRIALS] = [LabelledClip(path) for path in in_trials.values()]
        both = [(same, *(in_trials.get(paths[_normalize(name)]) for name in pair)) for _, same, pair in pairs]
        found_both = [pair for pair in both if all(pair[1:])]
        kept = [pair for pair in found_both if all(path in scan.headers for path in pair[1:])]
        if unreadable := len(found_both) - len(kept):
            missing.append(f"trials: {unreadable:,} pairs have a clip that cannot be read; left out")
        extras[f"{_TRIALS}.txt"] = "".join(f"{same} {left} {right}\n" for same, left, right in kept).encode()
    warnings += missing
    return write_corpus(root, {out: splits}, speakers, warnings=warnings, extras=extras, scan=scan)


def _in_or_at(path: Path, root: Path) -> Path:
    return path if is_file(path) or not is_file(root / path) else root / path


def _normalize(name: str) -> str:
    """Return ``<speaker>/<video>/<n>.wav`` for a name that may begin with folders above."""
    return "/".join(PurePosixPath(name).parts[-3:])


def _speaker(name: str) -> str:
    return name.split("/")[0]


def _read_split(path: Path) -> dict[str, list[str]]:
    """Read the names of the clips of each split."""
    listed: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    problems: dict[int, str] = {}
    for number, line in enumerate(read_lines(path, "the split", "VoxCeleb calls it iden_split.txt"), 1):
        fields = line.split()
        if len(fields) == 2 and fields[0] in _SPLITS and "/" in fields[1]:
            listed[_SPLITS[fields[0]]].append(_normalize(fields[1]))
        elif fields:
            problems[number] = f"expected '<1|2|3> <speaker>/<video>/<n>.wav', found '{line}'"
    if problems:
        raise bad_lines(path, problems, "correct it")
    if not listed["train"]:
        raise UserError(f"{path}: holds no clip for training, whose lines begin with 1")
    return listed


def _locate(root: Path, names: Collection[str]) -> dict[str, str]:
    """Return the path of each clip below *root*, where the folder of its speaker was found."""
    folders = {_speaker(name): "" for name in names}
    for pattern in _PLACES:
        for folder in sorted(folder for folder in root.glob(pattern) if folder.name in folders):
            folders[folder.name] = folders[folder.name] or str(folder.parent.relative_to(root))
        if all(folders.values()):
            break
    return {name: str(PurePosixPath(folders[_speaker(name)], name)) for name in names}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="take this folder, of the speakers or one above it")
    split = "divide the clips by this list, which may lie in ROOT (default: %(default)s)"
    parser.add_argument("--split", type=Path, default="iden_split.txt", metavar="FILE", help=split)
    parser.add_argument(
        "--trials",
        type=Path,
        metavar="FILE",
        help="write the trials of this list as well, veri_test.txt, which may lie in ROOT",
    )
    add_allow_missing(parser)


LAYOUT = Layout("voxceleb1", "list VoxCeleb1: speaker identification, and verification trials", _add_arguments, build)
