"""Evaluations for people and for programs: a table of text, JSON, a CSV file with a row a clip, and a picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
from matplotlib.figure import Figure

from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import Evaluation
from amae_plugin.evaluation.verification import Verification
from amae_plugin.files import writing
from amae_plugin.metrics.classification import SingleLabelMetrics
from amae_plugin.visual import plot_class_scores, plot_confusion
from amae_plugin.visual.style import shorten

_EVERY_CLASS_UP_TO = 100
"""Classes; of more, no confusion matrix and no probability of every class is written."""
_TOP = 10  # classes of a clip that are written instead
_ROWS = 5  # classes and confusions in a table
_WORDS = {"macro_f1": "macro F1", "d_prime": "d'"}
_THRESHOLD = 0.5  # from which a class of several is said to be predicted


def summary(result: Union[Evaluation, Verification]) -> str:
    """The measures in words and tables, a few lines for a terminal."""
    if isinstance(result, Verification):
        parts = [f"{len(result.scores):,} trials of {result.clips:,} clips, {int(result.same.sum()):,} of one speaker"]
        parts += [f"equal error rate  {result.equal_error_rate:.4f}"]
        if result.left_out:
            parts.insert(1, f"left out: {result.left_out:,} trials with a clip that cannot be decoded")
        return "\n".join(parts)
    parts = [f"{result.split}: {len(result.clips):,} clips, {len(result.classes):,} classes"]
    if result.crops > 1:
        parts += [f"{int((result.pieces > 1).sum()):,} clips are longer than the input, each in {result.crops} pieces"]
    parts += ["", _table([(_WORDS.get(name, name), f"{value:.4f}") for name, value in result.headline.items()])]
    tables = _single_label_tables(result) if _is_single(result) else _multi_label_tables(result)
    parts += [line for table in tables for line in ("", table)]
    absent = [name for name, count in zip(result.display_names, result.counts) if not count]
    if absent:
        words = ("class has", "is") if len(absent) == 1 else ("classes have", "are")
        more = "; ..." if len(absent) > _ROWS else ""
        named = f"{'; '.join(shorten(name) for name in absent[:_ROWS])}{more}"
        parts += ["", f"{len(absent):,} {words[0]} no clip in this split and {words[1]} left out of the means: {named}"]
    return "\n".join(parts)


def as_json(result: Union[Evaluation, Verification]) -> dict[str, Any]:
    """Everything but the single clips or trials, in JSON's types; what is not a finite number is None."""
    shared = {"checkpoint": str(result.checkpoint.absolute()), "data": str(result.data.absolute())}
    skipped = [{"path": path, "reason": reason} for path, reason in result.skipped.items()]
    if isinstance(result, Verification):
        return {
            **shared,
            "crops": result.crops,
            "trials": len(result.scores),
            "same_speaker": int(result.same.sum()),
            "clips": result.clips,
            "equal_error_rate": result.equal_error_rate,
            "left_out": result.left_out,
            "skipped": skipped,
        }
    values: dict[str, Any] = {
        **shared,
        "split": result.split,
        "crops": result.crops,
        "clips": len(result.clips),
        "clips_longer_than_input": int((result.pieces > 1).sum()) if result.crops > 1 else None,
        "multi_label": not _is_single(result),
        **{name: _finite(value) for name, value in result.headline.items()},
        "classes": [
            {
                "name": name,
                "display_name": display_name,
                "clips": int(count),
                **{measure: _finite(values[index]) for measure, values in _class_measures(result).items()},
            }
            for index, (name, display_name, count) in enumerate(
                zip(result.classes, result.display_names, result.counts)
            )
        ],
        "skipped": skipped,
    }
    if isinstance(result.measures, SingleLabelMetrics) and len(result.classes) <= _EVERY_CLASS_UP_TO:
        values["confusion"] = result.measures.confusion.tolist()
    return values


