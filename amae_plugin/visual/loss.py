"""How the loss fell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from amae_plugin.visual.style import BLUE, GREEN, GRID, PURPLE, RED

_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linewidth": 1.4},
    {"color": RED, "linewidth": 1.6, "marker": "o", "markersize": 4},
    {"color": GREEN, "linewidth": 1.4, "linestyle": "--"},
    {"color": PURPLE, "linewidth": 1.4, "linestyle": ":"},
)


def plot_loss(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str | None = None) -> Figure:
    """Loss over updates, with a logarithmic loss axis.

    Args:
        curves: for each name, such as ``training`` and ``validation``, its points (update, loss) in order. Points
            whose loss is not finite or not positive, which a logarithmic axis cannot show, are left out.
        title: of the figure.

    Raises:
        ValueError: no curve has a point to draw.
    """
    drawable = {name: [(x, y) for x, y in points if 0 < y < math.inf] for name, points in curves.items()}
    drawable = {name: points for name, points in drawable.items() if points}
    if not drawable:
        raise ValueError("there is no loss to draw: no curve has a finite, positive point")
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    ax = figure.subplots()
    for index, (name, points) in enumerate(drawable.items()):
        updates, losses = zip(*points)
        ax.plot(updates, losses, label=f"{name} (last {losses[-1]:.3g})", **_STYLES[index % len(_STYLES)])
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Powers of ten alone would leave an axis that spans less than a few of them without labels.
    ax.yaxis.set_major_locator(MaxNLocator(6) if high < 5 * low else LogLocator(subs=(1, 2, 5), numticks=12))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlim(left=0)
    ax.set_xlabel("updates")
    ax.set_ylabel("loss (mean squared error on hidden patches)")
    ax.grid(True, which="major", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    if title is not None:
        ax.set_title(title, fontsize=11)
    return figure
