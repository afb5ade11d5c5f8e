"""Systems on equal terms: each pretrained for the same time on the same clips, then fine-tuned on the same labels.

Beside fine-tuning stand the frozen features, of which the same labels make a k-NN and a linear probe, and the curves of
pretraining: the loss, and a k-NN of the features so far.
"""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import FrontEnd, LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import read_or_measure
from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.frozen import POOLING, embed_split, frozen_accuracies
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options
from amae_plugin.evaluation.tables import SUFFIXES, Table
from amae_plugin.files import replacing, write_json, writing
from amae_plugin.inference.model import load_model
from amae_plugin.metrics.spread import Spread
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.recipes import override, recipe_number
from amae_plugin.runs.settings import Comparison
from amae_plugin.runs.statistics import read_front_end
from amae_plugin.runs.training import (
    Probe,
    Training,
    available_cpus,
    complete,
    is_done,
    read_losses,
    read_probes,
    recipe_arguments,
)
from amae_plugin.visual import plot_comparison, plot_curves
from amae_plugin.visual.style import save

FINE_TUNING = "finetune_audio_mae_tiny"
_MAX_UPDATE = 10_000_000
"""More than fit any time."""
_PROBES = 8
"""Probes of a pretraining after the one before its first update."""
_LAST_PROBE = 0.98
"""Share of the time at which the last one is made: the clock stops the run between two updates."""
_TRAIN_CLIPS, _VALID_CLIPS = 350, 200
"""Clips of a probe, which takes some seconds of the time."""
_SHOWN = (0, 1, 2, 4, 8)
"""Numbers of the probes in the table."""
_WARM_UP = 0.05
"""Share of pretraining in which the learning rate rises."""
CONTESTANTS: Mapping[str, str | None] = {
    **{system.title: f"pretrain_{name.removeprefix('amae_')}_tiny" for name, system in SYSTEMS.items()},
    "AST": None,
}
"""Pretraining recipes by contestant: all systems, and AST, which is not pretrained."""
_FROM_SCRATCH = "amae_ssast_mini"
"""The network of AST, from ``config/model``: the one that SSAST pretrains."""
_READ = ("dataset.disable_validation", "dataset.valid_subset", "common.log_format")
"""Settings on which depends that the results can be read."""


@dataclass
class Result:
    """Result of one contestant with one seed.

    Attributes:
        system: name of the contestant.
        seed: the seed.
        accuracy: accuracy on ``test`` of the checkpoint that is best on ``valid``, by share of the labels.
        frozen: accuracy on ``test`` of the pretrained encoder's features with all labels, by probe; empty without
            pretraining.
        pretraining_updates: number of updates; this and the next four are 0 or None without pretraining.
        pretraining_clips: clips seen; a clip seen twice counts twice.
        pretraining_seconds: time of fairseq's training loop.
        pretraining_clips_per_second: clips seen over this time.
        pretraining_loss: last loss on ``valid``; different systems have different losses.
        fine_tuning_seconds: time of fairseq's training loop, with the largest share of the labels.
        losses: training losses of pretraining, (update, loss).
        probes: probes of the features while they were trained, on ``valid``.
    """

    system: str
    seed: int
    accuracy: dict[str, float] = field(default_factory=dict)
    frozen: dict[str, float] = field(default_factory=dict)
    pretraining_updates: int = 0
    pretraining_clips: int = 0
    pretraining_seconds: float = 0.0
    pretraining_clips_per_second: float = 0.0
    pretraining_loss: float | None = None
    fine_tuning_seconds: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)


