"""Measures of a whole split in fairseq's logging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from fairseq.logging import metrics
from fairseq.logging.meters import Meter, MetersDict

_KEY = "_scores"  # fairseq prints no meter whose name begins so
Measures = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""From the scores (N, C) and targets (N, C) of a whole split to its measures by name."""


class ScoresMeter(Meter):
    """Collects scores and targets of clips, and computes measures of all of them together."""

    def __init__(self, measures: Measures):
        self.measures = measures
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._computed: Mapping[str, float] | None = None

    def update(self, part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Add ids (B,), scores (B, C) and targets (B, C)."""
        self._parts.append(part)
        self._computed = None

    @property
    def smoothed_value(self) -> float:
        """Clips added, a clip that came twice as two."""
        return float(sum(len(ids) for ids, _, _ in self._parts))

    def compute(self) -> Mapping[str, float]:
        """The measures, each clip counted once; there must be clips."""
        if self._computed is None:
            ids, scores, targets = (np.concatenate(arrays) for arrays in zip(*self._parts))
            _, once = np.unique(ids, return_index=True)
            self._computed = self.measures(scores[once], targets[once])
        return self._computed


def log_split(logging_outputs: Iterable[Mapping[str, Any]], names: Iterable[str], measures: Measures) -> None:
    """Collect the scores in the logs of one validation step, from all devices; log the measures of the whole split.

    They are there once the outermost aggregate is left, which fairseq opens for each validation of a split; before, and
    in all aggregates within, they are NaN.

    Args:
        logging_outputs: with ``id`` (B,), ``scores`` (B, C) and ``target`` (B, C).
        names: of the measures.
        measures: computes them.
    """
    # Nowhere else: fairseq never empties its "valid", so that would hold the scores of all validations; and it writes
    # the meters there into checkpoints, but can read back only those of its own.
    split = metrics.get_active_aggregators()[0]
    if _KEY not in split:
        split.add_meter(_KEY, ScoresMeter(measures), priority=50)
    for log in logging_outputs:
        split[_KEY].update((log["id"], log["scores"], log["target"]))
    for name in names:
        # fairseq asks for the value once more after each step; a measure of the clips so far would cost time only.
        metrics.log_derived(name, lambda meters, name=name: _whole_split(meters, name))


def _whole_split(meters: MetersDict, name: str) -> float:
    filling = any(meters is active for active in metrics.get_active_aggregators())
    if filling or _KEY not in meters or not meters[_KEY].smoothed_value:
        return float("nan")
    return meters[_KEY].compute()[name]
