"""Reports of evaluations: tables for a terminal, JSON, a CSV file with a row for each clip or trial, and a picture."""

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, Union

import numpy as np
from matplotlib.figure import Figure

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import printable
from amae_plugin.evaluation.classification import Evaluation, evaluate
from amae_plugin.evaluation.recognition import Recognition, recognize
from amae_plugin.evaluation.retrieval import Retrieval
from amae_plugin.evaluation.scoring import Options
from amae_plugin.evaluation.tables import SUFFIXES, Table
from amae_plugin.evaluation.verification import Verification
from amae_plugin.files import write_csv, write_json, writing
from amae_plugin.metrics.bootstrap import LEVEL, Interval
from amae_plugin.metrics.classification import SingleLabelMetrics
from amae_plugin.metrics.retrieval import DEPTHS
from amae_plugin.models.base import DownstreamModel
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.ctc import CTC
from amae_plugin.visual import plot_class_scores, plot_confusion
from amae_plugin.visual.style import Width, save, shorten

Result = Union[Evaluation, Recognition, Retrieval, Verification]
R = TypeVar("R", Evaluation, Recognition, Retrieval, Verification)
EVALUATIONS: Mapping[type[DownstreamModel], Callable[[Checkpoint, Path, str, Options], Result]]
EVALUATIONS = {Classifier: evaluate, CTC: recognize}
"""Functions that evaluate a checkpoint on a split of a folder, by the kind of its model."""
_EVERY_CLASS_UP_TO = 100
"""Classes; with more, neither the confusion matrix nor the probability of every class is written."""
_TOP = 10  # classes of a clip that are written instead
_ROWS = 5  # classes and confusions in a table
_WIDTH = 100  # characters of a text that are shown
_ERRORS = ("substitutions", "deletions", "insertions")
_LABELS = {"macro_f1": "macro F1", "d_prime": "d'", "f1": "F1"}
_THRESHOLD = 0.5  # probability from which a class of several counts as predicted


@dataclass(frozen=True)
class _Report(Generic[R]):
    """How a result is told.

    Attributes:
        measures: table of the measures that are one number, for a page or a paper.
        summary: measures in words and tables.
        values: what JSON holds besides the checkpoint, the data and the skipped clips.
        rows: rows of a table, a header first.
        files: names of the files of both.
        picture: function that gives a picture and the name of its file.
    """

    measures: Callable[[R], Table]
    summary: Callable[[R], str]
    values: Callable[[R], Mapping[str, object]]
    rows: Callable[[R], Iterator[Sequence[object]]]
    files: tuple[str, str] = ("metrics.json", "predictions.csv")
    picture: Callable[[R, Width], tuple[str, Figure]] | None = None


def summary(result: Result) -> str:
    """Return the measures in words and tables, a few lines for a terminal."""
    return _report(result).summary(result)


def _report(result: Result) -> _Report[Any]:
    return _REPORTS[type(result)]


def _as_json(result: Result) -> dict[str, object]:
    """Return everything but the single clips or trials, in JSON's types; numbers that are not finite become None."""
    origin = {"checkpoint": str(result.checkpoint.absolute()), "data": str(result.data.absolute())}
    skipped = [{"path": path, "reason": reason} for path, reason in result.skipped.items()]
    return {**origin, **_report(result).values(result), "skipped": skipped}


def write_measures(path: Path, result: Result) -> None:
    """Write everything but the single clips or trials to a JSON file; its folder is made if it does not exist.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path, "it"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _as_json(result))


def write(result: Result, folder: Path, formats: Sequence[str] = ("png",), width: Width = None) -> list[Path]:
    """Write the files of an evaluation to a folder, which is made if it does not exist.

    They are ``metrics.json``, ``predictions.csv`` and, of a classifier, a picture, ``confusion.png`` or
    ``class_ap.png``; for trials, ``trials.json`` and ``scores.csv``. The measures that are one number are also in a
    table beside the JSON file, as Markdown, CSV and LaTeX.

    Args:
        result: the evaluation.
        folder: folder to write to.
        formats: formats of the picture, of those that matplotlib writes.
        width: width of the picture.

    Returns:
        Paths of the files.

    Raises:
        UserError: a file cannot be written.
    """
    report = _report(result)
    paths = [folder / name for name in report.files]
    write_measures(paths[0], result)
    paths += [report.measures(result).write(paths[0].with_suffix(suffix)) for suffix in SUFFIXES]
    with writing(folder, "the results there"):
        write_csv(paths[1], report.rows(result))
        if report.picture is not None:
            name, figure = report.picture(result, width)
            paths += save(figure, folder / name, formats)
    return paths


def _headline(result: Evaluation) -> Table:
    header, clips = ["measure", "value", "clips"], f"{len(result.clips):,}"
    rows = [[_LABELS.get(name, name), f"{value:.4f}", clips] for name, value in result.headline.items()]
    return _with_intervals(header, rows, result.intervals)


def _with_intervals(header: list[str], rows: list[list[str]], intervals: Mapping[str, Interval]) -> Table:
    """Make a table, with a column of intervals after the values if there are any."""
    if intervals:
        header.insert(2, f"{LEVEL:.0%} interval")
        for row, interval in zip(rows, intervals.values(), strict=True):
            row.insert(2, str(interval))
    return Table(header, rows)


def _classification_summary(result: Evaluation) -> str:
    head = f"{result.split}: {len(result.clips):,} clips, {len(result.classes):,} classes"
    if result.takes != ("audio",):
        head += f", {' and '.join(result.modalities)}"
    if result.frames > 1:
        head += f"\nscores are means over {result.frames} frames of each video"
    if longer := int(result.longer.sum()):
        head += f"\n{longer:,} clips are longer than the input or fill it, and are scored "
        if result.crops > 1:
            head += f"each in {result.crops} pieces"
        else:
            head += "by their centre; --crops 3 takes the mean over three pieces of them"
    parts = [head, _headline(result).text(), *_class_tables(result)]
    if absent := [shorten(name) for name, count in zip(result.display_names, result.counts) if not count]:
        has, is_ = ("class has", "is") if len(absent) == 1 else ("classes have", "are")
        named = "; ".join(absent[:_ROWS] + ["..."] * (len(absent) > _ROWS))
        parts.append(f"{len(absent):,} {has} no clip in this split and {is_} left out of the means: {named}")
    return "\n\n".join(parts)


def _classification_values(result: Evaluation) -> dict[str, object]:
    columns = {"name": result.classes, "display_name": result.display_names, "clips": result.counts.tolist()}
    columns |= {name: list(map(_finite, scores)) for name, scores in result.measures.by_class.items()}
    values: dict[str, object] = {
        "split": result.split,
        "crops": result.crops,
        "frames": result.frames,
        "modalities": result.modalities,
        "clips": len(result.clips),
        "clips_longer_than_input": int(result.longer.sum()),
        "multi_label": not isinstance(result.measures, SingleLabelMetrics),
        **{name: _finite(value) for name, value in result.headline.items()},
        "intervals": _finite_intervals(result.intervals),
        "classes": [dict(zip(columns, row)) for row in zip(*columns.values())],
    }
    if isinstance(result.measures, SingleLabelMetrics) and len(result.classes) <= _EVERY_CLASS_UP_TO:
        values["confusion"] = result.measures.confusion.tolist()
    return values


def _draw(result: Evaluation, width: Width) -> tuple[str, Figure]:
    """Draw the confusion of the classes; with several labels a clip, the average precision of the classes."""
    measures, names, clips = result.measures, result.display_names, f"{len(result.clips):,} clips"
    if isinstance(measures, SingleLabelMetrics):
        title = f"{result.split}: accuracy {measures.accuracy:.1%}, {clips}"
        return "confusion.png", plot_confusion(measures.confusion, names, title=title, width=width)
    title, scores = f"{result.split}: mAP {measures.mean_average_precision:.3f}, {clips}", measures.average_precision
    figure = plot_class_scores(
        scores, names, measure="average precision", counts=result.counts, title=title, width=width
    )
    return "class_ap.png", figure


def _class_tables(result: Evaluation) -> Iterator[str]:
    """Give the worst classes and the most frequent confusions; with several labels a clip, best and worst classes."""
    counts, measures = result.counts, result.measures
    if isinstance(measures, SingleLabelMetrics):
        # Of equally bad classes, the most frequent come first.
        order = [index for index in np.lexsort((-counts, measures.f1)) if measures.f1[index] < 1]
        if order:
            yield _class_table(result, "worst classes", measures.by_class, order[:_ROWS])
        yield from _confusion_table(result, measures.confusion)
        return
    scores = measures.average_precision
    order = [index for index in np.argsort(-scores, kind="stable") if counts[index]]
    if len(order) <= 2 * _ROWS:
        yield _class_table(result, "classes, best first", {"AP": scores}, order)
    else:
        yield _class_table(result, "best classes", {"AP": scores}, order[:_ROWS])
        if worst := [index for index in order[: -_ROWS - 1 : -1] if scores[index] < 1]:
            yield _class_table(result, "worst classes", {"AP": scores}, worst)


def _class_table(result: Evaluation, title: str, scores: Mapping[str, np.ndarray], classes: Sequence[int]) -> str:
    names, counts = result.display_names, result.counts
    rows = [
        (shorten(names[index]), *(f"{values[index]:.4f}" for values in scores.values()), f"{counts[index]:,}")
        for index in classes
    ]
    return Table((title, *(_LABELS.get(name, name) for name in scores), "clips"), rows).text()


def _confusion_table(result: Evaluation, confusion: np.ndarray) -> Iterator[str]:
    """Give the most frequent confusions, if there are any."""
    errors = confusion - np.diag(np.diagonal(confusion))
    # Of equally frequent confusions, those of the largest share of their class come first.
    order = np.lexsort(((-errors / result.counts[:, None].clip(1)).ravel(), -errors.ravel()))[:_ROWS]
    names = [shorten(name) for name in result.display_names]
    rows = [
        (f"{names[label]} taken for {names[chosen]}", f"{errors[label, chosen]:,}", f"{result.counts[label]:,}")
        for label, chosen in zip(*np.unravel_index(order, errors.shape))
        if errors[label, chosen]
    ]
    if rows:
        yield Table(("most frequent confusions", "clips", "of"), rows).text()


def _prediction_rows(result: Evaluation) -> Iterator[list[str]]:
    """Give a header, then a row for each clip: path, labels, predicted labels, scores of all or the top classes."""
    classes, single = result.classes, isinstance(result.measures, SingleLabelMetrics)
    everything = len(classes) <= _EVERY_CLASS_UP_TO
    top = [text for rank in range(1, _TOP + 1) for text in (f"top{rank}", f"top{rank}_score")]
    yield ["path", "labels", "predicted", "score", *([f"p({name})" for name in classes] if everything else top)]
    for clip, probabilities, targets in zip(result.clips, result.probabilities, result.targets):
        scores = [_digits(value) for value in probabilities]
        order = np.argsort(-probabilities, kind="stable")
        predicted = order[:1] if single else order[probabilities[order] >= _THRESHOLD]
        top = [text for index in order[:_TOP] for text in (classes[index], scores[index])]
        chosen = [",".join(classes[index] for index in indices) for indices in (np.flatnonzero(targets), predicted)]
        yield [clip, *chosen, ",".join(scores[index] for index in predicted), *(scores if everything else top)]


def _verification_measures(result: Verification) -> Table:
    row = ("equal error rate", f"{result.equal_error_rate:.4f}", f"{len(result.scores):,}", f"{result.clips:,}")
    return Table(("measure", "value", "trials", "clips"), [row])


def _verification_summary(result: Verification) -> str:
    lines = [f"{len(result.scores):,} trials of {result.clips:,} clips, {int(result.same.sum()):,} of one speaker"]
    if result.left_out:
        lines.append(f"left out: {result.left_out:,} trials with a clip that cannot be decoded")
    return "\n".join([*lines, f"equal error rate  {result.equal_error_rate:.4f}"])


def _verification_values(result: Verification) -> dict[str, object]:
    counts = {"trials": len(result.scores), "same_speaker": int(result.same.sum()), "clips": result.clips}
    measures = {"equal_error_rate": result.equal_error_rate, "left_out": result.left_out}
    return {"crops": result.crops, **counts, **measures}


def _trial_rows(result: Verification) -> Iterator[list[str]]:
    yield ["first", "second", "same", "score"]
    for pair, same, score in zip(result.pairs, result.same, result.scores):
        yield [*pair, str(int(same)), _digits(score)]


def _error_rates(result: Recognition) -> Table:
    rows = [
        [name, f"{found.rate:.4f}", *(f"{vars(found)[key]:,}" for key in ("length", *_ERRORS))]
        for name, found in vars(result.total).items()
    ]
    return _with_intervals(["", "error rate", "number", *_ERRORS], rows, result.intervals)


def _recognition_summary(result: Recognition) -> str:
    # Of clips with equally many errors, those of the manifest's beginning come first.
    order = sorted(range(len(result.clips)), key=lambda clip: -result.errors[clip].words.total)[:_ROWS]
    worst = [_compared(result, clip) for clip in order if result.errors[clip].words.total]
    parts = [f"{result.split}: {len(result.clips):,} clips", _error_rates(result).text()]
    return "\n\n".join([*parts, "\n".join(["worst clips", *worst])] if worst else parts)


def _compared(result: Recognition, clip: int) -> str:
    """Show a clip's reference and hypothesis, one below the other."""
    errors = result.errors[clip].words
    texts = {"reference": result.references[clip], "hypothesis": result.hypotheses[clip]}
    shown = (f"    {name:10}  {textwrap.shorten(printable(text), _WIDTH)}" for name, text in texts.items())
    return "\n".join([f"  {printable(result.clips[clip])}: {errors.total:,} errors, {errors.length:,} words", *shown])


