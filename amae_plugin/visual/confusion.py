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

from amae_plugin.visual.style import (
    BLUE,
    LABEL_SIZE,
    NOTE,
    ROUND_STEPS,
    TICK_SIZE,
    Width,
    inches,
    new_figure,
    shorten,
    text_inches,
)

_COUNTS_UP_TO = 20  # classes; more, and the numbers would be too small to read
_NAMES_UP_TO = 60
_PALE_BLUE, _DEEP_BLUE = "#cbdcf1", "#12305e"
_NO_CLIPS = "#cccccc"  # a neutral grey, which the colour maps do not contain
_ZERO = "#a3adb5"
_LEAST_SHARE = 1e-9  # smaller than any share but 0
_LEAST_INCHES = 1 / 30  # width of what is drawn for a cell
_LEAST_NAME_INCHES = 0.075  # of a cell with a name beside it
_LEAST_SLANTED_INCHES = 0.2
_NAMES_SHARE = 0.3  # of the figure's width
_BAR_INCHES = 1.0  # width of the colour bar, the axis's label and the spaces between


def plot_confusion(
    confusion: ArrayLike, names: Sequence[str], *, title: str | None = None, width: Width = None
) -> Figure:
    """Draw how often clips of each true class (rows) were predicted as each class, coloured by share of the row.

    Up to 20 classes, the cells hold the counts of clips. Beyond that, every cell that is not zero stands out from white
    and the colours follow the root of the share, which makes single errors visible. Up to 60 classes are named, more
    are numbered. Among so many classes that a cell has few pixels, cells that are not zero are drawn larger, errors
    over smaller errors and over the diagonal. Rows of classes without clips are grey.

    Args:
        confusion: (C, C) clips; row: the clip's class, column: the chosen one.
        names: names of the C classes.
        title: title of the figure.
        width: of the figure.

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
    size = LABEL_SIZE if counted else 7.0
    labels = [shorten(name) for name in names] if named else []
    if width is None:
        least, each = (2.6, 0.42) if counted else (5.0, 0.15) if named else (6.5, 0.0075)
        side = min(max(least, each * classes), 9.5)  # of the square that all cells make, in inches
    else:
        size = min(size, TICK_SIZE)
        characters = int(_NAMES_SHARE * inches(width, 0) / text_inches(1, size))
        labels = [shorten(name, characters) for name in labels]
        side = inches(width, 0) - _BAR_INCHES - text_inches(max(map(len, labels), default=5), size)
        named = named and side / classes >= _LEAST_NAME_INCHES
    cell = side / classes
    size = min(size, 72 * cell) if named else size
    longest = text_inches(max(map(len, labels)) if named else 5, size)
    angle = 0 if not named or longest < 0.9 * cell else 45 if cell > _LEAST_SLANTED_INCHES else 90
    below = longest * math.sin(math.radians(angle))
    figure = new_figure(width, side + longest + 1.5, side + below + (1.1 if width is None else 0.75), title)
    figure.set_layout_engine("compressed")
    ax = figure.subplots()
    norm = Normalize(0, 1) if counted else PowerNorm(0.5, _LEAST_SHARE, 1)
    shades = ["white" if counted else _PALE_BLUE, BLUE, _DEEP_BLUE]
    colours = LinearSegmentedColormap.from_list("shares", shades, 1024).with_extremes(under="white", bad=_NO_CLIPS)
    cells = 2 * round((_LEAST_INCHES / cell - 1) / 2) + 1  # the nearest odd number
    image = ax.imshow(_enlarge(shares, cells), colours, norm, interpolation="nearest")
    if counted:
        _write_counts(ax, confusion, shares, cell)
    for axis in (ax.xaxis, ax.yaxis):
        if named:
            axis.set_ticks(range(classes), labels, fontsize=size, parse_math=False)
        else:
            axis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND_STEPS))
    for label in ax.get_xticklabels() if angle else ():
        label.set(rotation=angle, rotation_mode="anchor", ha="right", va="center" if angle == 90 else "top")
    unit = "" if named else " (index)"
    ax.set_xlabel(f"predicted class{unit}", fontsize=LABEL_SIZE)
    ax.set_ylabel(f"true class{unit}", fontsize=LABEL_SIZE)
    ax.tick_params(length=2.5, width=0.6, labelsize=size if named else TICK_SIZE)
    ax.spines[:].set_linewidth(0.6)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=30)
    ticks = [0, 0.25, 0.5, 0.75, 1] if counted else [_LEAST_SHARE, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar.set_ticks(ticks, labels=[">0%" if tick == _LEAST_SHARE else f"{tick:.0%}" for tick in ticks])
    bar.ax.tick_params(labelsize=TICK_SIZE)
    bar.set_label("share of the true class's clips" + ("" if counted else ", by its root"), fontsize=LABEL_SIZE)
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
