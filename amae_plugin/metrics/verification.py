"""Speaker verification: cosine scores of pairs of clips, and the equal error rate."""

import numpy as np
import sklearn.metrics
from numpy.typing import ArrayLike


def cosine_scores(features: ArrayLike, pairs: ArrayLike) -> np.ndarray:
    """Return the cosine of the angle between the features of the two clips of each trial.

    Args:
        features: (N, D), one pooled vector a clip.
        pairs: (T, 2) integers, indices of clips.

    Returns:
        (T,) float64 in [-1, 1].

    Raises:
        ValueError: the features of a clip are not finite, or all 0, so that they have no direction.
    """
    vectors = np.asarray(features, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))
    if bad.any():
        raise ValueError(f"the features of clip {int(bad.argmax())} are all 0 or not finite")
    left, right = (vectors / norms)[np.asarray(pairs).T]
    return np.einsum("td,td->t", left, right)


def equal_error_rate(scores: ArrayLike, same: ArrayLike) -> float:
    """Return the rate at which pairs of one speaker are refused as often as pairs of two speakers are accepted.

    Both error rates are steps of the threshold. They are taken as linear between the two thresholds where they cross.

    Args:
        scores: (T,), higher for pairs that are more alike.
        same: (T,), 1 (or True) where both clips are of one speaker, else 0.

    Returns:
        A rate in [0, 1].

    Raises:
        ValueError: shapes do not fit, a score is NaN, labels are not 0 or 1, or all trials are of one kind.
    """
    scores, same = np.asarray(scores), np.asarray(same)
    if scores.shape != same.shape or scores.ndim != 1:
        raise ValueError(f"scores and labels must be (T,), not {scores.shape} and {same.shape}")
    if not np.isin(same, (0, 1)).all() or not 0 < same.sum() < len(same):
        raise ValueError("labels must be 0 or 1, with trials of both kinds")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    accepted_wrongly, accepted_rightly, _ = sklearn.metrics.roc_curve(same, scores, drop_intermediate=False)
    surplus = (1 - accepted_rightly) - accepted_wrongly  # falls from 1 (nothing is accepted) to -1 (everything is)
    return float(np.interp(0, surplus[::-1], accepted_wrongly[::-1]))
