"""Results of several runs side by side: the folds of a cross-validation, the runs of a sweep."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.tables import Table
from amae_plugin.files import is_folder


@dataclass(frozen=True)
class RunResult:
    """Validation results in a run's last checkpoint.

    Attributes:
        name: name of the run's folder.
        metric: measure of the validation, ``checkpoint.best_checkpoint_metric``.
        last: value at the end of the run.
        best: best value of the whole run, which is chosen on the very split that it is measured on.
        clips: clips that it is measured on; None where its data are gone.
    """

    name: str
    metric: str
    last: float
    best: float
    clips: int | None


def read_result(checkpoints: str | os.PathLike[str]) -> RunResult:
    """Read the result of the run that writes its checkpoints to a folder.

    Raises:
        UserError: there is no last checkpoint, or it was written before the first validation.
    """
    checkpoint = Checkpoint.read(Path(checkpoints) / "checkpoint_last.pt")
    last, best = (checkpoint.state_of_run(key, int, float) for key in ("val_loss", "best"))
    if last is None or best is None:
        raise UserError(f"{checkpoint.path}: the run was not validated when this was written")
    metric = checkpoint.setting("checkpoint", "best_checkpoint_metric", str) or "loss"
    return RunResult(Path(checkpoints).parent.name, metric, float(last), float(best), _count_clips(checkpoint))


def _count_clips(checkpoint: Checkpoint) -> int | None:
    """Count the clips of a run's validation, in its first split; None where its data are gone, as on other machines."""
    data, fold = checkpoint.setting("task", "data", str), checkpoint.setting("task", "fold", int)
    split = (checkpoint.setting("dataset", "valid_subset", str) or "valid").split(",")[0]
    try:
        return len(Manifest.read(Path(data or "", "" if fold is None else f"fold{fold}", f"{split}.tsv")))
    except UserError:
        return None


def read_results(folder: str | os.PathLike[str]) -> list[RunResult]:
    """Read the results of the runs in the subfolders of a sweep's folder, in the order of their numbers or names.

    Raises:
        UserError: there are no runs, the runs validated different measures, or as for :func:`read_result`.
    """
    runs = sorted(Path(folder).glob("*/checkpoints"), key=_in_order) if is_folder(folder) else []
    if not runs:
        raise UserError(f"{folder}: no runs there; a run is a subfolder that holds checkpoints/")
    results = [read_result(run) for run in runs]
    if len(metrics := sorted({result.metric for result in results})) > 1:
        raise UserError(f"{folder}: its runs were validated by different measures: {', '.join(metrics)}")
    return results


def _in_order(run: Path) -> tuple[int, str]:
    name = run.parent.name
    return len(name) if name.isdigit() else 0, name


def summarize(folder: str | os.PathLike[str]) -> Table:
    """Return a table of the runs of a sweep, with their mean and (sample) standard deviation.

    Raises:
        UserError: as for :func:`read_results`.
    """
    results = read_results(folder)
    values = np.array([(result.last, result.best) for result in results])
    rows = [(result.name, result.last, result.best, result.clips) for result in results]
    rows.append(("mean", *values.mean(axis=0), None))
    if len(results) > 1:
        rows.append(("std", *values.std(axis=0, ddof=1), None))
    shown = [
        (name, f"{last:.4f}", f"{best:.4f}", "" if clips is None else f"{clips:,}") for name, last, best, clips in rows
    ]
    return Table((results[0].metric, "last", "best", "clips"), shown)
