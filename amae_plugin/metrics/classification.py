"""Accuracy, F1 and confusion for one label a clip; average precision, AUC and d' for several.

Every function takes the scores of a whole split: means over batches of these measures are something else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn.metrics
import torch


@dataclass(frozen=True)
class SingleLabelMetrics:
    """How well one class of C was chosen for each of N clips.

    Attributes:
        accuracy: share of clips whose class was chosen, in [0, 1].
        macro_f1: mean of *f1* over the classes that have clips.
        f1: (C,) float64; NaN for a class without clips, even if it was chosen.
        confusion: (C, C) int64; row: the clip's class, column: the chosen one.
        absent: indices of the classes without clips, which *macro_f1* leaves out.
    """

    accuracy: float
    macro_f1: float
    f1: np.ndarray
    confusion: np.ndarray
    absent: tuple[int, ...]

    @property
    def headline(self) -> dict[str, float]:
        """The measures that are one number, by the names they are logged and reported under."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}


@dataclass(frozen=True)
class MultiLabelMetrics:
    """How well the clips of each of C classes were ranked above the others.

    Attributes:
        mean_average_precision: mean of *average_precision*, the mAP that AudioSet results are given in (macro average).
        mean_auc: mean of *auc*.
        d_prime: sqrt(2) times the inverse normal distribution at *mean_auc*; infinite for 1.
        average_precision: (C,) float64; NaN for a class without positives.
        auc: (C,) float64, area under the ROC curve; NaN for a class without positives or without negatives.
        no_positives: indices of the classes that no clip has; left out of all means.
        no_negatives: indices of the classes that every clip has; left out of *mean_auc* and *d_prime*.
    """

    mean_average_precision: float
    mean_auc: float
    d_prime: float
    average_precision: np.ndarray
    auc: np.ndarray
    no_positives: tuple[int, ...]
    no_negatives: tuple[int, ...]

    @property
    def headline(self) -> dict[str, float]:
        """The measures that are one number, by the names they are logged and reported under."""
        return {"mAP": self.mean_average_precision, "mAUC": self.mean_auc, "d_prime": self.d_prime}


def single_label(scores: Any, targets: Any) -> SingleLabelMetrics:
    """Measures of choosing the class with the highest score (of equal ones the first).

    Args:
        scores: (N, C), logits or probabilities; N at least 1.
        targets: (N,) integers in [0, C).

    Raises:
        ValueError: shapes or targets do not fit, there are no clips, or a score is not a number.
    """
    scores = _scores(scores)
    targets = np.asarray(targets)
    clips, classes = scores.shape
    if targets.shape != (clips,):
        raise ValueError(f"targets must be ({clips},) as the scores are {scores.shape}, not {targets.shape}")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets must be in [0, {classes}), found {targets.min()} to {targets.max()}")
    chosen = scores.argmax(axis=1)
    present = np.unique(targets)
    f1 = np.full(classes, np.nan)
    f1[present] = sklearn.metrics.f1_score(targets, chosen, labels=present, average=None, zero_division=0.0)
    return SingleLabelMetrics(
        accuracy=float(sklearn.metrics.accuracy_score(targets, chosen)),
        macro_f1=float(f1[present].mean()),
        f1=f1,
        confusion=sklearn.metrics.confusion_matrix(targets, chosen, labels=np.arange(classes)),
        absent=tuple(np.setdiff1d(np.arange(classes), present).tolist()),
    )


def multi_label(scores: Any, targets: Any) -> MultiLabelMetrics:
    """Measures of ranking, class by class.

    Args:
        scores: (N, C), logits or probabilities: only their order within a class matters; N at least 1.
        targets: (N, C), 1 (or True) where the clip has the class, else 0.

    Raises:
        ValueError: shapes do not fit, targets are not 0 or 1, there are no clips, or a score is not a number.
    """
    scores = _scores(scores)
    targets = np.asarray(targets)
    if targets.shape != scores.shape:
        raise ValueError(f"targets must be {scores.shape} as the scores are, not {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
    targets = targets.astype(bool)
    some, all_ = targets.any(axis=0), targets.all(axis=0)
    average_precision = np.full(len(some), np.nan)
    auc = np.full(len(some), np.nan)
    for index in np.flatnonzero(some):
        average_precision[index] = sklearn.metrics.average_precision_score(targets[:, index], scores[:, index])
        if not all_[index]:
            auc[index] = sklearn.metrics.roc_auc_score(targets[:, index], scores[:, index])
    mean_auc = _mean(auc)
    return MultiLabelMetrics(
        mean_average_precision=_mean(average_precision),
        mean_auc=mean_auc,
        d_prime=d_prime(mean_auc),
        average_precision=average_precision,
        auc=auc,
        no_positives=tuple(np.flatnonzero(~some).tolist()),
        no_negatives=tuple(np.flatnonzero(all_).tolist()),
    )


def d_prime(auc: float) -> float:
    """Separation of two normal distributions of variance 1 whose ROC curve has this area."""
    return math.sqrt(2) * float(torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)))


def _scores(scores: Any) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (clips, classes) and not empty, their shape is {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} clips have a score that is NaN")
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean of those that are not NaN; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan
