"""Results side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from amae_plugin.visual.style import GRID, OVER_LINES, PALETTE, add_title, text_inches, wrap

_BAR_INCHES = 0.62
_SPACE_INCHES = 0.55  # between groups
_LEGEND_SIZE = 9


def plot_comparison(
    accuracies: Mapping[str, Mapping[str, float]],
    *,
    ylabel: str,
    title: str | None = None,
    chance: float | None = None,
) -> Figure:
    """Bars of several series in groups, in percent; a series that a group lacks leaves a gap there.

    Args:
        accuracies: for each group, such as ``10% of the labels``, the values in [0, 1] of its series, such as
            ``pretrained`` and ``from scratch``. Both are drawn in the order in which they come.
        ylabel: what the values are.
        title: of the figure.
        chance: what guessing would reach, in [0, 1], drawn as a dotted line.

    Raises:
        ValueError: there is no value, or one is not in [0, 1].
    """
    series = list(dict.fromkeys(name for values in accuracies.values() for name in values))
    if not series:
        raise ValueError("there is nothing to compare: no group has a value")
    named = {f"{name}, {group}": value for group, values in accuracies.items() for name, value in values.items()}
    for name, value in {**named, "chance": 0.0 if chance is None else chance}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"values must be in [0, 1], not {value} ({name})")

    group_inches = _BAR_INCHES * len(series) + _SPACE_INCHES
    figure = Figure(figsize=(max(5.0, group_inches * len(accuracies) + 0.9), 4), dpi=150, layout="constrained")
    ax = figure.subplots()
    width = _BAR_INCHES / group_inches  # groups are one apart
    legend: dict[str, Any] = {}
    for index, name in enumerate(series):
        here = [(group, values[name]) for group, values in enumerate(accuracies.values()) if name in values]
        centres = [group + (index - (len(series) - 1) / 2) * width for group, _ in here]
        heights = [value for _, value in here]
        bars = ax.bar(centres, heights, 0.92 * width, color=PALETTE[index % len(PALETTE)])
        legend[name] = bars
        ax.bar_label(bars, [f"{value:.1%}" for value in heights], padding=2, fontsize=8.5, path_effects=OVER_LINES)
    if chance is not None:
        legend[f"chance ({chance:.1%})"] = ax.axhline(chance, color="black", linewidth=1.2, linestyle=":")
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlim(-0.5, len(accuracies) - 0.5)
    ax.set_xticks(range(len(accuracies)), [wrap(name, group_inches, 10) for name in accuracies], parse_math=False)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel(ylabel)
    ax.grid(True, axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    columns = int(figure.get_figwidth() / (text_inches(max(map(len, legend)), _LEGEND_SIZE) + 0.5))
    drawn = figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=max(columns, 1),
        columnspacing=1.2,
        frameon=False,
        fontsize=_LEGEND_SIZE,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
    add_title(figure, title)
    return figure
