"""How well each class is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amae_plugin.visual.style import BLUE, GRID, NOTE, OVER_LINES, RED, add_title, shorten

_ALL_UP_TO = 60
_EACH_END = 25  # classes drawn of the best and of the worst where there are too many
_GAP = 2  # bars wide
_BAR_INCHES = 0.17
_CURVE_INCHES = 2.3
_MEAN_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": "--"}


def plot_class_scores(
    scores: np.ndarray,
    names: Sequence[str],
    *,
    measure: str,
    counts: np.ndarray | None = None,
    title: str | None = None,
) -> Figure:
    """A measure of each class as bars, the best on top, with its mean over the classes.

    Of more than 60 classes, the 25 best and the 25 worst have bars, below a curve of all of them.

    Args:
        scores: (C,), higher is better; NaN for a class without positives, which is left out, as a note says.
        names: of the C classes.
        measure: what the scores are, such as ``average precision``.
        counts: (C,) clips of each class, written beside its bar.
        title: of the figure.

    Raises:
        ValueError: the shapes do not agree, a score is infinite, or all are NaN, as those of no classes are.
    """
    scores = np.asarray(scores, np.float64)
    classes = len(names)
    if scores.shape != (classes,) or (counts is not None and np.shape(counts) != (classes,)):
        found = f"{scores.shape}" if counts is None else f"{scores.shape} and {np.shape(counts)}"
        raise ValueError(f"{classes} names need scores, and counts if there are any, ({classes},), not {found}")
    if np.isinf(scores).any():
        raise ValueError(f"the score of class {int(np.isinf(scores).argmax())} is infinite")
    order = np.argsort(-scores, kind="stable")  # NaN last
    order = order[: int((~np.isnan(scores)).sum())]
    if not len(order):
        raise ValueError("there are no scores to draw: all are NaN")

    everything = len(order) <= _ALL_UP_TO
    shown = order if everything else np.concatenate([order[:_EACH_END], order[-_EACH_END:]])
    rows = np.arange(len(shown)) + (0 if everything else _GAP * (np.arange(len(shown)) >= _EACH_END))
    height = _BAR_INCHES * (rows[-1] + 1) + 1.2
    if everything:
        figure = Figure(figsize=(7, max(height, 2.2)), dpi=150, layout="constrained")
        bars = figure.subplots()
    else:
        figure = Figure(figsize=(7, height + _CURVE_INCHES), dpi=150, layout="constrained")
        curve, bars = figure.subplots(2, height_ratios=(_CURVE_INCHES, height))
        _draw_curve(curve, scores[order], measure)
    colours = [BLUE if everything or place < _EACH_END else RED for place in range(len(shown))]
    _draw_bars(bars, rows, scores[shown], [shorten(names[index]) for index in shown], colours)
    _draw_mean(bars, float(scores[order].mean()))
    bars.set_xlabel(measure)
    if counts is not None:
        for row, count in zip(rows, np.asarray(counts)[shown]):
            bars.annotate(
                f"n={count:,}",
                (1, row),
                (4, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                fontsize=7,
                color=NOTE,
            )
    if not everything:
        between = len(order) - len(shown)
        middle = _EACH_END + (_GAP - 1) / 2
        bars.annotate(
            f"{between} classes between",
            (0.5, middle),
            xycoords=("axes fraction", "data"),
            ha="center",
            va="center",
            fontsize=8,
            color=NOTE,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )
    left_out = classes - len(order)
    if left_out:
        figure.supxlabel(f"left out: {left_out} of {classes} classes, without positives", fontsize=8, color=NOTE)
    add_title(figure, title)
    return figure


def _draw_bars(ax: Axes, rows: np.ndarray, scores: np.ndarray, names: Sequence[str], colours: Sequence[str]) -> None:
    """Bars from the top down, with their values at their ends."""
    ax.barh(rows, scores, height=0.72, color=colours)
    for row, score in zip(rows, scores):
        ax.annotate(
            f"{score:.3f}",
            (max(score, 0), row),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            path_effects=OVER_LINES,
        )
    ax.set_yticks(rows, names, fontsize=7.5, parse_math=False)
    ax.set_ylim(rows[-1] + 0.7, -0.7)
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 1.0)
    ax.set_xlim(low, high + 0.09 * (high - low))  # the value of the longest bar lies inside
    ax.set_xticks([tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high])
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(True, axis="x", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_mean(ax: Axes, mean: float) -> None:
    ax.axvline(mean, **_MEAN_LINE)
    ax.annotate(
        f"mean {mean:.3f}", (mean, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", fontsize=8
    )


def _draw_curve(ax: Axes, scores: np.ndarray, measure: str) -> None:
    """Sorted scores of all classes over their rank; those that have bars below are marked."""
    ranks = np.arange(1, len(scores) + 1)
    ax.plot(ranks, scores, color=BLUE, linewidth=1.6)
    mean = float(scores.mean())
    ax.axhline(mean, **_MEAN_LINE)
    ax.annotate(
        f"mean {mean:.3f}", (1, mean), (-2, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8
    )
    for first, last, colour in ((1, _EACH_END, BLUE), (len(scores) - _EACH_END + 1, len(scores), RED)):
        ax.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.14, linewidth=0)
    ax.set_xlim(0.5, len(scores) + 0.5)
    ax.set_ylim(min(float(scores.min()), 0.0), max(float(scores.max()), 1.0) * 1.02)
    ax.set_xlabel(f"rank among {len(scores)} classes", fontsize=8.5)
    ax.set_ylabel(measure, fontsize=8.5)
    ax.tick_params(labelsize=8)
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