def write_json(path: Path, result: Union[Evaluation, Verification]) -> None:
    """Write :func:`as_json` to a file; its folder is made if it does not exist.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder(path.parent)
    with writing(path, "it"):
        path.write_text(json.dumps(as_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder ({error.strerror})") from None


def write(result: Union[Evaluation, Verification], folder: Path) -> list[Path]:
    """Write the files of an evaluation; the folder is made if it does not exist.

    ``metrics.json``, ``predictions.csv`` and a picture, ``confusion.png`` or ``class_ap.png``; of trials,
    ``trials.json`` and ``scores.csv``.

    Returns:
        The files.

    Raises:
        UserError: one cannot be written.
    """
    if isinstance(result, Verification):
        paths = [folder / "trials.json", folder / "scores.csv"]
        rows: Iterable[Sequence[str]] = _score_rows(result)
    else:
        picture = "confusion.png" if _is_single(result) else "class_ap.png"
        paths = [folder / "metrics.json", folder / "predictions.csv", folder / picture]
        rows = _prediction_rows(result)
    write_json(paths[0], result)
    with writing(folder, "the results there"):
        # Paths that are not UTF-8 are written as the manifest has them.
        with paths[1].open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        if not isinstance(result, Verification):
            draw(result).savefig(paths[2])
    return paths


def draw(result: Evaluation) -> Figure:
    """The confusion of the classes; for several labels a clip, their average precision."""
    if isinstance(result.measures, SingleLabelMetrics):
        title = f"{result.split}: accuracy {result.measures.accuracy:.1%}, {len(result.clips):,} clips"
        return plot_confusion(result.measures.confusion, result.display_names, title=title)
    return plot_class_scores(
        result.measures.average_precision,
        result.display_names,
        measure="average precision",
        counts=result.counts,
        title=f"{result.split}: mAP {result.measures.mean_average_precision:.3f}, {len(result.clips):,} clips",
    )


def _is_single(result: Evaluation) -> bool:
    return isinstance(result.measures, SingleLabelMetrics)


def _class_measures(result: Evaluation) -> dict[str, np.ndarray]:
    if isinstance(result.measures, SingleLabelMetrics):
        return {"f1": result.measures.f1}
    return {"average_precision": result.measures.average_precision, "auc": result.measures.auc}


def _single_label_tables(result: Evaluation) -> list[str]:
    assert isinstance(result.measures, SingleLabelMetrics)
    names = [shorten(name) for name in result.display_names]
    confusion = result.measures.confusion
    # Of equally bad ones, the most frequent come first.
    order = np.lexsort((-result.counts, result.measures.f1))
    worst = [index for index in order if result.counts[index]][:_ROWS]
    rows = [(names[index], f"{result.measures.f1[index]:.4f}", f"{result.counts[index]:,}") for index in worst]
    tables = [_table([("worst classes", "F1", "clips"), *rows])]
    errors = confusion - np.diag(np.diagonal(confusion))
    # Of equally frequent ones, those come first that are more of their class.
    places = np.lexsort(((-errors / confusion.sum(axis=1, keepdims=True).clip(1)).ravel(), -errors.ravel()))
    found = [np.unravel_index(place, errors.shape) for place in places[:_ROWS] if errors.flat[place]]
    if found:
        rows = [
            (f"{names[row]} taken for {names[column]}", f"{errors[row, column]:,}", f"{result.counts[row]:,}")
            for row, column in found
        ]
        tables.append(_table([("most frequent confusions", "clips", "of"), *rows]))
    return tables


def _multi_label_tables(result: Evaluation) -> list[str]:
    scores = _class_measures(result)["average_precision"]
    order = [index for index in np.argsort(-scores, kind="stable") if result.counts[index]]
    ends = {"classes, best first": order}
    if len(order) > 2 * _ROWS:
        ends = {"best classes": order[:_ROWS], "worst classes": order[: -_ROWS - 1 : -1]}
    tables = []
    for title, indices in ends.items():
        rows = [
            (shorten(result.display_names[index]), f"{scores[index]:.4f}", f"{result.counts[index]:,}")
            for index in indices
        ]
        tables.append(_table([(title, "AP", "clips"), *rows]))
    return tables


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, all but the first aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _prediction_rows(result: Evaluation) -> Iterable[list[str]]:
    """A header, then a row a clip: path, labels, predicted labels with scores, scores of all or the top classes."""
    classes = result.classes
    everything = len(classes) <= _EVERY_CLASS_UP_TO
    if everything:
        further = [f"p({name})" for name in classes]
    else:
        further = [text for rank in range(1, _TOP + 1) for text in (f"top{rank}", f"top{rank}_score")]
    yield ["path", "labels", "predicted", "score", *further]
    for clip, probabilities, targets in zip(result.clips, result.probabilities, result.targets):
        order = np.argsort(-probabilities, kind="stable")
        predicted = order[:1] if _is_single(result) else order[probabilities[order] >= _THRESHOLD]
        if everything:
            rest = [_digits(value) for value in probabilities]
        else:
            rest = [text for index in order[:_TOP] for text in (classes[index], _digits(probabilities[index]))]
        yield [
            clip,
            ",".join(classes[index] for index in np.flatnonzero(targets)),
            ",".join(classes[index] for index in predicted),
            ",".join(_digits(probabilities[index]) for index in predicted),
            *rest,
        ]


def _score_rows(result: Verification) -> Iterable[list[str]]:
    yield ["first", "second", "same", "score"]
    for (first, second), same, score in zip(result.pairs, result.same, result.scores):
        yield [first, second, str(int(same)), _digits(score)]


def _digits(value: float) -> str:
    """Enough digits that ranking by them is ranking by the scores."""
    return f"{value:.10g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
