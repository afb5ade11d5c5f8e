"""Colours, sizes, titles and axes that the pictures share."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Optional

from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amae_plugin.files import replacing
from amae_plugin.models.registry import SYSTEMS

Width = Optional[Literal["column", "page"]]
"""Width of a figure in a paper, a column or both; None: what its content needs, for a screen."""
_INCHES = {"column": 3.4, "page": 7.0}

BLUE, RED, GREEN, PURPLE, OCHRE, SLATE = _FIRST = ("#3b6fb6", "#d1495b", "#4f8a5b", "#7a5195", "#d9962e", "#6b7a87")
PALETTE = (*_FIRST, "#35a7a7", "#8a5a44", "#d98bb5", "#9c9a35")
LABEL_SIZE, TICK_SIZE = 8.5, 7.5
"""Sizes of letters in points, which fit a paper's caption as well as a screen."""
GRID = "#d8dde1"
NOTE = "#5b6770"  # remarks are fainter than labels
OVER_LINES = (patheffects.withStroke(linewidth=2, foreground="white"),)  # keeps a text readable that a line crosses
ROUND_STEPS = (1, 2, 5, 10)
"""Steps between ticks, times a power of ten."""
DPI, _PRINTED_DPI = 150, 300

LONGEST_NAME = 32
_TITLE_SIZE, _PRINTED_TITLE_SIZE = 11.0, 9.0


def inches(width: Width, needed: float) -> float:
    """Return the inches of a figure's width, *needed* being those of its content on a screen."""
    return needed if width is None else _INCHES[width]


def new_figure(width: Width, needed: float, height: float, title: str | None) -> Figure:
    """Make a figure that does not depend on matplotlib's global state.

    Args:
        width: where the figure is to be shown.
        needed: width in inches that its content needs, see :func:`inches`.
        height: its height in inches.
        title: written above everything, in as many lines as the width needs.
    """
    wide, printed = inches(width, needed), width is not None
    figure = Figure(figsize=(wide, height), dpi=_PRINTED_DPI if printed else DPI, layout="constrained")
    if title is not None:
        size = _PRINTED_TITLE_SIZE if printed else _TITLE_SIZE
        figure.suptitle(wrap(title, wide - 0.2, size), fontsize=size, parse_math=False)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """Choose a colour for each name: a system has its own in every figure, and others have what is left, in order."""
    names = list(names)
    of_systems = dict(zip((system.title.casefold() for system in SYSTEMS.values()), PALETTE))
    own = {name: of_systems[name.casefold()] for name in names if name.casefold() in of_systems}
    left = itertools.cycle(PALETTE[len(of_systems) :] if own else PALETTE)
    return {name: own.get(name) or next(left) for name in names}


def save(figure: Figure, path: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Save a figure once in each format, under the name of *path* with the format as its ending.

    Letters stay letters in the vector formats, so that a paper's figure can be searched and edited.
    """
    paths = [path.with_suffix(f".{each}") for each in formats]
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        for each in paths:
            with replacing(each) as partial:
                figure.savefig(partial, format=each.suffix[1:])
    return paths


def open_axes(ax: Axes, grid: Literal["both", "x", "y"]) -> None:
    """Draw faint grid lines behind the data, remove the frame at the top and on the right, and set the letters."""
    ax.grid(True, axis=grid, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=TICK_SIZE)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(LABEL_SIZE)


def shorten(name: str, characters: int = LONGEST_NAME) -> str:
    """Cut a name to so many characters, the last of them an ellipsis, if it is longer."""
    return name if len(name) <= characters else name[: characters - 1].rstrip() + "…"


def text_inches(characters: int, size: float) -> float:
    """Estimate the width of a text in a font size in points."""
    return characters * size * 0.58 / 72


def wrap(text: str, inches: float, size: float) -> str:
    """Break a text into lines of about this width; its own line breaks stay."""
    characters = max(int(inches / text_inches(1, size)), 8)
    return "\n".join(textwrap.fill(line, characters) for line in text.split("\n"))
