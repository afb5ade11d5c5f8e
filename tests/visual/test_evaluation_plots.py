from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from amae_plugin.models.registry import SYSTEMS
from amae_plugin.visual import plot_class_scores, plot_comparison, plot_confusion, plot_layers, plot_loss, plot_map
from amae_plugin.visual.style import BLUE, PALETTE, RED, colours, save, shorten

LONG = "Bird vocalization, bird call, bird song"
SHORTENED = "Bird vocalization, bird call, b…"
LABELS = {
    "100% of the labels": {"pretrained": 0.943, "from scratch": 0.871},
    "10% of the labels": {"pretrained": 0.743, "from scratch": 0.401},
}


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 4) as saved."""
    with io.BytesIO() as file:
        figure.savefig(file, format="raw", dpi=figure.dpi)
        width, height = (round(side) for side in figure.canvas.get_width_height())
        return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)


def tick_labels(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def colour(axes: Axes, row: int, column: int) -> str:
    """Of a cell of the image in the axes."""
    image = axes.images[0]
    return to_hex(image.to_rgba(image.get_array())[row, column])


def brightness(axes: Axes, row: int, column: int) -> float:
    image = axes.images[0]
    return float(image.to_rgba(image.get_array())[row, column, :3].mean())


def bars(axes: Axes) -> list[Rectangle]:
    return [bar for container in axes.containers for bar in container]


def legend(figure: Figure) -> dict[str, str]:
    """The colour of each series of bars."""
    (drawn,) = figure.legends
    return {text.get_text(): to_hex(patch.get_facecolor()) for text, patch in zip(drawn.texts, drawn.get_patches())}


def classes(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def mostly_right(count: int) -> np.ndarray:
    """(C, C): 100 clips a class, one of class 3 taken for class 0, no clips of class 1."""
    confusion = 100 * np.eye(count, dtype=np.int64)
    confusion[3, 3], confusion[3, 0] = 99, 1
    confusion[1] = 0
    return confusion


def test_name_is_shortened_beyond_32_characters() -> None:
    assert shorten("x" * 32) == "x" * 32
    assert shorten("x" * 33) == "x" * 31 + "…"
    assert shorten(LONG) == SHORTENED
    assert shorten("a" * 30 + " and more") == "a" * 30 + "…"


def test_confusion_is_a_share_of_the_clips_of_the_row() -> None:
    axes = plot_confusion(np.array([[3, 1], [10, 30]]), ["yes", "no"]).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0.25, 0.75]])
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first class on top
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert brightness(axes, 0, 0) < brightness(axes, 0, 1)


def test_counts_stand_in_their_cells() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1234, 2, 5]])
    axes = plot_confusion(confusion, ["a", "b", "c"]).axes[0]
    counts = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    # Positions are (column, row); the second class has no clips.
    assert counts == {(0, 0): "3", (1, 0): "1", (2, 0): "0", (0, 2): "1234", (1, 2): "2", (2, 2): "5"}


def test_counts_fit_into_their_cells() -> None:
    figure = plot_confusion(np.full((20, 20), 1_234_567), classes(20))
    pixels(figure)  # places everything
    cell = figure.axes[0].get_window_extent().width / 20
    assert max(text.get_window_extent().width for text in figure.axes[0].texts) < cell


@pytest.mark.parametrize("count", [2, 20, 21, 60, 61, 1251])
def test_classes_are_counted_then_named_then_numbered(count: int) -> None:
    figure = plot_confusion(np.eye(count, dtype=int), classes(count))
    pixels(figure)
    axes = figure.axes[0]
    assert len(texts(axes)) == (count**2 if count <= 20 else 0)
    for axis, name in ((axes.xaxis, axes.get_xlabel()), (axes.yaxis, axes.get_ylabel())):
        if count <= 60:
            assert tick_labels(axis) == classes(count)
            assert axis.get_ticklocs().tolist() == list(range(count))
        else:
            assert name in ("predicted class (index)", "true class (index)")
            ticks = {text: at for text, at in zip(tick_labels(axis), axis.get_ticklocs()) if 0 <= at < count}
            assert [float(text) for text in ticks] == list(ticks.values())
            assert 4 <= len(ticks) <= 10
    assert figure.axes[1].get_ylabel() == "share of the true class's clips" + ", by its root" * (count > 20)


@pytest.mark.parametrize("count", [5, 30, 60])
def test_names_at_the_confusion_do_not_overlap(count: int) -> None:
    figure = plot_confusion(np.eye(count, dtype=int), [LONG] * count)
    pixels(figure)
    labels = figure.axes[0].get_yticklabels()
    assert {label.get_text() for label in labels} == {SHORTENED}
    tops = [label.get_window_extent().y0 for label in labels[:-1]]
    assert all(below.get_window_extent().y1 <= top + 1 for top, below in zip(tops, labels[1:]))
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} <= {45.0, 90.0}


@pytest.mark.parametrize("count", [4, 40, 200, 1251])
def test_rows_without_clips_are_grey(count: int) -> None:
    axes = plot_confusion(mostly_right(count), classes(count)).axes[0]
    red, green, blue = (int(colour(axes, 1, count - 1)[at : at + 2], 16) for at in (1, 3, 5))
    assert red == green == blue < 230
    assert colour(axes, 0, count - 1) == "#ffffff"
    assert texts(axes)[-1] == "grey: 1 class without clips"


def test_all_rows_without_clips() -> None:
    axes = plot_confusion(np.zeros((3, 3), int), "abc").axes[0]
    assert np.ma.getmaskarray(axes.images[0].get_array()).all()
    assert texts(axes) == ["grey: 3 classes without clips"]


@pytest.mark.parametrize("count", [21, 61, 250, 527, 1251])
def test_one_error_is_seen_on_the_saved_picture(count: int) -> None:
    """Without counts in the cells, one clip of a hundred has to stand out from white, and over more than a dot."""
    confusion = 100 * np.eye(count, dtype=np.int64)
    confusion[-1, -1], confusion[-1, count // 2] = 99, 1
    figure = plot_confusion(confusion, classes(count))
    seen = pixels(figure)[..., :3].astype(int)
    axes = figure.axes[0]
    x, y = axes.transData.transform((count // 2, count - 1))
    row, column = seen.shape[0] - round(y), round(x)
    around = seen[row - 4 : row + 2, column - 3 : column + 4].reshape(-1, 3)
    pale_blue = (around[:, 2] - around[:, 0] > 25) & (around.sum(axis=1) < 720)
    assert pale_blue.sum() >= 4


def test_an_error_beside_the_diagonal_is_not_hidden() -> None:
    confusion = 9 * np.eye(1251, dtype=np.int64)
    confusion[600, 601] = confusion[900, 100] = 1
    axes = plot_confusion(confusion, classes(1251)).axes[0]
    shares = axes.images[0].get_array()
    assert shares[600, 601] == pytest.approx(0.1)
    assert shares[300, 300] == 1
    assert np.flatnonzero(shares[900, :800]).tolist() == [98, 99, 100, 101, 102]  # larger, around its class


def test_the_highest_of_errors_that_meet_is_seen() -> None:
    confusion = np.zeros((1251, 1251), np.int64)
    confusion[:, 0] = 9
    confusion[600, 800], confusion[600, 801] = 3, 6
    shares = plot_confusion(confusion, classes(1251)).axes[0].images[0].get_array()
    assert shares[600, 801] == shares[600, 800] == pytest.approx(6 / 18)
    assert shares[600, 799] == pytest.approx(6 / 18)
    assert shares[600, 798] == pytest.approx(3 / 18)


def test_confusion_grows_within_reason() -> None:
    sides = [max(plot_confusion(np.eye(n, dtype=int), classes(n)).get_size_inches()) for n in (2, 10, 20, 60, 1251)]
    assert sides == sorted(sides) and sides[0] < 5 and sides[-1] < 13


@pytest.mark.parametrize(("shape", "names"), [((3, 3), "ab"), ((2, 3), "ab"), ((4,), "abcd"), ((0, 0), "")])
def test_confusion_of_another_shape_is_an_error(shape: tuple[int, ...], names: str) -> None:
    with pytest.raises(ValueError, match="confusion"):
        plot_confusion(np.zeros(shape, int), names)


def test_classes_are_sorted_by_their_score() -> None:
    axes = plot_class_scores([0.25, 0.75, 0.5], ["low", "high", LONG], measure="F1", title="three").axes[0]
    assert tick_labels(axes.yaxis) == ["high", SHORTENED, "low"]
    assert [bar.get_width() for bar in bars(axes)] == [0.75, 0.5, 0.25]
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars(axes)] == pytest.approx(axes.get_yticks())
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first bar on top
    assert texts(axes) == ["0.750", "0.500", "0.250", "mean 0.500"]
    assert axes.lines[0].get_xdata() == [0.5, 0.5]
    assert axes.get_xlabel() == "F1"
    assert axes.figure.get_suptitle() == "three"
    assert axes.figure.get_supxlabel() == ""


def test_equal_scores_keep_the_order_of_the_classes() -> None:
    axes = plot_class_scores(np.full(30, 0.5), classes(30), measure="F1").axes[0]
    assert tick_labels(axes.yaxis) == classes(30)


def test_clips_stand_beside_the_bars() -> None:
    axes = plot_class_scores([0.25, 0.75], ["low", "high"], measure="F1", counts=np.array([1234, 7])).axes[0]
    assert {text.xy[1]: text.get_text() for text in axes.texts if text.get_text().startswith("n=")} == {
        0: "n=7",
        1: "n=1,234",
    }


def test_class_without_positives_is_left_out() -> None:
    figure = plot_class_scores([0.25, math.nan, 0.75], "abc", measure="average precision", counts=[4, 0, 6])
    axes = figure.axes[0]
    assert tick_labels(axes.yaxis) == ["c", "a"]
    assert "mean 0.500" in texts(axes) and "n=0" not in texts(axes)
    assert figure.get_supxlabel() == "left out: 1 of 3 classes, without positives"


def test_sixty_classes_have_a_bar_each() -> None:
    scores = np.linspace(0, 1, 62)
    scores[[5, 50]] = math.nan
    figure = plot_class_scores(scores, classes(62), measure="F1")
    (axes,) = figure.axes
    assert len(bars(axes)) == 60
    assert {to_hex(bar.get_facecolor()) for bar in bars(axes)} == {BLUE}


def test_of_many_classes_the_best_and_the_worst_have_bars() -> None:
    scores = np.random.default_rng(0).permutation(527) / 600
    scores[scores == 300 / 600] = math.nan
    figure = plot_class_scores(
        scores, classes(527), measure="average precision", counts=np.arange(527), title="AudioSet"
    )
    curve, axes = figure.axes
    order = [index for index in np.argsort(-scores) if not math.isnan(scores[index])]
    shown = order[:25] + order[-25:]
    assert tick_labels(axes.yaxis) == [f"class {index}" for index in shown]
    assert [bar.get_width() for bar in bars(axes)] == scores[shown].tolist()
    assert [to_hex(bar.get_facecolor()) for bar in bars(axes)] == [BLUE] * 25 + [RED] * 25
    np.testing.assert_array_equal(np.diff(axes.get_yticks()), [1] * 24 + [3] + [1] * 24)
    assert [text for text in texts(axes) if text.startswith("n=")] == [f"n={index}" for index in shown]
    assert "476 classes between" in texts(axes)
    mean = np.nanmean(scores)
    np.testing.assert_array_equal(curve.lines[0].get_xydata(), list(zip(range(1, 527), scores[order])))
    assert curve.lines[1].get_ydata() == pytest.approx([mean, mean])
    assert texts(curve) == [f"mean {mean:.3f}"]
    assert axes.lines[0].get_xdata() == pytest.approx([mean, mean])
    assert (curve.get_xlabel(), curve.get_ylabel()) == ("rank among 526 classes", "average precision")
    spans = [(span.get_x(), span.get_x() + span.get_width()) for span in curve.patches]
    assert spans == [(0.5, 25.5), (501.5, 526.5)]


def test_scores_outside_0_and_1_are_within_the_axis() -> None:
    axes = plot_class_scores([3.5, -2.0, 0.1], "abc", measure="gain").axes[0]
    low, high = axes.get_xlim()
    assert low <= -2 and high > 3.5
    assert [bar.get_width() for bar in bars(axes)] == [3.5, 0.1, -2.0]


@pytest.mark.parametrize(
    ("scores", "names", "counts", "message"),
    [
        ([0.5], "ab", None, r"\(2,\), not \(1,\)"),
        ([[0.5, 0.5]], "ab", None, r"not \(1, 2\)"),
        ([0.5, 0.5], "ab", [1], r"not \(2,\) and \(1,\)"),
        ([math.nan, math.nan], "ab", None, "all are NaN"),
        ([], "", None, "no scores"),
        ([0.5, math.inf], "ab", None, "class 1 is infinite"),
    ],
)
def test_scores_that_cannot_be_drawn_are_an_error(scores: list, names: str, counts: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_class_scores(scores, names, measure="F1", counts=counts)


def test_values_side_by_side() -> None:
    figure = plot_comparison(LABELS, ylabel="accuracy", title="words")
    (axes,) = figure.axes
    assert tick_labels(axes.xaxis) == list(LABELS)
    assert [[bar.get_height() for bar in container] for container in axes.containers] == [
        [0.943, 0.743],
        [0.871, 0.401],
    ]
    assert texts(axes) == ["94.3%", "74.3%", "87.1%", "40.1%"]
    assert [text.xy[1] for text in axes.texts] == [0.943, 0.743, 0.871, 0.401]
    assert [to_hex(container[0].get_facecolor()) for container in axes.containers] == [BLUE, RED]
    pretrained, scratch = ([bar.get_x() + bar.get_width() / 2 for bar in container] for container in axes.containers)
    np.testing.assert_allclose(np.add(pretrained, scratch) / 2, axes.get_xticks())  # centred on the name
    assert pretrained < scratch
    assert legend(figure) == {"pretrained": BLUE, "from scratch": RED}
    assert axes.get_ylabel() == "accuracy" and figure.get_suptitle() == "words"
    assert not axes.lines


def test_several_runs_are_a_mean_with_an_error_bar() -> None:
    groups = {"all": {"model": [0.5, 0.6, 0.7], "once": 0.2}, "few": {"model": [0.98, 1.0]}}
    (axes,) = plot_comparison(groups, ylabel="accuracy").axes
    model, once = (container for container in axes.containers if isinstance(container, BarContainer))
    assert [bar.get_height() for bar in model] == pytest.approx([0.6, 0.99])
    (lines,) = model.errorbar.lines[2]
    ends = [segment[:, 1].tolist() for segment in lines.get_segments()]
    assert ends == [pytest.approx([0.5, 0.7]), pytest.approx([0.99 - 0.02 / 2**0.5, 1.0])]  # none leads beyond 100%
    assert once.errorbar is None
    assert texts(axes) == ["60.0%\n± 10.0", "99.0%\n± 1.4", "20.0%"]
    assert [text.xy[1] for text in axes.texts] == pytest.approx([0.7, 1.0, 0.2])  # above the error bars


@pytest.mark.parametrize("highest", [0.02, 1.0])
def test_axis_is_from_0_to_100_percent(highest: float) -> None:
    axes = plot_comparison({"all": {"model": highest}}, ylabel="accuracy").axes[0]
    assert axes.get_ylim() == (0, 1)
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in axes.get_yticks()]
    assert (labels[0], labels[-1]) == ("0%", "100%")


def test_chance_is_a_dotted_line() -> None:
    figure = plot_comparison(LABELS, ylabel="accuracy", chance=0.05)
    (line,) = figure.axes[0].lines
    assert line.get_ydata() == [0.05, 0.05] and line.get_linestyle() == ":"
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "chance (5.0%)"


def test_series_that_a_group_lacks_leaves_its_place_empty() -> None:
    groups = {"all": {"probe": 0.5, "scratch": 0.4}, "few": {"scratch": 0.3}}
    probe, scratch = plot_comparison(groups, ylabel="accuracy").axes[0].containers
    assert [bar.get_height() for bar in probe] == [0.5]
    assert [bar.get_height() for bar in scratch] == [0.4, 0.3]
    assert scratch[1].get_x() - scratch[0].get_x() == pytest.approx(1)


@pytest.mark.parametrize(
    ("groups", "chance", "message"),
    [
        ({}, None, "nothing to compare"),
        ({"all": {}}, None, "nothing to compare"),
        ({"all": {"model": 94.3}}, None, r"not 94\.3 \(model, all\)"),
        ({"all": {"model": math.nan}}, None, "not nan"),
        ({"all": {"model": [0.5, 1.5]}}, None, r"not 1\.5 \(model, all\)"),
        ({"all": {"model": 0.5}}, -0.1, r"not -0\.1 \(chance\)"),
    ],
)
def test_values_that_are_no_shares_are_an_error(groups: dict, chance: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_comparison(groups, ylabel="accuracy", chance=chance)


def many_series() -> dict[str, dict[str, float]]:
    groups = [f"{share}% of the labels, drawn class by class" for share in (100, 10, 1)]
    return {group: {f"pretrained on corpus number {index}": index / 5 for index in range(6)} for group in groups}


def drawn_texts(figure: Figure) -> list[Text]:
    """Those that are not empty; matplotlib also keeps labels of ticks outside the axis, which it does not draw."""
    outside = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        outside |= {text for text, at in zip(axis.get_ticklabels(), axis.get_ticklocs()) if not low <= at <= high}
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text not in outside]


@pytest.mark.parametrize(
    "draw",
    [
        lambda title: plot_confusion(np.eye(2, dtype=int), [LONG, "b"], title=title),
        lambda title: plot_confusion(mostly_right(12), [LONG] * 12, title=title),
        lambda title: plot_confusion(mostly_right(60), [LONG] * 60, title=title),
        lambda title: plot_confusion(mostly_right(300), classes(300), title=title),
        lambda title: plot_class_scores([1.0], [LONG], measure="F1", counts=[1_234_567], title=title),
        lambda title: plot_class_scores([*np.linspace(0, 1, 99), math.nan], [LONG] * 100, measure="F1", title=title),
        lambda title: plot_comparison({"all": {"pretrained": 1.0}}, ylabel="accuracy", title=title),
        lambda title: plot_comparison({"all": {"pretrained": [1.0, 0.99]}}, ylabel="accuracy", title=title),
        lambda title: plot_comparison(many_series(), ylabel="accuracy", chance=0.1, title=title),
        lambda title: plot_comparison({LONG + "!" * i: {"model": 1.0} for i in range(5)}, ylabel="F1", title=title),
    ],
)
def test_nothing_is_cut_off_or_written_over_the_title(draw: Callable[[str], Figure]) -> None:
    figure = draw(f"{LONG}, {LONG}, {LONG}")
    pixels(figure)
    width, height = figure.canvas.get_width_height()
    boxes = {text: text.get_window_extent() for text in drawn_texts(figure)}
    (title,) = (text for text in boxes if text.get_text() == figure.get_suptitle())
    assert title.get_text().replace("\n", " ") == f"{LONG}, {LONG}, {LONG}"
    for text, box in boxes.items():
        cut = max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)
        assert cut <= 1, f"{text.get_text()!r} at {box}"
        assert text is title or not box.overlaps(boxes[title]), text.get_text()


SEVERAL = {f"{share}% of the labels": {name: [0.9, 1.0, 0.95] for name in "abcdefg"} for share in (100, 10)}
DRAWN = {
    "few": lambda **how: plot_confusion(mostly_right(12), [LONG] * 12, **how),
    "counted": lambda **how: plot_confusion(mostly_right(20), classes(20), **how),
    "named": lambda **how: plot_confusion(mostly_right(50), classes(50), **how),
    "many": lambda **how: plot_confusion(mostly_right(300), classes(300), **how),
    "scores": lambda **how: plot_class_scores([1, 0.5], [LONG, "b"], measure="F1", counts=[1_234, 2], **how),
    "curve": lambda **how: plot_class_scores(np.linspace(0, 1, 99), [LONG] * 99, measure="F1", **how),
    "systems": lambda **how: plot_comparison(SEVERAL, ylabel="accuracy", chance=0.1, **how),
    "loss": lambda **how: plot_loss({"training": [(1, 9.0), (9, 1.0)], "validation": [(9, 2.0)]}, **how),
    "layers": lambda **how: plot_layers({"k-NN": [0.5, 0.6]}, 0.7, [0.5, 0.5], ylabel="accuracy", **how),
}


@pytest.mark.parametrize(("width", "inches"), [("column", 3.4), ("page", 7.0)])
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_fits_a_paper(name: str, width: str, inches: float) -> None:
    figure = DRAWN[name](width=width, title=LONG)
    assert figure.get_figwidth() == inches and figure.get_figheight() <= 9
    pixels(figure)
    wide, high = figure.canvas.get_width_height()
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        assert max(-box.x0, -box.y0, box.x1 - wide, box.y1 - high) <= 1, f"{text.get_text()!r} at {box}"
        # Only the counts in the cells of a matrix, and names beside its narrow rows, may be smaller than 7 points.
        assert 7 <= text.get_fontsize() <= 9 or name in ("few", "counted", "named"), text.get_text()
    values = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text().startswith(("1.0", "n="))]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(values, 2))


def test_letters_stay_letters_in_vector_formats(tmp_path: Path) -> None:
    pdf, svg = save(DRAWN["loss"](width="column", title="A title"), tmp_path / "loss.png", ("pdf", "svg"))
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
    assert ">A title</text>" in svg.read_text() and 'width="244.8pt"' in svg.read_text()  # 3.4 inches


def test_a_system_has_one_colour_everywhere() -> None:
    titles = [system.title for system in SYSTEMS.values()]
    all_of_them = colours([*map(str.upper, titles), "AST"])
    assert len(set(all_of_them.values())) == len(titles) + 1
    for name in (*titles, "AST"):
        assert colours([name, titles[0]])[name] == all_of_them[name.upper()]
    figure = plot_comparison({"all": {titles[-1]: 0.5, "AST": 0.4}}, ylabel="accuracy")
    assert legend(figure) == {titles[-1]: all_of_them[titles[-1].upper()], "AST": all_of_them["AST"]}
    assert colours(["pretrained", "from scratch"]) == {"pretrained": BLUE, "from scratch": RED}
    assert len(colours(map(str, range(30)))) == 30 and len(set(PALETTE)) == len(PALETTE) > len(titles)


def test_groups_with_long_names_do_not_overlap() -> None:
    figure = plot_comparison({f"{LONG} {index}": {"model": 0.5} for index in range(5)}, ylabel="accuracy")
    pixels(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("name", ["a $b", "$\\broken{$", "_unknown_"])
def test_names_are_written_as_they_are(name: str) -> None:
    for figure in (
        plot_confusion(np.eye(2, dtype=int), [name, "b"], title=name),
        plot_class_scores([0.5, 0.6], [name, "b"], measure="F1", title=name),
        plot_comparison({name: {name: 0.5}}, ylabel="accuracy", title=name),
    ):
        pixels(figure)
        assert any(name in (*tick_labels(axes.xaxis), *tick_labels(axes.yaxis)) for axes in figure.axes)
    assert list(legend(figure)) == [name]


def test_nothing_global_of_matplotlib_is_touched() -> None:
    code = (
        "import sys, amae_plugin.visual as v;"
        "v.plot_confusion([[1, 0], [0, 1]], 'ab').savefig(sys.argv[1]);"
        "v.plot_class_scores([0.5], 'a', measure='F1').savefig(sys.argv[1]);"
        "v.plot_comparison({'a': {'b': 0.5}}, ylabel='accuracy').savefig(sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'fairseq' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True, env={"DISPLAY": "nowhere:0"})


def test_a_map_names_its_groups_in_place_or_in_a_legend() -> None:
    points = np.array([(0, 0), (1, 0), (0, 1), (50, 50), (51, 50), (50, 51), (9, 9)])
    groups = ["$a$"] * 3 + [LONG] * 3 + ["one"]
    figure = plot_map(points, groups, title="map")
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == {"$a$", SHORTENED, "one"}
    for text in ax.texts:
        assert not text.get_parse_math()
        own = points[[shorten(group) == text.get_text() for group in groups]]
        assert tuple(text.xy) in set(map(tuple, own.tolist()))
    assert not figure.legends

    figure = plot_map(points, groups, in_place=False)
    assert not figure.axes[0].texts
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$a$", SHORTENED, "one"]
    pixels(figure)


def test_more_groups_than_colours_differ_in_their_markers_and_too_many_have_no_names() -> None:
    places = np.random.default_rng(0).standard_normal((61, 2))
    looks = set()
    for collection in plot_map(places, [str(index) for index in range(61)]).axes[0].collections:
        looks.add((to_hex(collection.get_facecolor()[0]), collection.get_paths()[0].vertices.tobytes()))
    assert len(looks) == 61
    for in_place in (True, False):
        figure = plot_map(places, [str(index) for index in range(61)], in_place=in_place)
        assert not figure.legends and not figure.axes[0].texts


@pytest.mark.parametrize(("points", "groups"), [(np.zeros((0, 2)), []), (np.zeros((2, 2)), ["a"]), ([1.0], ["a"])])
def test_a_map_without_points_or_with_others_than_its_groups_is_refused(points: object, groups: list[str]) -> None:
    with pytest.raises(ValueError, match=r"need points \(\d, 2\), at least one, not"):
        plot_map(points, groups)
