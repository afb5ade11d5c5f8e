"""What patches that are not known may be like, by those around them."""

from __future__ import annotations

import torch
from torch import Tensor

from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import take_tokens, visible_ids

# The kernel falls to 1/e over this many frames, and over twice the range of the bands: sounds change faster than their
# spectra are wide. Of products and sums of exponentials tried on recordings of speech and sounds, none was better by
# more than 3% at guessing patches' means and variances, whichever strategy had hidden them.
_FRAMES = 64.0
_RANGES = 2.0
_NOISE = 0.02  # variance of what no neighbour tells of a patch, over that of the patches


def interpolate(values: Tensor, known: Tensor, grid: Size2d, patch_frames: int) -> Tensor:
    """Values of all patches of a grid from those of the known ones: kriging, the best linear guess by distance.

    Known patches keep about what they have (they are smoothed by a few per cent); far from any, the guess is the mean
    of the known.

    Args:
        values: (B, L, V), time-major; those of unknown patches may be anything finite and have no influence.
        known: (B, L) bool.
        grid: patches in time and frequency, L together.
        patch_frames: from a patch to the next in time.

    Returns:
        (B, L, V); 0 in a clip of which nothing is known.
    """
    # Only the known patches, whose numbers may differ, are computed with: as many places as the most of a clip.
    ids = visible_ids(~known, max(1, int(known.sum(1).max())))
    used = known.gather(1, ids)[..., None].to(values.dtype)
    rows, columns = (torch.arange(n, dtype=values.dtype, device=values.device) for n in grid)
    places = torch.cartesian_prod(rows * (patch_frames / _FRAMES), columns / (_RANGES * grid[1]))
    found = places[ids]
    covariance = used * torch.exp(-torch.cdist(found, found, p=1)) * used.mT
    noise = torch.diag_embed(1 - used[..., 0] + _NOISE)
    guide = take_tokens(values, ids) * used
    mean = guide.sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp(min=1)
    weights = torch.linalg.solve(covariance + noise, guide - mean * used)
    return mean + torch.exp(-torch.cdist(places.expand(len(found), -1, -1), found, p=1)) @ weights
