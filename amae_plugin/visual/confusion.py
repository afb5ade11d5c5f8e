"""Which classes were taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amae_plugin.visual.style import BLUE, NOTE, add_title, shorten, text_inches

_COUNTS_UP_TO = 20  # classes; more, and the numbers would be too small to read
_NAMES_UP_TO = 60
_DEEP_BLUE = "#12305e"
_PALE_BLUE = "#cbdcf1"
_NO_CLIPS = "#cccccc"  # a neutral grey, which the colour maps do not contain
_ZERO = "#a3adb5"
_DPI = 150
_PIXELS = 5  # about a side of what is drawn for a cell if cells are smaller


def plot_confusion(confusion: np.ndarray, names: Sequence[str], *, title: str | None = None) -> Figure:
    """How often clips of each class (rows) were taken for each class (columns), coloured by share of the row.

    Up to 20 classes the clips are counted in the cells; up to 60 the classes are named, beyond that numbered. Where no
    counts are written, every cell that is not zero stands out from white and the colours follow the root of the share,
    so that single errors are seen. Among so many classes that a cell has few pixels, what is not zero is drawn larger:
    errors over smaller ones and over the diagonal. Rows of classes without clips are grey.

    Args:
        confusion: (C, C) clips; row: the clip's class, column: the chosen one.
        names: of the C classes.
        title: of the figure.

    Raises:
        ValueError: there are no classes, or the shapes do not agree.
    """
    confusion = np.asarray(confusion)
    classes = len(names)
    if not classes or confusion.shape != (classes, classes):
        raise ValueError(f"{classes} names need a confusion ({classes}, {classes}), at least 1, not {confusion.shape}")
    clips = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, clips, out=np.full(confusion.shape, np.nan), where=clips > 0)
    counted, named = classes <= _COUNTS_UP_TO, classes <= _NAMES_UP_TO

    side = _side(classes)
    cell = side / classes
    labels = [shorten(name) for name in names] if named else []
    size = 8.5 if counted else 7.0
    longest = text_inches(max(map(len, labels), default=5), size)
    angle = 0 if not named or longest < 0.9 * cell else 45 if counted else 90
    below = longest * math.sin(math.radians(angle))
    figure = Figure(figsize=(side + longest + 1.5, side + below + 1.1), dpi=_DPI, layout="compressed")
    ax = figure.subplots()
    norm, colours = (Normalize(0, 1), _from_white()) if counted else (PowerNorm(0.5, 0, 1), _apart_from_white())
    width = 2 * round((_PIXELS / (cell * _DPI) - 1) / 2) + 1  # the nearest odd number of cells
    image = ax.imshow(np.ma.masked_invalid(_enlarge(shares, width)), cmap=colours, norm=norm, interpolation="nearest")
    if counted:
        _write_counts(ax, confusion, shares, cell)
    if named:
        ax.set_xticks(range(classes), labels, fontsize=size, parse_math=False)
        ax.set_yticks(range(classes), labels, fontsize=size, parse_math=False)
        if angle:
            for label in ax.get_xticklabels():
                label.set(rotation=angle, ha="right", va="center" if angle == 90 else "top", rotation_mode="anchor")
        ax.set_xlabel("chosen class")
        ax.set_ylabel("class of the clip")
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("chosen class (class index)")
        ax.set_ylabel("class of the clip (class index)")
    ax.tick_params(length=2.5, width=0.6)
    ax.spines[:].set_linewidth(0.6)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=30)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1] if counted else [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_ticklabels([f"{tick:.0%}" if tick or counted else ">0%" for tick in bar.get_ticks()])
    bar.ax.tick_params(labelsize=7.5)
    bar.set_label("share of the class's clips", fontsize=8.5)
    without = int((clips == 0).sum())
    if without:
        note = f"grey: {without} {'class' if without == 1 else 'classes'} without clips"
        ax.annotate(note, (1, 1), (0, 3), "axes fraction", "offset points", ha="right", fontsize=7.5, color=NOTE)
    add_title(figure, title)
    return figure


def _side(classes: int) -> float:
    """Inches of the square that all cells make."""
    if classes <= _COUNTS_UP_TO:
        return max(2.6, 0.42 * classes)
    if classes <= _NAMES_UP_TO:
        return max(5.0, 0.15 * classes)
    return min(max(6.5, 0.0075 * classes), 9.5)


def _enlarge(shares: np.ndarray, width: int) -> np.ndarray:
    """(C, C) like the shares, every one of which also fills the *width* x *width* cells around it.

    Where several meet, the highest error is shown, and the diagonal where there is none.
    """
    errors = np.nan_to_num(shares)
    diagonal = np.diag(np.diagonal(errors))
    errors = _highest(errors - diagonal, width)
    enlarged = np.where(errors > 0, errors, _highest(diagonal, width))
    return np.where(np.isnan(shares) & (enlarged == 0), np.nan, enlarged)


def _highest(values: np.ndarray, width: int) -> np.ndarray:
    """(C, C), the highest of the *width* x *width* values around each; *width* is odd."""
    values = np.pad(values, width // 2)
    for axis in (0, 1):
        values = np.lib.stride_tricks.sliding_window_view(values, width, axis=axis).max(axis=-1)
    return values


def _from_white() -> Colormap:
    return LinearSegmentedColormap.from_list("shares", ["white", BLUE, _DEEP_BLUE]).with_extremes(bad=_NO_CLIPS)


def _apart_from_white() -> Colormap:
    """White for 0 alone: the least other share has a colour that is seen."""
    others = LinearSegmentedColormap.from_list("shares", [_PALE_BLUE, BLUE, _DEEP_BLUE], N=1023)
    return ListedColormap(["white", *others(np.linspace(0, 1, 1023))]).with_extremes(bad=_NO_CLIPS)


def _write_counts(ax: Axes, confusion: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Numbers in cells of this many inches, of one size; none in rows without clips."""
    size = min(9.0, 9.0 * 0.85 * cell / text_inches(len(str(confusion.max())), 9.0))
    for (row, column), count in np.ndenumerate(confusion):
        if not np.isnan(shares[row, column]):
            colour = "white" if shares[row, column] > 0.45 else "black" if count else _ZERO
            ax.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)
