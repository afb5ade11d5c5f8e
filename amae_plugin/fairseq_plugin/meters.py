"""Measures of a whole split in fairseq's logging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch.distributed
from fairseq.logging import metrics
from fairseq.logging.meters import Meter, MetersDict

_KEY = "_scores"  # fairseq prints no meter whose name begins so
_Part = tuple[np.ndarray, np.ndarray, np.ndarray]
Measures = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""From the scores (N, C) and targets (N, C) of a whole split to its measures by name."""


class ScoresMeter(Meter):
    """Collects scores and targets of a device's clips, and computes measures of those of all devices together."""

    def __init__(self, measures: Measures):
        self.measures = measures
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._parts: list[_Part] = []
        self._computed: Mapping[str, float] | None = None

    def update(self, part: _Part) -> None:
        """Add ids (B,), scores (B, C) and targets (B, C)."""
        self._parts.append(part)
        self._computed = None

    @property
    def smoothed_value(self) -> float:
        """Clips added, a clip that came twice as two."""
        return float(sum(len(ids) for ids, _, _ in self._parts))

    def compute(self) -> Mapping[str, float]:
        """The measures, each clip counted once; none if there are no clips.

        All devices must call this together.
        """
        if self._computed is None:
            parts = self._gather()
            if not parts:
                return {}
            ids, scores, targets = (np.concatenate(arrays) for arrays in zip(*parts))
            _, once = np.unique(ids, return_index=True)
            self._computed = self.measures(scores[once], targets[once])
        return self._computed

    def _gather(self) -> list[_Part]:
        """The parts of all devices. fairseq's own gathering of logs needs GPUs, and would be done at every step."""
        if not torch.distributed.is_initialized():
            return self._parts
        everywhere: list[list[_Part]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everywhere, self._parts)
        return [part for parts in everywhere for part in parts]


def log_split(part: Mapping[str, np.ndarray] | None, names: Iterable[str], measures: Measures) -> None:
    """Collect the scores of one validation step on this device; log the measures of the whole split.

    They are there once the outermost aggregate is left, which fairseq opens for each validation of a split; before, and
    in all aggregates within, they are NaN. All devices must log as many steps.

    Args:
        part: ``id`` (B,), ``scores`` (B, C) and ``target`` (B, C); None for a step without clips.
        names: of the measures.
        measures: computes them.
    """
    # Nowhere else: fairseq never empties its "valid", so that would hold the scores of all validations; and it writes
    # the meters there into checkpoints, but can read back only those of its own.
    split = metrics.get_active_aggregators()[0]
    if _KEY not in split:
        split.add_meter(_KEY, ScoresMeter(measures), priority=50)
    if part is not None:
        split[_KEY].update((part["id"], part["scores"], part["target"]))
    for name in names:
        # fairseq asks for the value once more after each step; a measure of the clips so far would cost time only.
        metrics.log_derived(name, lambda meters, name=name: _whole_split(meters, name))


def _whole_split(meters: MetersDict, name: str) -> float:
    filling = any(meters is active for active in metrics.get_active_aggregators())
    if filling or _KEY not in meters:
        return float("nan")
    return meters[_KEY].compute().get(name, float("nan"))
