"""Mean and spread of a measure over several runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean of a share over runs that differ in their seed, and how far they lie apart.

    As text it is in percent: ``84.1% ± 1.2``, or ``84.1%`` for a single run.

    Attributes:
        mean: mean of the runs.
        std: sample standard deviation; None for a single run.
    """

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise the values of the runs, of which there is at least one."""
        values = list(values)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.1%}" + ("" if self.std is None else f" ± {self.std * 100:.1f}")
