"""LibriSpeech (Panayotov et al. 2015): ``<part>/<speaker>/<chapter>/*.flac``, for pretraining.

The parts ``train-*`` are the training split, ``dev-*`` the validation split and ``test-*`` the test split. There are no
labels, since the speakers of validation and test are not those of training.
"""

import argparse
from pathlib import Path

from amae_plugin.corpora.audio_files import compare_sizes, find_audio, find_root
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.corpora.splits import split_names
from amae_plugin.errors import UserError

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


def build(root: Path, out: Path, *, seed: int = 1, workers: int = 0) -> Corpus:
    """Write ``train``, ``valid`` and, if the corpus has such a part, ``test``.

    Args:
        root: folder ``LibriSpeech`` of the unpacked archives, or the one that holds it; some parts suffice.
        out: folder of the manifests.
        seed: seed of the draw of 1% of the training clips, which are held out if there is no ``dev-*`` part.
        workers: number of threads that read headers.

    Raises:
        UserError: the folder has another layout, or holds nothing to train on.
    """
    root = find_root(root, "train-*/*", "LibriSpeech")
    parts: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    warnings = []
    for prefix, split in _SPLITS.items():
        for folder in sorted(path for path in root.glob(f"{prefix}-*") if path.is_dir()):
            found = find_audio(folder)
            warnings += [f"{folder.name}/{name}: {reason}; left out" for name, reason in found.problems.items()]
            parts[folder.name] = [f"{folder.name}/{name}" for name in found.names]
            splits[split] += parts[folder.name]
    warnings += compare_sizes(parts, {part: size for part, size in _PUBLISHED.items() if part in parts})
    if not splits["train"]:
        raise UserError(f"{root}: no audio in its train-* folders")
    scan = read_headers(root, [name for names in splits.values() for name in names], workers)
    readable = [name for name in splits["train"] if name in scan.headers]
    if readable and not splits["valid"]:
        splits.update(split_names(readable, {"valid": _VALID_FRACTION}, seed))
        warnings.append(f"valid: no dev-* part is there, so {len(splits['valid']):,} clips of train are held out")
    clips = {split: [LabelledClip(name) for name in names] for split, names in splits.items() if names}
    return write_corpus(root, {out: clips}, warnings=warnings, scan=scan)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with train-clean-100 and others")
    parser.add_argument("--seed", type=int, default=1, help="seed of what is held out without dev-* (%(default)s)")


LAYOUT = Layout("librispeech", "LibriSpeech, for pretraining: no labels", _add_arguments, build)
