"""LibriSpeech (Panayotov et al. 2015): ``<part>/<speaker>/<chapter>/*.flac``, for pretraining.

The parts ``train-*`` are the training split, ``dev-*`` the validation split and ``test-*`` the test split. There are no
labels: its validation and test speakers are not those of training.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, find_root, write_corpus
from amae_plugin.corpora.folder import find_audio, split_names
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


def build(root: Path, out: Path, seed: int = 1, workers: int | None = None) -> Corpus:
    """Write ``train``, ``valid`` and, if there is such a part, ``test``.

    Args:
        root: the folder ``LibriSpeech`` of the unpacked archives, or the one that holds it; some parts suffice.
        out: where they go.
        seed: of the 1% of the training clips that are held out where there is no ``dev-*`` part.
        workers: threads that read headers.

    Raises:
        UserError: the folder has another layout, or holds nothing to train on.
    """
    root = find_root(root, "train-*/*", "LibriSpeech")
    splits: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    warnings = []
    for part in sorted(entry.name for entry in root.iterdir() if entry.is_dir()):
        split = _SPLITS.get(part.split("-")[0])
        if split is None:
            continue
        found = find_audio(root / part)
        warnings += [f"{part}/{name}: {reason}; left out" for name, reason in found.problems.items()]
        counts[part] = len(found.names)
        splits.setdefault(split, []).extend(f"{part}/{name}" for name in found.names)
    if not splits.get("train"):
        raise UserError(f"{root}: no audio in its train-* folders")
    warnings += compare_counts(counts, {part: count for part, count in _PUBLISHED.items() if part in counts})
    if "valid" not in splits:
        splits.update(split_names(splits["train"], {"valid": _VALID_FRACTION}, seed))
        warnings.append(f"valid: no dev-* part is there, so {len(splits['valid']):,} clips of train are held out")
    clips = {split: [LabelledClip(name) for name in splits[split]] for split in _SPLITS.values() if split in splits}
    return write_corpus(out, root, clips, warnings=warnings, workers=workers)
