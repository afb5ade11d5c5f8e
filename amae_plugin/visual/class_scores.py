"""A score of each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from amae_plugin.visual.style import (
    BLUE,
    LONGEST_NAME,
    NOTE,
    OVER_LINES,
    RED,
    ROUND_STEPS,
    TICK_SIZE,
    Width,
    new_figure,
    open_axes,
    shorten,
    text_inches,
)

_ALL_UP_TO = {None: 60, "page": 40, "column": 40}  # classes, so that a paper's page is high enough
_EACH_END = {None: 25, "page": 14, "column": 14}  # best and worst classes with bars where there are too many
_GAP = 2  # bars wide
_BAR_INCHES = 0.17
_CURVE_INCHES = 2.3
_NAMES_SHARE, _BARS_SHARE = 0.32, 0.6  # of the width
_VALUE_INCHES = 0.4


def plot_class_scores(
    scores: ArrayLike,
    names: Sequence[str],
    *,
    measure: str,
    counts: ArrayLike | None = None,
    title: str | None = None,
    width: Width = None,
) -> Figure:
    """Draw a score of each class as bars, the best on top, and their mean.

    More than 60 classes, or 40 in a paper, are drawn as a curve, with bars of the best and the worst below it.

    Args:
        scores: (C,), higher is better; a class without positives, whose score is NaN, is left out, and a note says so.
        names: names of the C classes.
        measure: name of the scores, such as ``average precision``.
        counts: (C,) clips of each class, written beside its bar.
        title: title of the figure.
        width: of the figure.

    Raises:
        ValueError: the shapes do not agree, a score is infinite, or no score is a number.
    """
    scores = np.asarray(scores, np.float64)
    classes = len(names)
    shapes = [str(np.shape(values)) for values in (scores, counts) if values is not None]
    if set(shapes) != {f"({classes},)"}:
        raise ValueError(f"{classes} names need scores, and any counts, ({classes},), not {' and '.join(shapes)}")
    if np.isinf(scores).any():
        raise ValueError(f"the score of class {int(np.isinf(scores).argmax())} is infinite")
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]  # NaN come last
    if not len(order):
        raise ValueError("there are no scores to draw: all are NaN")

    folded, end = len(order) > _ALL_UP_TO[width], _EACH_END[width]
    shown = np.concatenate([order[:end], order[-end:]]) if folded else order
    worst = np.arange(len(shown)) >= (end if folded else len(shown))
    rows = np.arange(len(shown)) + _GAP * worst
    height = _BAR_INCHES * (rows[-1] + 1) + 1.2
    mean = float(scores[order].mean())
    figure = new_figure(width, 7, height + _CURVE_INCHES if folded else max(height, 2.2), title)
    if folded:
        curve, ax = figure.subplots(2, height_ratios=(_CURVE_INCHES, height))
        _draw_curve(curve, scores[order], mean, measure, end)
        between = f"{len(order) - len(shown)} classes between"
        place = ((0.5, end + (_GAP - 1) / 2), None, ("axes fraction", "data"))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        ax.annotate(between, *place, ha="center", va="center", fontsize=8, color=NOTE, bbox=box)
    else:
        ax = figure.subplots()
    margin = _VALUE_INCHES / (_BARS_SHARE * figure.get_figwidth())
    _draw_bars(ax, rows, scores[shown], mean, np.where(worst, RED, BLUE).tolist(), margin)
    ax.set_xlabel(measure)
    characters = min(LONGEST_NAME, int(_NAMES_SHARE * figure.get_figwidth() / text_inches(1, TICK_SIZE)))
    ax.set_yticks(rows, [shorten(names[index], characters) for index in shown], fontsize=TICK_SIZE, parse_math=False)
    if counts is not None:
        for row, count in zip(rows, np.asarray(counts)[shown]):
            beside = ((1, row), (4, 0), ("axes fraction", "data"), "offset points")
            ax.annotate(f"n={count:,}", *beside, va="center", fontsize=7, color=NOTE)
    if left_out := classes - len(order):
        figure.supxlabel(f"left out: {left_out} of {classes} classes, without positives", fontsize=8, color=NOTE)
    return figure


def _draw_bars(
    ax: Axes, rows: np.ndarray, scores: np.ndarray, mean: float, colours: Sequence[str], margin: float
) -> None:
    """Draw bars from the top down, and the mean as a line; values at the ends of bars need a *margin*, a share."""
    bars = ax.barh(rows, scores, height=0.72, color=colours)
    ax.bar_label(bars, fmt="{:.3f}", padding=3, fontsize=7, path_effects=OVER_LINES)
    low, high = min(scores.min(), 0.0), max(scores.max(), 1.0)
    spare = margin * (high - low)
    ax.set(xlim=(low - spare * (low < 0), high + spare), ylim=(rows[-1] + 0.7, -0.7))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
    ax.tick_params(axis="y", length=0)
    open_axes(ax, "x")
    ax.axvline(mean, color="black", linewidth=0.9, linestyle="--")
    above = ((mean, 1), (0, 3), ("data", "axes fraction"), "offset points")
    ax.annotate(f"mean {mean:.3f}", *above, ha="center", fontsize=8)


def _draw_curve(ax: Axes, scores: np.ndarray, mean: float, measure: str, end: int) -> None:
    """Draw sorted scores over their rank; those that have bars, so many at either end, are marked."""
    classes = len(scores)
    ax.plot(range(1, classes + 1), scores, color=BLUE, linewidth=1.6)
    ax.axhline(mean, color="black", linewidth=0.9, linestyle="--")
    place = ((1, mean), (-2, 3), ("axes fraction", "data"), "offset points")
    ax.annotate(f"mean {mean:.3f}", *place, ha="right", fontsize=8)
    for first, colour in ((0.5, BLUE), (classes - end + 0.5, RED)):
        ax.axvspan(first, first + end, color=colour, alpha=0.14, linewidth=0)
    ax.set(xlim=(0.5, classes + 0.5), ylim=(min(scores.min(), 0.0), max(scores.max(), 1.0) * 1.02))
    ax.set(xlabel=f"rank among {classes} classes", ylabel=measure)
    open_axes(ax, "both")
