"""What the figures of results have in common: colours, how a name is shortened and where a title stands."""

from __future__ import annotations

import textwrap

from matplotlib import patheffects
from matplotlib.figure import Figure

BLUE, RED, GREEN, PURPLE, OCHRE, SLATE = "#3b6fb6", "#d1495b", "#4f8a5b", "#7a5195", "#d9962e", "#6b7a87"
PALETTE = (BLUE, RED, GREEN, PURPLE, OCHRE, SLATE)
GRID = "#d8dde1"
NOTE = "#5b6770"  # of remarks, which stand back behind labels

_LONGEST_NAME = 32
_TITLE_SIZE = 11


OVER_LINES = (patheffects.withStroke(linewidth=2, foreground="white"),)  # keeps a text readable that a line crosses


def shorten(name: str) -> str:
    """The name, or its beginning and an ellipsis, at most 32 characters together."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip() + "…"


def text_inches(characters: int, size: float) -> float:
    """About how wide a text of this font size, in points, is."""
    return characters * size * 0.58 / 72


def wrap(text: str, inches: float, size: float) -> str:
    """The text in lines of about this width, with the line breaks that it has."""
    characters = max(int(inches / text_inches(1, size)), 8)
    return "\n".join(textwrap.fill(line, characters) for line in text.split("\n"))


def add_title(figure: Figure, title: str | None) -> None:
    """Write the title above everything, in as many lines as the figure's width asks for."""
    if title is not None:
        lines = wrap(title, figure.get_figwidth() - 0.2, _TITLE_SIZE)
        figure.suptitle(lines, fontsize=_TITLE_SIZE, parse_math=False)