def compare(comparison: Comparison) -> tuple[list[Result], list[str]]:
    """Run everything, and write ``comparison.json``, ``.md``, ``.csv``, ``.tex`` and ``.png`` into the folder.

    The curves of pretraining are in ``curves.csv``, ``.tex`` and ``.png``.

    Returns:
        The results, by seed and in the order of the contestants, and a sentence about each that failed.

    Raises:
        UserError: a system has no such name or nothing to do, or the folder holds a training with other settings.
    """
    systems = comparison.systems or tuple(name for name, recipe in CONTESTANTS.items() if recipe or comparison.updates)
    if unknown := [name for name in systems if name not in CONTESTANTS]:
        raise UserError(f"--systems: no {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    if idle := [name for name in systems if CONTESTANTS[name] is None and not comparison.updates]:
        raise UserError(f"--systems: {', '.join(idle)} is not pretrained, so with --updates 0 there is nothing to do")
    for option, overrides in (("--set", comparison.overrides), ("--set-fine-tuning", comparison.fine_tuning_overrides)):
        if lost := [each for each in overrides if each.lstrip("+~").split("=")[0] in _READ]:
            raise UserError(f"{option} {' '.join(lost)}: the comparison reads the results on `valid` from the log")
    # In whatever way they are written, these are the same folders when the command runs again.
    folders = {name: vars(comparison)[name].absolute() for name in ("root", "pretraining", "fine_tuning", "config_dir")}
    comparison = replace(comparison, **folders)
    comparison.root.mkdir(parents=True, exist_ok=True)
    # All contestants with one seed come first, so that what an interrupted comparison leaves can be compared.
    runs = [_Run.of(comparison, name, seed) for seed in comparison.seeds for name in systems]
    for training in (training for run in runs for training in run.trainings):
        is_done(training)  # which says what must go before any of them trains
    failures: dict[Path, UserError] = {}
    at_once = 1 if torch.cuda.is_available() else available_cpus()
    for stage, trainings in (
        (f"pretraining, {comparison.minutes:g} minutes", [run.pretraining for run in runs if run.pretraining]),
        (f"fine-tuning, {comparison.updates:,} updates", [each for run in runs for each in run.fine_tunings.values()]),
    ):
        ready = [each for each in trainings if not failures.keys() & {each.folder.parent / "pretraining"}]
        if ready:
            print(f"{stage}: {len(ready)} runs, {min(at_once, len(ready))} at a time", flush=True)
            complete(ready, at_once, failures)
    said = [f"{folder.relative_to(comparison.root)}: {error}" for folder, error in failures.items()]
    results = []
    for run in runs:
        if any(training.folder in failures for training in run.trainings):
            continue
        try:
            results.append(run.result(comparison))
        except UserError as error:
            said.append(f"{run.title}: {error}")
    if results:
        _write(results, comparison)
    return results, said


def _write(results: Sequence[Result], comparison: Comparison) -> None:
    minutes, updates, root = comparison.minutes, comparison.updates, comparison.root
    data = {name: str(vars(comparison)[name]) for name in ("pretraining", "fine_tuning")}
    rows = [{**asdict(result), "probes": [probe._asdict() for probe in result.probes]} for result in results]
    write_json(root / "comparison.json", {**data, "minutes": minutes, "updates": updates, "systems": rows})
    for suffix in SUFFIXES:
        table(results).write(root / f"comparison{suffix}")
    with writing(root / "comparison.md"), replacing(root / "comparison.md") as partial:
        partial.write_text(f"{describe(results, comparison)}\n", encoding="utf-8")
    seeds = f"\nmean and standard deviation of {len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else ""
    title = f"Accuracy after {minutes:g} minutes of pretraining"
    title += f"; fine-tuning: {updates:,} updates" if updates else ""
    drawn: dict[str, Any] = {"chance": _chance(comparison), "width": comparison.width}
    figure = plot_comparison(_accuracies(results), ylabel="accuracy", title=title + seeds, **drawn)
    save(figure, root / "comparison", comparison.formats)
    if any(result.probes for result in results):
        for suffix in (".csv", ".tex"):
            curve_table(results, minutes).write(root / f"curves{suffix}")
        losses = _by_system(results, "losses")
        probes = {name: _together(runs, minutes) for name, runs in _by_system(results, "probes").items()}
        title = f"{minutes:g} minutes of pretraining: loss, and k-NN of frozen features"
        figure = plot_curves(losses, probes, ylabel="accuracy of k-NN", title=title + seeds, **drawn)
        save(figure, root / "curves", comparison.formats)


def table(results: Sequence[Result]) -> Table:
    """Make a table with a row for each contestant; with several seeds, means and standard deviations."""
    accuracies = _accuracies(results)
    rows = []
    for name in dict.fromkeys(result.system for result in results):
        runs = [result for result in results if result.system == name]
        figures = ["none", "", "", ""]
        if runs[0].pretraining_updates:
            seconds, updates, clips, rate = (
                statistics.fmean(getattr(run, f"pretraining_{key}") for run in runs)
                for key in ("seconds", "updates", "clips", "clips_per_second")
            )
            figures = [f"{seconds:,.0f} s", f"{updates:,.0f}", f"{clips:,.0f}", f"{rate:,.1f}"]
        spreads = (str(Spread.of(by_system[name])) if name in by_system else "" for by_system in accuracies.values())
        rows.append([name, *figures, *spreads])
    return Table(["system", "pretraining", "updates", "clips seen", "clips/s", *accuracies], rows)


def curve_table(results: Sequence[Result], minutes: float) -> Table:
    """Make a table of the k-NN's accuracy while each system pretrained; with several seeds, as :func:`table` does."""
    rows = []
    for name, runs in _by_system(results, "probes").items():
        if any(runs):
            by_number = [{_number(probe, minutes): probe.value for probe in run} for run in runs]
            at = ([run[number] for run in by_number if number in run] for number in _SHOWN)
            rows.append([name, *(str(Spread.of(values)) if values else "" for values in at)])
    header = ["at the start", *(f"{minutes * number / _PROBES:.3g} min" for number in _SHOWN[1:])]
    return Table(["k-NN while pretraining", *header], rows)


def describe(results: Sequence[Result], comparison: Comparison) -> str:
    """Return the tables and what there is to say about them, in Markdown."""
    parts = [table(results).text("pipe"), notes(results, comparison)]
    if any(result.probes for result in results):
        parts.append(curve_table(results, comparison.minutes).text("pipe"))
        parts.append(
            "Accuracy of a k-NN of the features so far, on clips of `valid`, at shares of the time of pretraining. The "
            "picture `curves` shows it by update, beside the loss."
        )
    return "\n\n".join(parts)


def _number(probe: Probe, minutes: float) -> int:
    """Return the number of a probe of a pretraining of so many minutes, 0 for the one before the first update."""
    return int(probe.seconds / _between(minutes) / 60 + 0.01) if probe.update else 0  # logs round the seconds


def _together(runs: Sequence[Sequence[Probe]], minutes: float) -> list[list[tuple[float, float]]]:
    """Return the points (update, value) of those probes of each run whose numbers all runs have."""
    by_number = [{_number(probe, minutes): (probe.update, probe.value) for probe in run} for run in runs]
    return [[run[number] for number in run if all(number in other for other in by_number)] for run in by_number]


def _between(minutes: float) -> float:
    """Return the minutes between the probes of a pretraining."""
    return _LAST_PROBE * minutes / _PROBES


def _by_system(results: Sequence[Result], name: str) -> dict[str, list[list[Any]]]:
    """Collect an attribute of all seeds by contestant."""
    found: dict[str, list[list[Any]]] = {}
    for result in results:
        found.setdefault(result.system, []).append(getattr(result, name))
    return found


def notes(results: Sequence[Result], comparison: Comparison) -> str:
    """Say what the table's accuracies are of."""
    clips = len(Manifest.read(comparison.fine_tuning / "test.tsv"))
    notes = [f"Accuracy on the {clips:,} clips of `test`; by chance: {_chance(comparison):.1%}."]
    notes += [f"Fine-tuning: {comparison.updates:,} updates."] if comparison.updates else []
    if any(result.frozen for result in results):
        notes += ["k-NN and linear probe: frozen features, all labels."]
    if len(comparison.seeds) > 1:
        notes += [f"Mean ± standard deviation of the seeds {', '.join(map(str, comparison.seeds))}."]
    return " ".join(notes)


def _accuracies(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """Collect the accuracies of all seeds by column of the table and contestant."""
    columns: dict[str, dict[str, list[float]]] = {}
    for result in results:
        shares = {f"fine-tuning, {share} of the labels": value for share, value in result.accuracy.items()}
        for column, value in (shares | result.frozen).items():
            columns.setdefault(column, {}).setdefault(result.system, []).append(value)
    return columns


@dataclass(frozen=True)
class _Run:
    """What a contestant trains with a seed: a pretraining, unless it has none, and a fine-tuning for each share."""

    system: str
    seed: int
    title: str
    folder: Path
    pretraining: Training | None
    batch: int
    fine_tunings: Mapping[float, Training]

    @classmethod
    def of(cls, comparison: Comparison, name: str, seed: int) -> "_Run":
        folder = comparison.root / name.lower() / f"seed_{seed}"
        title = name if len(comparison.seeds) == 1 else f"{name}, seed {seed}"
        comparison = replace(
            comparison,
            overrides=[*comparison.overrides, f"common.seed={seed}"],
            fine_tuning_overrides=[*comparison.fine_tuning_overrides, f"common.seed={seed}"],
        )
        front_end: FrontEnd = LogMel()
        pretraining, batch = None, 0
        if recipe := CONTESTANTS[name]:
            front_end, _ = read_front_end(recipe, comparison.config_dir, comparison.overrides)
            pretraining = _pretraining(comparison, title, recipe, front_end, folder / "pretraining")
            batch = recipe_number(recipe, comparison.config_dir, "task.clips_per_update", comparison.overrides)
        fine_tunings = {
            fraction: _fine_tuning(
                comparison, title, pretraining, front_end, folder / f"fine-tuning_{_percent(fraction)[:-1]}", fraction
            )
            for fraction in (comparison.fractions if comparison.updates else ())
        }
        return cls(name, seed, title, folder, pretraining, batch, fine_tunings)

    @property
    def trainings(self) -> list[Training]:
        return [*([] if self.pretraining is None else [self.pretraining]), *self.fine_tunings.values()]

    def result(self, comparison: Comparison) -> Result:
        """Evaluate what was trained."""
        result = Result(self.system, self.seed)
        if self.pretraining is not None:
            log = self.pretraining.log
            losses = read_losses(log)
            updates, result.pretraining_loss = losses["validation"][-1]
            result.pretraining_updates = int(updates)
            # The log may begin with a run that was killed later than this one ended.
            result.losses = [(update, loss) for update, loss in losses["training"] if update <= updates]
            result.probes = read_probes(log)
            result.pretraining_clips = result.pretraining_updates * self.batch
            result.pretraining_seconds = _seconds(self.pretraining)
            result.pretraining_clips_per_second = result.pretraining_clips / result.pretraining_seconds
        for fraction, training in self.fine_tunings.items():
            best = training.folder / "checkpoints" / "checkpoint_best.pt"
            evaluation = evaluate(best, comparison.fine_tuning, "test", Options(progress=False))
            write(evaluation, training.folder / "evaluation" / "test")
            result.accuracy[_percent(fraction)] = evaluation.headline["accuracy"]
            if fraction == max(self.fine_tunings):
                result.fine_tuning_seconds = _seconds(training)
        if self.pretraining is not None:
            cache = self.folder / "frozen.json"
            result.frozen = _read_or_probe(self.pretraining.checkpoint, comparison.fine_tuning, cache)
        return result


def _read_or_probe(checkpoint: Path, data: Path, cache: Path) -> dict[str, float]:
    """Return the accuracy of each probe of a checkpoint's features; another checkpoint or folder is probed anew."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    key = {"data": str(data.absolute()), "modified": checkpoint.stat().st_mtime_ns}
    if known.get("of") != key:
        model, workers = load_model(checkpoint, pooling=POOLING), available_cpus()
        train, valid, test = (embed_split(model, data, split, workers) for split in ("train", "valid", "test"))
        known = {"of": key, "accuracy": frozen_accuracies(train, valid, test)}
        write_json(cache, known)
    return known["accuracy"]


def _pretraining(comparison: Comparison, title: str, recipe: str, front_end: FrontEnd, folder: Path) -> Training:
    """Define a pretraining of as many updates as fit the time."""
    arguments = [
        *_arguments(comparison, recipe, front_end, folder, comparison.pretraining, comparison.overrides),
        *("lr_scheduler._name=amae_cosine_by_time", f"lr_scheduler.warmup_updates={round(_WARM_UP * _MAX_UPDATE)}"),
        f"optimization.stop_time_hours={comparison.minutes / 60}",
        f"optimization.max_update={_MAX_UPDATE}",
        "task.modalities=[audio]",  # which all systems take
        # The time is for training; fairseq validates at the end all the same.
        override("task.probe_data", comparison.fine_tuning),
        *(f"task.probe_minutes={_between(comparison.minutes):.6g}", f"task.probe_train_clips={_TRAIN_CLIPS}"),
        f"task.probe_valid_clips={_VALID_CLIPS}",
        *("task.picture_interval=0", "checkpoint.save_interval_updates=0", "dataset.validate_interval_updates=0"),
    ]
    return Training(f"{title}: pretraining", arguments, round(comparison.minutes * 60), folder, "s")


def _fine_tuning(
    comparison: Comparison,
    title: str,
    pretraining: Training | None,
    front_end: FrontEnd,
    folder: Path,
    fraction: float,
) -> Training:
    updates, overrides = comparison.updates, comparison.fine_tuning_overrides
    start = pretraining.checkpoint if pretraining else None
    scratch = ["model.pretrained=null", f"+model@model.encoder={_FROM_SCRATCH}"]
    encoder = [override("model.pretrained", start)] if start else scratch
    arguments = [
        *_arguments(comparison, FINE_TUNING, front_end, folder, comparison.fine_tuning, overrides),
        *encoder,
        f"task.label_fraction={fraction}",
        *(f"optimization.max_update={updates}", f"lr_scheduler.warmup_updates={min(60, updates // 10)}"),
    ]
    title = f"{title}: fine-tuning, {_percent(fraction)} of the labels"
    return Training(title, arguments, updates, folder, start=start)


def _arguments(
    comparison: Comparison, recipe: str, front_end: FrontEnd, folder: Path, data: Path, overrides: Sequence[str]
) -> list[str]:
    frames = recipe_number(recipe, comparison.config_dir, "task.target_length", overrides)
    mean, std = read_or_measure(data / "train.tsv", front_end, frames, comparison.root / "statistics.json")
    arguments = recipe_arguments(recipe, comparison.config_dir, folder, data)
    return [*arguments, f"task.mean={mean:.4f}", f"task.std={std:.4f}", *overrides]


def _chance(comparison: Comparison) -> float:
    """Compute the accuracy of always naming the most frequent class of the training clips."""
    labels = (comparison.fine_tuning / "train.lbl").read_text().splitlines()
    return max(Counter(labels).values()) / len(Manifest.read(comparison.fine_tuning / "train.tsv"))


def _seconds(training: Training) -> float:
    """Return the time of fairseq's training loop, with that of the runs that this one continued."""
    return float(Checkpoint.read(training.checkpoint).extra_state["previous_training_time"])


def _percent(fraction: float) -> str:
    """Write a share of the labels, different ones differently."""
    return f"{100 * fraction:g}%"
