"""Draws of a training epoch: its clips, as a part of the manifest or by weight, and the seed of each."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amae_plugin.data.labels import Labels
from amae_plugin.errors import UserError

# AST's and Audio-MAE's; only ratios of weights matter, and a class without clips needs none.
_SCALE = 1000.0
_OFFSET = 0.01
# Streams of random numbers that belong to no clip; 0 and 1 are the clips'.
_DRAWS, _SUBSET = 2, 3


def clip_seed(seed: int, epoch: int, index: int, stream: int = 0) -> int:
    """Derive the seed of one clip in one epoch: a well-mixed integer in [0, 2**63), the range of PyTorch and NumPy.

    It depends on nothing else, so a run gives the same crops, augmentations and masks whatever the number of workers
    and ranks, and after it was resumed. Any integers are accepted, negative ones too (taken modulo 2**64). Random
    numbers for different purposes come from different streams.
    """
    numbers = np.array([number % 2**64 for number in (seed, epoch, index, stream)], np.uint64)
    return int(np.random.SeedSequence(numbers.view(np.uint32)).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Sampling:
    """The clips of each epoch.

    Attributes:
        pool: (M,) int64, the clips to draw from, without repetition.
        weights: (M,) relative frequencies of the draws; None: every clip once an epoch.
        samples: draws in an epoch, with replacement; None without *weights*.
        seed: random seed of the draws.
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
        """Draw the clips of an epoch, int64, with repetition; they depend on seed and epoch alone."""
        if self.weights is None:
            return self.pool
        rng = np.random.default_rng(clip_seed(self.seed, epoch, 0, _DRAWS))
        shares = self.weights.astype(np.float64)
        return self.pool[rng.choice(len(self.pool), self.samples, p=shares / shares.sum())]


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
        with path.open("rb") as file:
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
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction must be above 0 and at most 1, not {fraction}")
    order = np.random.default_rng(clip_seed(seed, 0, 0, _SUBSET)).permutation(len(labels))
    # All labels sorted by class, and within a class by the random order of their clips: the first ones are taken.
    clip_of = np.repeat(np.arange(len(labels)), np.diff(labels.offsets))
    by_class = np.lexsort((np.argsort(order)[clip_of], labels.ids))
    sizes = labels.counts()
    rank = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = rank < np.ceil(fraction * sizes - 1e-9)[labels.ids[by_class]]
    return np.unique(clip_of[by_class[taken]])
