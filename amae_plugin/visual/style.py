"""Colours, sizes, titles and axes that the pictures share."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amae_plugin.files import replacing

BLUE, RED, GREEN, PURPLE, OCHRE, SLATE = PALETTE = ("#3b6fb6", "#d1495b", "#4f8a5b", "#7a5195", "#d9962e", "#6b7a87")
GRID = "#d8dde1"
NOTE = "#5b6770"  # remarks are fainter than labels
OVER_LINES = (patheffects.withStroke(linewidth=2, foreground="white"),)  # keeps a text readable that a line crosses
ROUND_STEPS = (1, 2, 5, 10)
"""Steps between ticks, times a power of ten."""
DPI = 150

_LONGEST_NAME = 32
_TITLE_SIZE = 11


def new_figure(width: float, height: float, title: str | None) -> Figure:
    """Make a figure of this size in inches that does not depend on matplotlib's global state.

    The title is written above everything, in as many lines as the width needs.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if title is not None:
        figure.suptitle(wrap(title, width - 0.2, _TITLE_SIZE), fontsize=_TITLE_SIZE, parse_math=False)
    return figure


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
    """Draw faint grid lines behind the data, and remove the frame at the top and on the right."""
    ax.grid(True, axis=grid, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def shorten(name: str) -> str:
    """Cut a name to 32 characters, the last of them an ellipsis, if it is longer."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip() + "…"


def text_inches(characters: int, size: float) -> float:
    """Estimate the width of a text in a font size in points."""
    return characters * size * 0.58 / 72


def wrap(text: str, inches: float, size: float) -> str:
    """Break a text into lines of about this width; its own line breaks stay."""
    characters = max(int(inches / text_inches(1, size)), 8)
    return "\n".join(textwrap.fill(line, characters) for line in text.split("\n"))
