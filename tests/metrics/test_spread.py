"""Mean and spread over runs."""

from __future__ import annotations

import pytest

from amae_plugin.metrics.spread import Spread


@pytest.mark.parametrize(
    ("values", "mean", "std", "text"),
    [
        ([0.8412], 0.8412, None, "84.1%"),
        ([0.5, 0.5], 0.5, 0.0, "50.0% ± 0.0"),
        # Squared distances 0.0001, 0 and 0.0001, over one value less than there are.
        ([0.83, 0.84, 0.85], 0.84, 0.01, "84.0% ± 1.0"),
        ([0.0, 1.0], 0.5, 0.5**0.5, "50.0% ± 70.7"),
    ],
)
def test_mean_and_sample_standard_deviation(values: list[float], mean: float, std: float | None, text: str) -> None:
    spread = Spread.of(iter(values))
    assert spread.mean == pytest.approx(mean)
    assert spread.std == (None if std is None else pytest.approx(std))
    assert str(spread) == text
