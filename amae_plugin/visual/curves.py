"""Pretrainings of several systems side by side: their losses and what their features are worth, over updates."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amae_plugin.visual.style import LABEL_SIZE, Width, colours, inches, new_figure, open_axes

Curve = Sequence[tuple[float, float]]
"""Points (x, y) by x."""


class Band(NamedTuple):
    """Mean of several curves, point by point, and their sample standard deviation, 0 for a single curve: (N,) each."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> "Band":
        """Summarise curves whose i-th points belong together; what some of them lack at their ends is left out."""
        length = min(map(len, curves))
        points = np.array([curve[:length] for curve in curves], np.float64).reshape(len(curves), length, 2)
        spread = points[..., 1].std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(length)
        return cls(points[..., 0].mean(axis=0), points[..., 1].mean(axis=0), spread)


def plot_curves(
    losses: Mapping[str, Sequence[Curve]],
    probes: Mapping[str, Sequence[Curve]],
    *,
    ylabel: str,
    title: str | None = None,
    chance: float | None = None,
    width: Width = None,
) -> Figure:
    """Draw losses over updates on the left, and probes on the right: means of runs, and bands of their deviation.

    In a column, the probes are below the losses. Losses of different systems mean different things, so each is drawn
    relative to its own first point.

    Args:
        losses: points (update, loss) of each run, by system, in the order of the comparison.
        probes: points (update, value in [0, 1]) of each run, by system.
        ylabel: name of the probes' values.
        title: title of the figure.
        chance: value of guessing, drawn as a dotted line.
        width: of the figure.

    Raises:
        ValueError: there is no point to draw.
    """
    if not any(map(len, itertools.chain(*losses.values(), *probes.values()))):
        raise ValueError("there is nothing to draw: no run has a point")
    stacked = width == "column"
    figure = new_figure(width, 10, 5.5 if stacked else 0.42 * inches(width, 10), title)
    left, right = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    legend: dict[str, Artist] = {}
    for name, colour in colours(losses).items():
        relative = [[(x, y / run[0][1]) for x, y in run] for run in losses[name] if run]
        for ax, runs, marker in ((left, relative, ""), (right, [run for run in probes.get(name, ()) if run], "o")):
            if runs:
                legend[name] = _draw(ax, Band.of(runs), colour=colour, marker=marker)
    if chance is not None:
        legend[f"chance ({chance:.1%})"] = right.axhline(chance, color="black", linewidth=1.2, linestyle=":")
    left.set(xlabel="updates", ylabel="training loss, relative to its first value")
    right.set(xlabel="updates", ylabel=ylabel)
    right.yaxis.set_major_formatter("{x:.0%}")
    for ax in (left, right):
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        open_axes(ax, "both")
    options: dict[str, Any] = {"ncols": 3 if stacked else 7, "frameon": False, "fontsize": LABEL_SIZE}
    drawn = figure.legend(legend.values(), legend.keys(), loc="outside lower center", **options)
    for text in drawn.get_texts():
        text.set_parse_math(False)
    return figure


def _draw(ax: Axes, band: Band, *, colour: str, marker: str) -> Artist:
    (line,) = ax.plot(band.x, band.mean, color=colour, marker=marker, markersize=4, linewidth=1.5)
    if band.std.any():
        ax.fill_between(band.x, band.mean - band.std, band.mean + band.std, color=colour, alpha=0.2, linewidth=0)
    return line
