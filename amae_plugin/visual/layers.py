"""Values of an encoder's layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amae_plugin.visual.style import PALETTE, SLATE, TICK_SIZE, Width, inches, new_figure, open_axes


def plot_layers(
    values: Mapping[str, Sequence[float] | np.ndarray],
    weighted: float,
    weights: Sequence[float] | np.ndarray,
    *,
    ylabel: str,
    title: str | None = None,
    width: Width = None,
) -> Figure:
    """Draw values over layers, in percent, and below them how much a probe of all layers makes of each.

    Args:
        values: values (L,) in [0, 1], by the name of the curve.
        weighted: value of the probe of all layers, drawn as a dashed line.
        weights: its weights (L,).
        ylabel: name of the values.
        title: title of the figure.
        width: of the figure.
    """
    figure = new_figure(width, 7, max(5 / 7 * inches(width, 7), 3.6), title)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for (name, series), colour in zip(values.items(), PALETTE):
        best = int(np.argmax(series))
        label = f"{name} (best: {series[best]:.1%}, layer {best})"
        upper.plot(series, color=colour, marker="o", markersize=4, label=label)
    label = f"linear probe of all layers, weighted ({weighted:.1%})"
    upper.axhline(weighted, color=SLATE, linewidth=1.2, linestyle="--", label=label)
    upper.yaxis.set_major_formatter("{x:.0%}")
    upper.set(ylabel=ylabel)
    lower.bar(range(len(weights)), weights, color=SLATE)
    lower.yaxis.set_major_formatter("{x:.0%}")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set(xlabel="layer (0: input of the first block)", ylabel="weight")
    for ax in (upper, lower):
        open_axes(ax, "y")
    columns = 1 if width == "column" else 2
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=TICK_SIZE)
    return figure