def _recognition_values(result: Recognition) -> dict[str, object]:
    rates = {name: _finite(value) for name, value in result.total.headline.items()}
    counts = {name: vars(found) for name, found in vars(result.total).items()}
    intervals = dict(zip(rates, _finite_intervals(result.intervals).values()))
    return {"split": result.split, "clips": len(result.clips), **rates, "intervals": intervals, **counts}


def _text_rows(result: Recognition) -> Iterator[list[object]]:
    counts = [f"{name}_{key}" for name in vars(result.total) for key in ("length", *_ERRORS)]
    yield ["path", "reference", "hypothesis", *counts]
    for clip, *texts, errors in zip(result.clips, result.references, result.hypotheses, result.errors):
        yield [clip, *texts, *vars(errors.words).values(), *vars(errors.characters).values()]


def _retrieval_summary(result: Retrieval) -> str:
    counts = f"{len(result.pairs):,} pairs of {len(result.sounds):,} sounds and {len(result.pictures):,} pictures"
    return f"{result.split}: {counts}\n\n{result.table.text()}"


def _retrieval_values(result: Retrieval) -> dict[str, object]:
    counts = {"pairs": len(result.pairs), "sounds": len(result.sounds), "pictures": len(result.pictures)}
    measures = {
        direction.replace(" ", "_"): {
            **{f"recall_at_{depth}": ranking.recall(depth) for depth in DEPTHS},
            **{f"chance_at_{depth}": ranking.chance(depth) for depth in DEPTHS},
            "median_rank": ranking.median_rank,
        }
        for direction, ranking in result.rankings.items()
    }
    return {"split": result.split, **counts, **measures}


