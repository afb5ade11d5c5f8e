"""Loss over updates, and what the features are worth beside it."""

import itertools
import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from amae_plugin.visual.style import BLUE, GREEN, LABEL_SIZE, PURPLE, RED, Width, inches, new_figure, open_axes

_STYLES = ((BLUE, 1.4, "-", ""), (RED, 1.6, "-", "o"), (GREEN, 1.4, "--", ""), (PURPLE, 1.4, ":", ""))
"""Colours, widths, dashes and markers of the curves, in their order."""


def plot_loss(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str | None = None,
    probe: Sequence[tuple[float, float]] = (),
    measure: str = "accuracy",
    width: Width = None,
) -> Figure:
    """Draw loss over updates, with a logarithmic loss axis, and below it a probe of the features, if there is one.

    Args:
        curves: points (update, loss) in order, by the name of the curve, such as ``training`` and ``validation``.
            Points that a logarithmic axis cannot show, whose loss is not finite or not positive, are left out.
        title: title of the figure.
        probe: points (update, value in [0, 1]) of a k-NN on the features.
        measure: what the probe measures.
        width: of the figure.

    Raises:
        ValueError: no curve has a point to draw.
    """
    positive = {name: [(x, y) for x, y in points if 0 < y < math.inf] for name, points in curves.items()}
    drawable = {name: points for name, points in positive.items() if points}
    if not drawable:
        raise ValueError("there is no loss to draw: no curve has a finite, positive point")
    figure = new_figure(width, 7, max((6 if probe else 4) / 7 * inches(width, 7), 4 if probe else 2.5), title)
    ax, *below = figure.subplots(2, sharex=True, height_ratios=(3, 2)) if probe else [figure.subplots()]
    for (name, points), (colour, line, dashes, marker) in zip(drawable.items(), itertools.cycle(_STYLES)):
        label = f"{name} (last {points[-1][1]:.3g})"
        ax.plot(*zip(*points), dashes, color=colour, linewidth=line, marker=marker, markersize=4, label=label)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Powers of ten would leave an axis that spans less than a few of them without labels.
    ax.yaxis.set_major_locator(MaxNLocator(6) if high < 5 * low else LogLocator(subs=(1, 2, 5), numticks=12))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set(ylabel="loss on hidden patches (log scale)")
    ax.legend(frameon=False, fontsize=LABEL_SIZE)
    for lower in below:
        best = max(value for _, value in probe)
        label = f"k-NN of frozen features (best {best:.1%})"
        lower.plot(*zip(*probe), color=GREEN, marker="o", markersize=4, label=label)
        lower.yaxis.set_major_formatter("{x:.0%}")
        lower.set(ylabel=measure)
        lower.legend(frameon=False, fontsize=LABEL_SIZE)
    for each in (ax, *below):
        open_axes(each, "both")
    last = (ax, *below)[-1]
    last.set_xlim(left=0)
    last.set(xlabel="updates")
    return figure
