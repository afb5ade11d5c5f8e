"""The results of several runs side by side: the folds of a cross-validation, the runs of a sweep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError


@dataclass(frozen=True)
class RunResult:
    """What a run's last checkpoint says of its validation.

    Attributes:
        name: the run's folder.
        metric: what was validated, ``checkpoint.best_checkpoint_metric``.
        last: at the end of the run.
        best: over the whole run; chosen by looking at the very split it is measured on.
    """

    name: str
    metric: str
    last: float
    best: float


def read_result(checkpoints: str | os.PathLike[str]) -> RunResult:
    """The result of the run that writes its checkpoints to a folder.

    Raises:
        UserError: there is no last checkpoint, or the run was not validated when it was written.
    """
    checkpoint = Checkpoint.read(Path(checkpoints) / "checkpoint_last.pt")
    last, best = (checkpoint.extra_state.get(key) for key in ("val_loss", "best"))
    if last is None or best is None:
        raise UserError(f"{checkpoint.path}: the run was not validated when this was written")
    metric = checkpoint.config["checkpoint"]["best_checkpoint_metric"]
    return RunResult(Path(checkpoints).parent.name, metric, float(last), float(best))


def read_results(folder: str | os.PathLike[str]) -> list[RunResult]:
    """The runs in the subfolders of a sweep's folder, in the order of their names.

    Raises:
        UserError: there is none, one of them has no checkpoint or was not validated, or they validated different
            things.
    """
    folder = Path(folder)
    runs = sorted(path.parent for path in folder.glob("*/checkpoints"))
    if not runs:
        raise UserError(f"{folder}: no runs there, which would be its subfolders with checkpoints/ in them")
    results = [read_result(run / "checkpoints") for run in runs]
    metrics = sorted({result.metric for result in results})
    if len(metrics) > 1:
        raise UserError(f"{folder}: its runs were validated by different measures: {', '.join(metrics)}")
    return results


def summarize(folder: str | os.PathLike[str]) -> str:
    """The runs of a sweep as a table, with mean and (sample) standard deviation.

    Raises:
        UserError: see :func:`read_results`.
    """
    results = read_results(folder)
    values = np.array([(result.last, result.best) for result in results])
    width = max(len("mean"), *(len(result.name) for result in results))
    lines = [f"{folder}: {results[0].metric}", f"{'':{width}}  {'last':>8} {'best':>8}"]
    lines += [f"{result.name:{width}}  {result.last:8.4f} {result.best:8.4f}" for result in results]
    lines.append(f"{'mean':{width}}  {values[:, 0].mean():8.4f} {values[:, 1].mean():8.4f}")
    if len(results) > 1:
        deviations = values.std(axis=0, ddof=1)
        lines.append(f"{'std':{width}}  {deviations[0]:8.4f} {deviations[1]:8.4f}")
    return "\n".join(lines)