def _rank_rows(result: Retrieval) -> Iterator[list[str]]:
    yield ["direction", "query", "rank", "best", "cosine"]
    names = (result.sounds, result.pictures)
    for (direction, ranking), (queries, candidates) in zip(result.rankings.items(), (names, names[::-1])):
        for query, place, best, cosines in zip(queries, ranking.ranks, ranking.best, ranking.similarities):
            yield [direction, query, str(place), candidates[best[0]], _digits(cosines[0])]


def _digits(value: float) -> str:
    """Write enough digits for a ranking of the texts' numbers to be that of the scores."""
    return f"{value:.10g}"


def _finite_intervals(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: list(map(_finite, interval)) for name, interval in intervals.items()}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


_REPORTS: Mapping[type, _Report[Any]] = {
    Evaluation: _Report(_headline, _classification_summary, _classification_values, _prediction_rows, picture=_draw),
    Recognition: _Report(_error_rates, _recognition_summary, _recognition_values, _text_rows),
    Retrieval: _Report(
        attrgetter("table"), _retrieval_summary, _retrieval_values, _rank_rows, files=("metrics.json", "ranks.csv")
    ),
    Verification: _Report(
        _verification_measures,
        _verification_summary,
        _verification_values,
        _trial_rows,
        files=("trials.json", "scores.csv"),
    ),
}
