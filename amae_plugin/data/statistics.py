"""Mean and standard deviation of a corpus's log-mel values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.utils.data
from torch import Tensor
from tqdm import tqdm

from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.errors import UserError

_CLIPS_PER_STEP = 8


def measure(dataset: AudioDataset, indices: Sequence[int], workers: int) -> dict[str, float | int]:
    """Mean and standard deviation over all bands of all real frames (not the padding) of some clips.

    Returns:
        ``mean``, ``std``, and how many ``clips`` and ``frames`` they were computed from and how many were ``skipped``.

    Raises:
        UserError: none of the clips could be decoded.
    """
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, indices),
        batch_size=_CLIPS_PER_STEP,
        num_workers=workers,
        collate_fn=_moments,
    )
    total = torch.zeros(4, dtype=torch.float64)
    with tqdm(total=len(indices), desc="measuring", unit="clip") as progress:
        for moments in loader:
            total += moments
            progress.update(min(_CLIPS_PER_STEP, len(indices) - progress.n))
    clips, frames, value_sum, square_sum = total.tolist()
    if not clips:
        raise UserError(f"{dataset.manifest.path}: none of the {len(indices)} clips drawn can be decoded")
    values = frames * dataset.input.num_mel_bins
    mean = value_sum / values
    std = math.sqrt(max(0.0, square_sum / values - mean**2))
    return {"mean": mean, "std": std, "clips": int(clips), "frames": int(frames), "skipped": len(indices) - int(clips)}


def _moments(items: Sequence[Item | None]) -> Tensor:
    """(4,) float64: clips, real frames, sum and sum of squares of their values."""
    real = [item["source"][: item["length"]].double() for item in items if item is not None]
    sums = [[1.0, len(values), float(values.sum()), float(values.square().sum())] for values in real]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 4).sum(dim=0)
