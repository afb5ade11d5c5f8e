"""Confidence intervals of the measures of a split, by the bootstrap over its clips (Efron 1979, percentile method)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from amae_plugin.metrics.classification import d_prime

LEVEL = 0.95
"""Probability of an interval."""


class Interval(NamedTuple):
    """Confidence interval; as text ``0.871 to 0.923``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


def single_label_intervals(scores: ArrayLike, targets: ArrayLike, resamples: Iterable[int]) -> dict[str, Interval]:
    """Return the intervals of accuracy and macro F1, by their names in reports.

    Args:
        scores: (N, C), see :func:`~amae_plugin.metrics.classification.single_label`.
        targets: (N,) integers in [0, C).
        resamples: seeds of the resamples, one each.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    classes, chosen = scores.shape[1], scores.argmax(axis=1)
    right = chosen == targets

    def measure(counts: np.ndarray) -> tuple[float, float]:
        hits = np.bincount(targets[right], counts[right], classes)
        clips, choices = (np.bincount(labels, counts, classes) for labels in (targets, chosen))
        present = clips > 0
        f1 = 2 * hits[present] / (clips + choices)[present]
        return float(hits.sum() / counts.sum()), float(f1.mean())

    return _bootstrap(("accuracy", "macro_f1"), measure, len(targets), resamples)


def multi_label_intervals(scores: ArrayLike, targets: ArrayLike, resamples: Iterable[int]) -> dict[str, Interval]:
    """Return the intervals of mAP, mAUC and d', by their names in reports.

    A resample's means leave out the classes that it has no clips of.

    Args:
        scores: (N, C), see :func:`~amae_plugin.metrics.classification.multi_label`.
        targets: (N, C), 1 (or True) where the clip has the class, else 0.
        resamples: seeds of the resamples, one each.
    """
    scores, targets = np.asarray(scores), np.asarray(targets, bool)
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = (np.take_along_axis(values, order, axis=0) for values in (scores, targets))
    # The first and the last place of the clips that score as much as the one in a place.
    changes, places = ranked[1:] != ranked[:-1], np.arange(len(ranked))[:, None]
    edge = np.ones((1, ranked.shape[1]), bool)
    first = np.maximum.accumulate(np.where(np.vstack([edge, changes]), places, 0), axis=0)
    last = np.minimum.accumulate(np.where(np.vstack([changes, edge]), places, len(ranked))[::-1], axis=0)[::-1]

    def measure(counts: np.ndarray) -> tuple[float, float]:
        weights = counts[order]
        found = weights * hits  # clips of the class in each place
        positives, everything = found.cumsum(axis=0), weights.cumsum(axis=0)
        negatives = everything - positives
        to_last = np.take_along_axis(positives, last, axis=0) / np.take_along_axis(everything, last, axis=0).clip(1)
        before = np.take_along_axis(negatives - (weights - found), first, axis=0)
        passed = (before + np.take_along_axis(negatives, last, axis=0)) / 2  # of equal scores, half count as above
        of_class, others = positives[-1], negatives[-1]
        present, both = of_class > 0, (of_class > 0) & (others > 0)
        precision = (found * to_last).sum(axis=0)[present] / of_class[present]
        auc = 1 - (found * passed).sum(axis=0)[both] / (of_class * others)[both]
        return float(precision.mean()) if present.any() else np.nan, float(auc.mean()) if both.any() else np.nan

    intervals = _bootstrap(("mAP", "mAUC"), measure, len(targets), resamples)
    low, high = intervals["mAUC"]
    return {**intervals, "d_prime": Interval(d_prime(low), d_prime(high))}  # which grows with it, and may be infinite


def rate_interval(errors: ArrayLike, lengths: ArrayLike, resamples: Iterable[int]) -> Interval:
    """Return the interval of an error rate: errors (N,) of N clips over their lengths (N,), both summed."""
    errors, lengths = np.asarray(errors), np.asarray(lengths)

    def measure(counts: np.ndarray) -> tuple[float]:
        return (float(counts @ errors / max(counts @ lengths, 1)),)

    return _bootstrap(("rate",), measure, len(errors), resamples)["rate"]


def _bootstrap(
    names: tuple[str, ...], measure: Callable[[np.ndarray], tuple[float, ...]], clips: int, resamples: Iterable[int]
) -> dict[str, Interval]:
    """Measure resamples of as many clips, given how often each clip is drawn, (N,) int64."""
    share = np.full(clips, 1 / clips)
    values = np.array([measure(np.random.default_rng(seed).multinomial(clips, share)) for seed in resamples])
    intervals = {}
    for name, found in zip(names, values.T):
        known = found[~np.isnan(found)]
        ends = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (np.nan, np.nan)
        intervals[name] = Interval(*map(float, ends))
    return intervals
