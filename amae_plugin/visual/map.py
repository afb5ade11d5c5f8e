"""Clips as points in a plane, where neighbours are alike."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from amae_plugin.visual.style import (
    LABEL_SIZE,
    OVER_LINES,
    PALETTE,
    SLATE,
    Width,
    inches,
    new_figure,
    shorten,
    text_inches,
)

_SIDE = 5.0  # inches
_LINE_INCHES = 0.2  # of a legend
_COLOURS = (*PALETTE, *(colormaps["tab20"](index) for index in (2, 4, 10, 12, 16, 18, 1, 5, 9, 13)))
"""Of groups, in their order; more groups than colours share them."""
_NAMES_UP_TO = 60
_MARKERS = "os^Dv"
"""Of groups that share a colour, in their order."""


def plot_map(
    points: ArrayLike,
    groups: Sequence[str],
    *,
    in_place: bool = True,
    title: str | None = None,
    width: Width = None,
) -> Figure:
    """Draw points coloured by their group.

    Up to 60 groups are named, in place or in a legend.

    Args:
        points: places (N, 2) of the clips; neither axis has a meaning.
        groups: name of the group of each clip.
        in_place: whether the name of a group is written among its points, which suits groups that keep together.
        title: title of the figure.
        width: of the figure.

    Raises:
        ValueError: there are no points, or their number is not that of the groups.
    """
    points, names = np.asarray(points, float), np.array(groups)
    if not len(points) or points.shape != (len(names), 2):
        raise ValueError(f"{len(names)} groups need points ({len(names)}, 2), at least one, not {points.shape}")
    distinct = sorted(set(groups))
    named = len(distinct) <= _NAMES_UP_TO
    side = inches(width, _SIDE)
    longest = text_inches(max(len(shorten(name)) for name in distinct), LABEL_SIZE)
    columns = max(int(side / (longest + 0.35)), 1)
    lines = 0 if in_place or not named else math.ceil(len(distinct) / columns)
    figure = new_figure(width, _SIDE, side + lines * _LINE_INCHES, title)
    ax = figure.subplots()
    size = float(np.clip(10_000 / len(points), 4, 36))
    for index, name in enumerate(distinct):
        own = points[names == name]
        round_, colour = divmod(index, len(_COLOURS))
        marker = _MARKERS[round_ % len(_MARKERS)]
        label = shorten(name) if named else None
        ax.scatter(
            own[:, 0], own[:, 1], s=size, color=_COLOURS[colour], marker=marker, alpha=0.75, linewidths=0, label=label
        )
        if named and in_place:
            # At one of its own points: a mean may lie where the group has none.
            place = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
            text = ax.annotate(shorten(name), place, ha="center", va="center", parse_math=False)
            text.set(fontsize=LABEL_SIZE, weight="bold", path_effects=OVER_LINES)
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[:].set_color(SLATE)
    if lines:
        options = {"frameon": False, "fontsize": LABEL_SIZE, "columnspacing": 1.0, "handletextpad": 0.2}
        legend = figure.legend(loc="outside lower center", ncols=columns, markerscale=1.5, **options)
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    return figure
