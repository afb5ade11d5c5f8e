"""Accuracy, F1 and confusion for one label a clip; average precision, AUC and d' for several.

Every function takes the scores of a whole split, since a mean of these measures over batches is another number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sklearn.metrics
import torch
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class SingleLabelMetrics:
    """Measures of choosing one class of C for each of N clips.

    Attributes:
        accuracy: share of clips whose class was chosen, in [0, 1].
        macro_f1: mean of *f1* over the classes that have clips.
        precision: (C,) float64, 0 for a class never chosen; NaN for a class without clips, even if it was chosen.
        recall: (C,) float64, likewise.
        f1: (C,) float64, likewise.
        confusion: (C, C) int64; row: the clip's class, column: the chosen one.
    """

    accuracy: float
    macro_f1: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    confusion: np.ndarray

    @property
    def headline(self) -> dict[str, float]:
        """Measures that are one number, by the names in logs and reports."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}

    @property
    def by_class(self) -> dict[str, np.ndarray]:
        """Measures (C,) of each class, by the names in reports."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class MultiLabelMetrics:
    """Measures of ranking the clips of each of C classes above the others.

    Attributes:
        mean_average_precision: mean of *average_precision* over the classes that have clips, AudioSet's mAP (macro
            average).
        mean_auc: mean of *auc* over the classes that have both clips and others.
        d_prime: sqrt(2) times the inverse normal distribution at *mean_auc*; infinite for 1.
        average_precision: (C,) float64; NaN for a class without positives.
        auc: (C,) float64, area under the ROC curve; NaN for a class without positives or without negatives.
    """

    mean_average_precision: float
    mean_auc: float
    d_prime: float
    average_precision: np.ndarray
    auc: np.ndarray

    @property
    def headline(self) -> dict[str, float]:
        """Measures that are one number, by the names in logs and reports."""
        return {"mAP": self.mean_average_precision, "mAUC": self.mean_auc, "d_prime": self.d_prime}

    @property
    def by_class(self) -> dict[str, np.ndarray]:
        """Measures (C,) of each class, by the names in reports."""
        return {"average_precision": self.average_precision, "auc": self.auc}


def single_label(scores: ArrayLike, targets: ArrayLike) -> SingleLabelMetrics:
    """Measure the choice of the class with the highest score (of equal scores, the first).

    Args:
        scores: (N, C), logits or probabilities; N at least 1.
        targets: (N,) integers in [0, C).

    Raises:
        ValueError: shapes or targets do not fit, there are no clips, or a score is NaN.
    """
    scores, targets = _check_scores(scores), np.asarray(targets)
    clips, classes = scores.shape
    if targets.shape != (clips,):
        raise ValueError(f"targets must be ({clips},) as the scores are {scores.shape}, not {targets.shape}")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets must be in [0, {classes}), found {targets.min()} to {targets.max()}")
    chosen, present = scores.argmax(axis=1), np.unique(targets)
    by_class = np.full((3, classes), np.nan)  # precision, recall, F1
    by_class[:, present] = sklearn.metrics.precision_recall_fscore_support(
        targets, chosen, labels=present, zero_division=0.0
    )[:3]
    confusion = sklearn.metrics.confusion_matrix(targets, chosen, labels=np.arange(classes))
    accuracy, macro_f1 = (float(values.mean()) for values in (chosen == targets, by_class[2, present]))
    precision, recall, f1 = by_class
    return SingleLabelMetrics(accuracy, macro_f1, precision, recall, f1, confusion)


def multi_label(scores: ArrayLike, targets: ArrayLike) -> MultiLabelMetrics:
    """Measure the ranking of clips, class by class.

    Args:
        scores: (N, C), logits or probabilities: only their order within a class matters; N at least 1.
        targets: (N, C), 1 (or True) where the clip has the class, else 0.

    Raises:
        ValueError: shapes do not fit, targets are not 0 or 1, there are no clips, or a score is NaN.
    """
    scores, targets = _check_scores(scores), np.asarray(targets)
    if targets.shape != scores.shape:
        raise ValueError(f"targets must be {scores.shape} as the scores are, not {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
    targets = targets.astype(bool)
    counts = targets.sum(axis=0)
    both = (counts > 0) & (counts < len(targets))
    precision, mean_precision = _measure_classes(sklearn.metrics.average_precision_score, scores, targets, counts > 0)
    auc, mean_auc = _measure_classes(sklearn.metrics.roc_auc_score, scores, targets, both)
    return MultiLabelMetrics(mean_precision, mean_auc, d_prime(mean_auc), precision, auc)


def d_prime(auc: float) -> float:
    """Return the separation of two normal distributions of variance 1 whose ROC curve has this area."""
    return math.sqrt(2) * float(torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)))


def _check_scores(scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (clips, classes) and not empty, their shape is {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} clips have a score that is NaN")
    return scores


def _measure_classes(
    measure: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, targets: np.ndarray, defined: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return a measure (C,) of each class, NaN where it is not defined, and its mean over the others (NaN if none)."""
    values = np.full(len(defined), np.nan)
    values[defined] = [measure(targets[:, index], scores[:, index]) for index in np.flatnonzero(defined)]
    return values, float(values[defined].mean()) if defined.any() else math.nan
