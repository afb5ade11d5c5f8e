"""Results side by side."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from amae_plugin.metrics.spread import Spread
from amae_plugin.visual.style import (
    LABEL_SIZE,
    OVER_LINES,
    TICK_SIZE,
    Width,
    colours,
    new_figure,
    open_axes,
    text_inches,
    wrap,
)

_BAR_INCHES = 0.62
_SPACE_INCHES = 0.55  # between groups
_AXIS_INCHES = 0.9


def plot_comparison(
    accuracies: Mapping[str, Mapping[str, float | Sequence[float]]],
    *,
    ylabel: str,
    title: str | None = None,
    chance: float | None = None,
    width: Width = None,
) -> Figure:
    """Draw bars of several series in groups, in percent; a series that a group lacks leaves a gap there.

    The bar of several runs is as high as their mean, with their standard deviation as an error bar. A system has the
    same colour in every figure.

    Args:
        accuracies: values in [0, 1] by group, such as ``10% of the labels``, and series, such as ``pretrained`` and
            ``from scratch``, each of one run or of several; drawn in this order.
        ylabel: name of the values.
        title: title of the figure.
        chance: accuracy of guessing, in [0, 1], drawn as a dotted line.
        width: of the figure.

    Raises:
        ValueError: there is no value, or one is not in [0, 1].
    """
    series = list(dict.fromkeys(itertools.chain(*accuracies.values())))
    if not series:
        raise ValueError("there is nothing to compare: no group has a value")
    named = [
        (f"{name}, {group}", value)
        for group, values in accuracies.items()
        for name, runs in values.items()
        for value in np.atleast_1d(runs)
    ]
    for name, value in [*named, ("chance", chance or 0.0)]:
        if not 0 <= value <= 1:
            raise ValueError(f"values must be in [0, 1], not {value} ({name})")

    group_inches = _BAR_INCHES * len(series) + _SPACE_INCHES
    figure = new_figure(
        width, max(5.0, group_inches * len(accuracies) + _AXIS_INCHES), 4 if width is None else 3.4, title
    )
    ax = figure.subplots()
    bar_width = _BAR_INCHES / group_inches  # groups are one apart
    group_inches = (figure.get_figwidth() - _AXIS_INCHES) / len(accuracies)
    upright = bar_width * group_inches < text_inches(len("100.0%"), TICK_SIZE)
    colour_of = colours(series)
    legend: dict[str, Artist] = {}
    for index, name in enumerate(series):
        bars = {
            group: Spread.of(np.atleast_1d(values[name]).tolist())
            for group, values in enumerate(accuracies.values())
            if name in values
        }
        centres = [group + (index - (len(series) - 1) / 2) * bar_width for group in bars]
        means, stds = np.array([(bar.mean, bar.std or 0.0) for bar in bars.values()]).T
        reach = [np.minimum(stds, means), np.minimum(stds, 1 - means)] if stds.any() else None
        lines = {"elinewidth": 1.2, "capsize": 0 if upright else 3}
        drawn = ax.bar(centres, means, 0.92 * bar_width, color=colour_of[name], yerr=reach, error_kw=lines)
        labels = [f"{bar.mean:.1%}" if upright else str(bar).replace(" ", "\n", 1) for bar in bars.values()]
        turned = 90 * upright
        ax.bar_label(drawn, labels, padding=2, fontsize=TICK_SIZE, rotation=turned, path_effects=OVER_LINES)
        legend[name] = drawn.patches[0]
    if chance is not None:
        legend[f"chance ({chance:.1%})"] = ax.axhline(chance, color="black", linewidth=1.2, linestyle=":")
    ax.set(xlim=(-0.5, len(accuracies) - 0.5), ylim=(0, 1), ylabel=ylabel)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set_xticks(
        range(len(accuracies)), [wrap(name, group_inches, TICK_SIZE) for name in accuracies], parse_math=False
    )
    ax.tick_params(axis="x", length=0)
    open_axes(ax, "y")
    columns = max(int(figure.get_figwidth() / (text_inches(max(map(len, legend)), LABEL_SIZE) + 0.5)), 1)
    names, keys = zip(*legend.items())
    drawn_legend = figure.legend(
        keys, names, loc="outside lower center", ncols=columns, columnspacing=1.2, frameon=False, fontsize=LABEL_SIZE
    )
    for text in drawn_legend.get_texts():
        text.set_parse_math(False)
    return figure
