"""Significance of the difference between two classifiers on the same clips."""

import numpy as np
from scipy.stats import binomtest


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test (McNemar 1947), two-sided.

    It is the probability of a difference at least as large if both were equally good.

    Args:
        first: (N,) bool, whether one classifier is right about each clip.
        second: (N,) bool, the same of the other.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
