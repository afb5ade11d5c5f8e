"""Mean and standard deviation of a corpus's log-mel values."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.data.log_mel import FrontEnd, LogMel, ModelInput
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.progress import tqdm

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
    loader = DataLoader(subset, batch_size=_CLIPS_PER_STEP, num_workers=min(workers, len(subset)), collate_fn=_moments)
    total = torch.zeros(4, dtype=torch.float64)
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


def _moments(items: Sequence[Item | None]) -> Tensor:
    """(4,) float64: clips, real frames, sum and sum of squares of their values."""
    real = [item["source"][: item["length"]].double() for item in items if item is not None]
    sums = [[1.0, len(values), float(values.sum()), float(values.square().sum())] for values in real]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 4).sum(dim=0)
