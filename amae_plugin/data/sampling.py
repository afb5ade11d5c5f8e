"""Weights of the clips and a part of them, by their classes."""

import os
from pathlib import Path

import numpy as np

from amae_plugin.data.dataset import SUBSET, clip_seed
from amae_plugin.data.labels import Labels
from amae_plugin.errors import UserError
from amae_plugin.files import open_regular

# AST's and Audio-MAE's; only ratios of weights matter, and a class without clips needs none.
_SCALE = 1000.0
_OFFSET = 0.01


def balanced_weights(labels: Labels) -> np.ndarray:
    """Compute each clip's weight, (N,) float32: the sum, over its classes, of 1000 / (clips of the class + 0.01).

    As published for AST and Audio-MAE: a clip with a rare class is drawn often, whatever other classes it has.
    """
    class_weights = _SCALE / (labels.counts() + _OFFSET)
    return np.add.reduceat(class_weights[labels.ids], labels.offsets[:-1]).astype(np.float32)


def read_weights(path: str | os.PathLike[str], length: int) -> np.ndarray:
    """Read and check the weights of a ``<split>.weights.npy``: (length,) float.

    Raises:
        UserError: the file cannot be read, or does not hold *length* finite numbers, none negative and some positive.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            weights = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the weights ({error}); `amae weights` writes them") from None
    if weights.shape != (length,):
        problem = f"holds an array of shape {weights.shape}, but the manifest beside it has {length:,} clips"
        raise UserError(f"{path} {problem}; run `amae weights` again")
    if weights.dtype.kind not in "fiu" or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"{path}: weights must be numbers, finite, not negative and not all 0")
    return weights


def class_subset(labels: Labels, fraction: float, seed: int) -> np.ndarray:
    """Draw a part of the clips that keeps every class: (M,) int64 in increasing order.

    ``ceil(fraction * clips)`` clips of each class are drawn; the parts of clips with several labels overlap.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction must be above 0 and at most 1, not {fraction}")
    order = np.random.default_rng(clip_seed(seed, 0, 0, SUBSET)).permutation(len(labels))
    # All labels sorted by class, and within a class by the random order of their clips: the first ones are taken.
    clip_of = np.repeat(np.arange(len(labels)), np.diff(labels.offsets))
    by_class = np.lexsort((np.argsort(order)[clip_of], labels.ids))
    sizes = labels.counts()
    rank = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = rank < np.ceil(fraction * sizes - 1e-9)[labels.ids[by_class]]
    return np.unique(clip_of[by_class[taken]])
