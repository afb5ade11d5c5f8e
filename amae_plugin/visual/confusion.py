"""Confusion matrices: the classes that clips of each class were taken for."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from amae_plugin.visual.style import BLUE, DPI, NOTE, ROUND_STEPS, new_figure, shorten, text_inches

_COUNTS_UP_TO = 20  # classes; more, and the numbers would be too small to read
_NAMES_UP_TO = 60
_PALE_BLUE, _DEEP_BLUE = "#cbdcf1", "#12305e"
_NO_CLIPS = "#cccccc"  # a neutral grey, which the colour maps do not contain
_ZERO = "#a3adb5"
_LEAST_SHARE = 1e-9  # smaller than any share but 0
_PIXELS = 5  # least width of what is drawn for a cell


def plot_confusion(confusion: ArrayLike, names: Sequence[str], *, title: str | None = None) -> Figure:
    """Draw how often clips of each class (rows) were taken for each class (columns), coloured by share of the row.

    Up to 20 classes, the cells hold the counts of clips. Beyond that, every cell that is not zero stands out from white
    and the colours follow the root of the share, which makes single errors visible. Up to 60 classes are named, more
    are numbered. Among so many classes that a cell has few pixels, cells that are not zero are drawn larger, errors
    over smaller errors and over the diagonal. Rows of classes without clips are grey.

    Args:
        confusion: (C, C) clips; row: the clip's class, column: the chosen one.
        names: names of the C classes.
        title: title of the figure.

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

    least, each = (2.6, 0.42) if counted else (5.0, 0.15) if named else (6.5, 0.0075)
    side = min(max(least, each * classes), 9.5)  # of the square that all cells make, in inches
    cell = side / classes
    labels = [shorten(name) for name in names] if named else []
    size = 8.5 if counted else 7.0
    longest = text_inches(max(map(len, labels), default=5), size)
    angle = 0 if not named or longest < 0.9 * cell else 45 if counted else 90
    below = longest * math.sin(math.radians(angle))
    figure = new_figure(side + longest + 1.5, side + below + 1.1, title)
    figure.set_layout_engine("compressed")
    ax = figure.subplots()
    norm = Normalize(0, 1) if counted else PowerNorm(0.5, _LEAST_SHARE, 1)
    shades = ["white" if counted else _PALE_BLUE, BLUE, _DEEP_BLUE]
    colours = LinearSegmentedColormap.from_list("shares", shades, 1024).with_extremes(under="white", bad=_NO_CLIPS)
    width = 2 * round((_PIXELS / (cell * DPI) - 1) / 2) + 1  # the nearest odd number of cells
    image = ax.imshow(_enlarge(shares, width), colours, norm, interpolation="nearest")
    if counted:
        _write_counts(ax, confusion, shares, cell)
    for axis in (ax.xaxis, ax.yaxis):
        if named:
            axis.set_ticks(range(classes), labels, fontsize=size, parse_math=False)
        else:
            axis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND_STEPS))
    for label in ax.get_xticklabels() if angle else ():
        label.set(rotation=angle, rotation_mode="anchor", ha="right", va="center" if angle == 90 else "top")
    unit = "" if named else " (class index)"
    ax.set(xlabel=f"chosen class{unit}", ylabel=f"class of the clip{unit}")
    ax.tick_params(length=2.5, width=0.6)
    ax.spines[:].set_linewidth(0.6)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=30)
    ticks = [0, 0.25, 0.5, 0.75, 1] if counted else [_LEAST_SHARE, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar.set_ticks(ticks, labels=[">0%" if tick == _LEAST_SHARE else f"{tick:.0%}" for tick in ticks])
    bar.ax.tick_params(labelsize=7.5)
    bar.set_label("share of the class's clips", fontsize=8.5)
    if without := np.count_nonzero(clips == 0):
        note = f"grey: {without} {'class' if without == 1 else 'classes'} without clips"
        ax.annotate(note, (1, 1), (0, 3), "axes fraction", "offset points", ha="right", fontsize=7.5, color=NOTE)
    return figure


def _enlarge(shares: np.ndarray, width: int) -> np.ndarray:
    """Let every share (C, C) also fill the *width* x *width* cells around it; *width* is odd.

    Where several meet, the highest error is shown, and the diagonal where there is none.
    """
    errors = np.nan_to_num(shares)
    diagonal = np.diag(np.diagonal(errors))
    planes = torch.from_numpy(np.stack([errors - diagonal, diagonal]))
    errors, diagonal = torch.nn.functional.max_pool2d(planes, width, stride=1, padding=width // 2).numpy()
    enlarged = np.where(errors > 0, errors, diagonal)
    return np.where(np.isnan(shares) & (enlarged == 0), np.nan, enlarged)


def _write_counts(ax: Axes, confusion: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Write numbers of one size into cells of this many inches, except in rows without clips."""
    size = min(9.0, 9.0 * 0.85 * cell / text_inches(len(str(confusion.max())), 9.0))
    for (row, column), count in np.ndenumerate(confusion):
        if not np.isnan(shares[row, column]):
            colour = "white" if shares[row, column] > 0.45 else "black" if count else _ZERO
            ax.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)
