"""LibriSpeech (Panayotov et al. 2015): ``<part>/<speaker>/<chapter>/*.flac`` and ``<speaker>-<chapter>.trans.txt``.

The parts ``train-*`` are the training split, ``dev-*`` the validation split and ``test-*`` the test split. There are no
classes, since the speakers of validation and test are not those of training. The transcripts serve speech recognition.
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from amae_plugin.corpora.audio_files import add_allow_missing, compare_sizes, find_audio, find_root, report_missing
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, prepare_units, read_headers, write_corpus
from amae_plugin.corpora.splits import split_names
from amae_plugin.corpora.transcripts import add_units, check_text, normalize
from amae_plugin.data.lines import bad_lines, read_lines
from amae_plugin.errors import UserError
from amae_plugin.files import is_folder

_SPLITS = {"train": "train", "dev": "valid", "test": "test"}
_PUBLISHED = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
_VALID_FRACTION = 0.01


def build(
    root: Path,
    out: Path,
    *,
    labels: Sequence[str] | None = None,
    vocab_size: int | None = None,
    dictionary: Path | None = None,
    parts: Collection[str] | None = None,
    allow_missing: bool = False,
    seed: int = 1,
    workers: int = 0,
) -> Corpus:
    """Write ``train``, ``valid`` and, if the corpus has such a part, ``test``.

    Args:
        root: folder ``LibriSpeech`` of the unpacked archives, or the one that holds it; some parts suffice.
        out: folder of the manifests.
        labels: kinds of units of the transcripts; without transcripts if None.
        vocab_size: number of pieces to learn, for ``spm``.
        dictionary: folder of other manifests, whose units are taken.
        parts: names of the parts to take; all that are there if None.
        allow_missing: whether clips without a transcript are left out.
        seed: seed of the draw of 1% of the training clips, which are held out if there is no ``dev-*`` part.
        workers: number of threads that read headers.

    Raises:
        UserError: the folder has another layout, or holds nothing to train on; a transcript is missing or malformed.
    """
    root = find_root(root, tuple(f"{prefix}-*/[0-9]*" for prefix in _SPLITS), "LibriSpeech")
    absent = [name for name in parts or () if not is_folder(root / name)]
    if absent:
        raise UserError(f"--parts {' '.join(absent)}: not in {root}")
    found_in: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    warnings = []
    for prefix, split in _SPLITS.items():
        for folder in sorted(path for path in root.glob(f"{prefix}-*") if is_folder(path)):
            if parts is not None and folder.name not in parts:
                continue
            found = find_audio(folder)
            warnings += [f"{folder.name}/{name}: {reason}; left out" for name, reason in found.problems.items()]
            found_in[folder.name] = [f"{folder.name}/{name}" for name in found.names]
            splits[split] += found_in[folder.name]
    warnings += compare_sizes(found_in, {part: size for part, size in _PUBLISHED.items() if part in found_in})
    if not splits["train"] and dictionary is None:
        raise UserError(f"{root}: no audio in its train-* folders")
    if labels is None and (vocab_size is not None or dictionary is not None):
        raise UserError("--vocab-size and --dictionary are for transcripts: say --labels ltr, wrd or spm")
    texts: dict[str, str] = {}
    if labels is not None:
        texts, more = _read_texts(root, [name for names in splits.values() for name in names], allow_missing)
        splits = {split: [name for name in names if name in texts] for split, names in splits.items()}
        warnings += more
    scan = read_headers(root, [name for names in splits.values() for name in names], workers)
    readable = [name for name in splits["train"] if name in scan.headers]
    if readable and not splits["valid"]:
        splits.update(split_names(readable, {"valid": _VALID_FRACTION}, seed))
        warnings.append(f"valid: no dev-* part is there, so {len(splits['valid']):,} clips of train are held out")
    clips = {
        split: [LabelledClip(name, text=texts.get(name, "")) for name in names if name in scan.headers]
        for split, names in splits.items()
        if names
    }
    units, more = prepare_units(clips, labels or (), vocab_size, dictionary)
    return write_corpus(root, {out: clips}, units=units, warnings=[*warnings, *more], scan=scan)


def _read_texts(root: Path, names: Sequence[str], allow_missing: bool) -> tuple[dict[str, str], list[str]]:
    """Read the text of each clip in its chapter's list, and warnings."""
    texts: dict[str, str] = {}
    for chapter in dict.fromkeys(Path(name).parent for name in names):
        path = root / chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        problems = {}
        for number, line in enumerate(read_lines(path, "the transcripts"), 1):
            identifier, _, text = line.strip().partition(" ")
            if problem := check_text(text) if text.strip() else identifier and f"no text for '{identifier}'":
                problems[number] = problem
            texts[f"{chapter.as_posix()}/{identifier}"] = normalize(text)
        if problems:
            raise bad_lines(path, problems, "each line must be '<clip> <text>', as published")
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    missing = [name for name in names if stems[name] not in texts]
    warnings = report_missing(missing, len(names), "have no transcript in their chapter's *.trans.txt", allow_missing)
    return {name: texts[stem] for name, stem in stems.items() if stem in texts}, warnings


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="take this folder, with train-clean-100 and others")
    parts = "take these parts, such as train-clean-100 dev-other test-clean (default: all that are there)"
    parser.add_argument("--parts", nargs="+", metavar="PART", help=parts)
    seed = "choose what is held out without dev-* with this seed (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="N", help=seed)
    add_units(parser, None)
    add_allow_missing(parser)


LAYOUT = Layout("librispeech", "list LibriSpeech, with or without transcripts", _add_arguments, build)
