"""Systems on equal terms: each pretrained for the same time on the same clips, then fine-tuned on the same labels.

Beside fine-tuning stand the frozen features, of which the same labels make a k-NN and a linear probe.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from amae_plugin.data.log_mel import FrontEnd, LogMel
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.frozen import embed_split, frozen_accuracies
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options
from amae_plugin.evaluation.tables import SUFFIXES, Table
from amae_plugin.files import write_json
from amae_plugin.inference.model import load_model
from amae_plugin.metrics.spread import Spread
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.recipes import override, recipe_number
from amae_plugin.runs.settings import Comparison
from amae_plugin.runs.statistics import read_front_end, read_or_measure
from amae_plugin.runs.training import Training, available_cpus, complete, read_losses, recipe_arguments
from amae_plugin.visual import plot_comparison
from amae_plugin.visual.style import save

FINE_TUNING = "finetune_audio_mae_tiny"
_MAX_UPDATE = 10_000_000
"""More than fit any time."""
_WARM_UP = 0.05
"""Share of pretraining in which the learning rate rises."""
_DONE = re.compile(r"done training in ([0-9.]+) seconds")
CONTESTANTS: Mapping[str, str | None] = {
    **{system.title.upper(): f"pretrain_{name.removeprefix('amae_')}_tiny" for name, system in SYSTEMS.items()},
    "AST": None,
}
"""Pretraining recipes by contestant: all systems, and AST, which is not pretrained."""
_FROM_SCRATCH = "amae_ssast_mini"
"""The network of AST, from ``config/model``: the one that SSAST pretrains."""


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


def compare(comparison: Comparison) -> list[Result]:
    """Run everything, and write ``comparison.json``, ``.md``, ``.csv``, ``.tex`` and ``.png`` into the folder.

    Raises:
        UserError: a system has no such name, a training failed, or the folder holds one with other settings.
    """
    systems = comparison.systems or tuple(CONTESTANTS)
    if unknown := [name for name in systems if name not in CONTESTANTS]:
        raise UserError(f"--systems: no {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    comparison.root.mkdir(parents=True, exist_ok=True)
    # All contestants with one seed come first, so that what an interrupted comparison leaves can be compared.
    results = [_run(comparison, name, seed) for seed in comparison.seeds for name in systems]
    minutes, updates = comparison.minutes, comparison.updates
    data = {name: str(vars(comparison)[name].absolute()) for name in ("pretraining", "fine_tuning")}
    figures = {**data, "minutes": minutes, "updates": updates, "systems": [asdict(result) for result in results]}
    write_json(comparison.root / "comparison.json", figures)
    for suffix in SUFFIXES:
        table(results).write(comparison.root / f"comparison{suffix}")
    with (comparison.root / "comparison.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{notes(results, comparison)}\n")
    title = f"Accuracy after {minutes:g} minutes of pretraining; fine-tuning: {updates:,} updates"
    if len(comparison.seeds) > 1:
        title += f"\nmean and standard deviation of {len(comparison.seeds)} seeds"
    chance, width = _chance(comparison), comparison.width
    figure = plot_comparison(_accuracies(results), ylabel="accuracy", title=title, chance=chance, width=width)
    save(figure, comparison.root / "comparison", comparison.formats)
    return results


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


def notes(results: Sequence[Result], comparison: Comparison) -> str:
    """Say what the table's accuracies are of."""
    clips = len(Manifest.read(comparison.fine_tuning / "test.tsv"))
    notes = [f"Accuracy on the {clips:,} clips of `test`; by chance: {_chance(comparison):.1%}."]
    notes += [f"Fine-tuning: {comparison.updates:,} updates."]
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


def _run(comparison: Comparison, name: str, seed: int) -> Result:
    """Train and evaluate a contestant with a seed."""
    folder = comparison.root / name.lower() / f"seed_{seed}"
    title = name if len(comparison.seeds) == 1 else f"{name}, seed {seed}"
    comparison = replace(
        comparison,
        overrides=[*comparison.overrides, f"common.seed={seed}"],
        fine_tuning_overrides=[*comparison.fine_tuning_overrides, f"common.seed={seed}"],
    )
    result = Result(name, seed)
    encoder = ["model.pretrained=null", f"+model@model.encoder={_FROM_SCRATCH}"]
    front_end: FrontEnd = LogMel()
    pretraining: Training | None = None
    if recipe := CONTESTANTS[name]:
        front_end, _ = read_front_end(recipe, comparison.config_dir, comparison.overrides)
        pretraining = _pretraining(comparison, title, recipe, front_end, folder / "pretraining")
        complete([pretraining])
        encoder = [override("model.pretrained", pretraining.checkpoint)]
        updates, result.pretraining_loss = read_losses(pretraining.log)["validation"][-1]
        result.pretraining_updates = int(updates)
        batch = recipe_number(recipe, comparison.config_dir, "task.clips_per_update", comparison.overrides)
        result.pretraining_clips = result.pretraining_updates * batch
        result.pretraining_seconds = _seconds(pretraining.log)
        result.pretraining_clips_per_second = result.pretraining_clips / result.pretraining_seconds
    for fraction in comparison.fractions:
        share = f"{fraction:.0%}"
        training = _fine_tuning(comparison, title, encoder, front_end, folder / f"fine-tuning_{share[:-1]}", fraction)
        complete([training])
        best = training.folder / "checkpoints" / "checkpoint_best.pt"
        evaluation = evaluate(best, comparison.fine_tuning, "test", Options(progress=False))
        write(evaluation, training.folder / "evaluation" / "test")
        result.accuracy[share] = evaluation.headline["accuracy"]
        if fraction == max(comparison.fractions):
            result.fine_tuning_seconds = _seconds(training.log)
    if pretraining is not None:
        result.frozen = _read_or_probe(pretraining.checkpoint, comparison.fine_tuning, folder / "frozen.json")
    return result


def _read_or_probe(checkpoint: Path, data: Path, cache: Path) -> dict[str, float]:
    """Return the accuracy of each probe of a checkpoint's features; another checkpoint or folder is probed anew."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    key = {"data": str(data.absolute()), "modified": checkpoint.stat().st_mtime_ns}
    if known.get("of") != key:
        model, workers = load_model(checkpoint), available_cpus()
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
        *("task.picture_interval=0", "checkpoint.save_interval_updates=0", "dataset.validate_interval_updates=0"),
    ]
    return Training(f"{title}: pretraining", arguments, round(comparison.minutes * 60), folder, "s")


def _fine_tuning(
    comparison: Comparison, title: str, encoder: list[str], front_end: FrontEnd, folder: Path, fraction: float
) -> Training:
    updates, overrides = comparison.updates, comparison.fine_tuning_overrides
    arguments = [
        *_arguments(comparison, FINE_TUNING, front_end, folder, comparison.fine_tuning, overrides),
        *encoder,
        f"task.label_fraction={fraction}",
        *(f"optimization.max_update={updates}", f"lr_scheduler.warmup_updates={min(60, updates // 10)}"),
    ]
    return Training(f"{title}: fine-tuning, {fraction:.0%} of the labels", arguments, updates, folder)


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


def _seconds(log: Path) -> float:
    """Add up fairseq's times of training in a log, which holds several runs if the training was continued."""
    return sum(float(seconds) for seconds in _DONE.findall(log.read_text()))
