"""Which clips an epoch of training hears: a part of them, or draws by weight."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amae_plugin.data.labels import Labels
from amae_plugin.data.seeding import clip_seed
from amae_plugin.errors import UserError

# Those of AST and Audio-MAE; only ratios of weights matter, and a class without clips needs none.
_SCALE = 1000.0
_OFFSET = 0.01


@dataclass(frozen=True)
class Sampling:
    """The clips of each epoch.

    Attributes:
        pool: (M,) int64, the clips that may be heard, none twice.
        weights: (M,) how often each is drawn; None: each once an epoch.
        samples: draws in an epoch, with replacement; None without *weights*.
        seed: of the draws.
    """

    pool: np.ndarray
    weights: np.ndarray | None = None
    samples: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.samples is None):
            raise ValueError("weights and a number of samples belong together")
        if self.weights is not None and self.weights.shape != self.pool.shape:
            raise ValueError(f"{self.weights.shape} weights do not fit {self.pool.shape} clips")

    def draw(self, epoch: int) -> np.ndarray:
        """Clips of an epoch, int64; a clip may occur several times. Depends on seed and epoch alone."""
        if self.weights is None:
            return self.pool
        rng = np.random.default_rng(clip_seed(self.seed, epoch, -1))
        shares = self.weights.astype(np.float64)
        return self.pool[rng.choice(len(self.pool), self.samples, p=shares / shares.sum())]


def balanced_weights(labels: Labels) -> np.ndarray:
    """(N,) float32: the sum, over a clip's classes, of 1000 / (clips of the class + 0.01).

    As published for AST and Audio-MAE: a clip with a rare class is drawn often, whatever else it has.
    """
    class_weights = _SCALE / (labels.counts() + _OFFSET)
    return np.add.reduceat(class_weights[labels.ids], labels.offsets[:-1]).astype(np.float32)


def read_weights(path: str | os.PathLike[str], length: int) -> np.ndarray:
    """The weights of a ``<split>.weights.npy``, checked: (length,) float.

    Raises:
        UserError: the file cannot be read, or holds something else than *length* numbers of which none is negative and
            some are positive.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            weights = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the weights ({error}); `amae weights` writes them") from None
    if weights.shape != (length,):
        raise UserError(
            f"{path} holds an array of shape {weights.shape}, but the manifest beside it has {length:,} clips; "
            "run `amae weights` again"
        )
    if weights.dtype.kind not in "fiu" or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"{path}: weights must be numbers, finite, not negative and not all 0")
    return weights


def class_subset(labels: Labels, fraction: float, seed: int) -> np.ndarray:
    """A part of the clips, class by class, so that none dies out: (M,) int64 in increasing order.

    Of each class ``ceil(fraction * clips)`` clips are drawn; with several labels a clip the parts overlap.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction is above 0 and at most 1, not {fraction}")
    order = np.random.default_rng(clip_seed(seed, 0, -2)).permutation(len(labels))
    # (class, clip) for every label, clips in random order: the first of each class are taken.
    counts = np.diff(labels.offsets)
    clip_of = np.repeat(np.arange(len(labels)), counts)
    place = np.argsort(order)[clip_of]
    by_class = np.lexsort((place, labels.ids))
    sizes = labels.counts()
    rank = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = rank < np.ceil(fraction * sizes - 1e-9)[labels.ids[by_class]]
    return np.unique(clip_of[by_class[taken]])
