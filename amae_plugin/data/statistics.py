"""Mean and standard deviation of a corpus's log-mel values."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.data.log_mel import FrontEnd, LogMel, ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.files import reading, write_json
from amae_plugin.processes import available_cpus, killed_with_parent
from amae_plugin.progress import tqdm

logger = logging.getLogger(__name__)
_CLIPS_PER_STEP = 8


def measure(
    manifest: Manifest,
    *,
    front_end: FrontEnd | None = None,
    target_length: int = 1024,
    clips: int = 2000,
    seed: int = 1,
    workers: int = 0,
) -> dict[str, float | int]:
    """Measure the log-mel values of a manifest: mean and standard deviation over all bands of all real frames.

    Args:
        manifest: clips of the corpus; those that cannot be decoded are left out.
        front_end: log-mel front end; Audio-MAE's if None.
        target_length: frames taken of longer clips, at random.
        clips: clips drawn at random; 0 means all.
        seed: seed of the draws.
        workers: processes that decode.

    Returns:
        ``mean``, ``std``, and the numbers of ``clips`` and ``frames`` measured and of clips ``skipped``.

    Raises:
        UserError: the manifest holds no clips, or none of them can be decoded.
    """
    manifest.require_clips()
    log_mel = ModelInput(front_end or LogMel(), target_length, normalization="model")  # values as they are
    dataset = AudioDataset(
        manifest,
        log_mel,
        train=True,
        seed=seed,
        batch_length="longest",  # without padding
        length_multiple=1,
        on_bad_audio="skip",
        max_bad_audio=len(manifest),
    )
    chosen = np.arange(len(manifest))
    if 0 < clips < len(manifest):
        chosen = np.sort(np.random.default_rng(seed).choice(len(manifest), clips, replace=False))
    subset = Subset(dataset, chosen.tolist())
    # A generator of its own: the caller's random numbers, such as a model's first weights, are what they would be.
    options: dict[str, Any] = {"generator": torch.Generator(), "num_workers": min(workers, len(subset))}
    options["worker_init_fn"] = killed_with_parent
    loader = DataLoader(subset, batch_size=_CLIPS_PER_STEP, collate_fn=_moments, **options)
    total = np.zeros(4)
    with tqdm(total=len(chosen), desc="measuring", unit="clip") as progress:
        for moments in loader:
            total += moments
            progress.update(min(_CLIPS_PER_STEP, len(chosen) - progress.n))
    decoded, frames, value_sum, square_sum = total.tolist()
    if not decoded:
        problem = f"{manifest.path}: none of the {len(chosen)} clips drawn can be decoded"
        try:
            load_clip(manifest[int(chosen[0])])
        except AudioError as error:
            raise UserError(f"{problem}; the first: {error}") from None
        raise UserError(problem)  # the first can be by now
    values = frames * dataset.input.num_mel_bins
    mean = value_sum / values
    std = math.sqrt(max(0.0, square_sum / values - mean**2))
    counts = {"clips": int(decoded), "frames": int(frames), "skipped": len(chosen) - int(decoded)}
    return {"mean": mean, "std": std, **counts}


def _moments(items: Sequence[Item | None]) -> np.ndarray:
    """(4,) float64: clips, real frames, sum and sum of squares of their values."""
    real = [item["source"][: item["length"]].double() for item in items if item is not None]
    sums = [[1.0, len(values), float(values.sum()), float(values.square().sum())] for values in real]
    return np.array(sums).reshape(-1, 4).sum(axis=0)


def read_or_measure(path: Path, front_end: FrontEnd, target_length: int, cache: Path) -> tuple[float, float]:
    """Return the mean and standard deviation of a manifest's log-mel values, as ``amae stats`` computes them.

    Args:
        path: manifest file.
        front_end: log-mel front end.
        target_length: frames taken of longer clips.
        cache: file of the statistics of several manifests; a manifest that changed is measured again. If it cannot be
            written, a warning says so.

    Raises:
        UserError: the cache is damaged, or the manifest cannot be measured.
    """
    with reading(path, "the manifest", "make one with `amae manifest folder`"):
        key, modified = f"{path.absolute()}, {target_length} frames of {front_end}", path.stat().st_mtime_ns
    text = "{}"
    if cache.exists():
        with reading(cache, "the statistics of manifests", "delete it"):
            text = cache.read_text(encoding="utf-8")
    try:
        known = json.loads(text)
        entry = known.get(key) or {"modified": None}
        if entry["modified"] == modified:
            return float(entry["mean"]), float(entry["std"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{cache}: does not hold the statistics of manifests; delete it") from None
    options = {"target_length": target_length, "workers": available_cpus()}
    measured = measure(Manifest.read(path), front_end=front_end, **options)
    try:
        write_json(cache, {**known, key: {"modified": modified, **measured}})
    except OSError as error:
        logger.warning(f"{cache}: cannot be written ({error.strerror}), so {path.name} will be measured again")
    return measured["mean"], measured["std"]
