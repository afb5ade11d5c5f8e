"""Systems on equal terms: each pretrained for the same time on the same clips, then fine-tuned on the same labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options
from amae_plugin.files import write_json
from amae_plugin.runs.statistics import read_or_measure
from amae_plugin.runs.training import Training, complete, read_losses
from amae_plugin.visual import plot_comparison

FINE_TUNING = "finetune_audio_mae_tiny"
_MAX_UPDATE = 10_000_000
"""More than fit any time."""
_WARM_UP = 0.05
"""Share of the time of pretraining in which the learning rate rises."""
_DONE = re.compile(r"done training in ([0-9.]+) seconds")


@dataclass(frozen=True)
class Contestant:
    """What is compared.

    Attributes:
        recipe: of its pretraining; None for a network that is not pretrained.
        encoder: file of ``config/model`` of the network that is trained from scratch, where there is no recipe.
    """

    recipe: str | None
    encoder: str | None = None


CONTESTANTS: Mapping[str, Contestant] = {
    "Audio-MAE": Contestant("pretrain_audio_mae_tiny"),
    "MAE-AST": Contestant("pretrain_mae_ast_tiny"),
    "SSAST": Contestant("pretrain_ssast_tiny"),
    "AST": Contestant(None, "amae_ssast_mini"),
}
"""The systems by name; AST is SSAST's network without pretraining."""


@dataclass(frozen=True)
class Comparison:
    """What is run; the same comparison run again goes on where it was.

    Attributes:
        pretraining: folder of the manifests ``train`` and ``valid`` that all are pretrained on.
        fine_tuning: folder of the labelled manifests ``train``, ``valid`` and ``test`` that all are fine-tuned on.
        root: everything is written here.
        config_dir: folder of the recipes.
        minutes: of pretraining.
        updates: of fine-tuning.
        fractions: of the labels, each of which is fine-tuned with.
        systems: names of the contestants.
        overrides: Hydra overrides of every pretraining.
        fine_tuning_overrides: the same of every fine-tuning.
    """

    pretraining: Path
    fine_tuning: Path
    root: Path
    config_dir: Path = Path("config")
    minutes: float = 10.0
    updates: int = 800
    fractions: Sequence[float] = (1.0, 0.1)
    systems: Sequence[str] = tuple(CONTESTANTS)
    overrides: Sequence[str] = ()
    fine_tuning_overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in CONTESTANTS]
        if unknown or not self.systems:
            raise UserError(f"--systems: no {', '.join(unknown) or 'system'}; there are {', '.join(CONTESTANTS)}")
        if self.minutes <= 0 or self.updates < 1:
            raise UserError("--minutes must be above 0 and --updates 1 or more")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise UserError("--fractions must be above 0 and at most 1")
        for folder, splits in ((self.pretraining, ("train", "valid")), (self.fine_tuning, ("train", "valid", "test"))):
            missing = [f"{split}.tsv" for split in splits if not (folder / f"{split}.tsv").is_file()]
            if missing:
                raise UserError(f"{folder}: has no {', '.join(missing)}; amae manifest makes them")


@dataclass(frozen=True)
class Result:
    """What came out for one system.

    Attributes:
        system: name.
        pretraining_updates: 0 without pretraining, as the following four.
        pretraining_clips: clips seen, one seen twice as two.
        pretraining_seconds: of fairseq's training loop.
        pretraining_clips_per_second: their ratio.
        pretraining_loss: on ``valid`` at the end; losses of different systems are different functions.
        fine_tuning_seconds: of fairseq's training loop, with all labels if that was run.
        accuracy: on ``test``, of the checkpoint that is best on ``valid``, by share of the labels.
    """

    system: str
    pretraining_updates: int
    pretraining_clips: int
    pretraining_seconds: float
    pretraining_clips_per_second: float
    pretraining_loss: float | None
    fine_tuning_seconds: float
    accuracy: Mapping[str, float]


def compare(comparison: Comparison) -> list[Result]:
    """Run everything, and write ``comparison.json``, ``comparison.md`` and ``comparison.png`` into the folder.

    Raises:
        UserError: a training failed, or the folder holds one with other settings.
    """
    comparison.root.mkdir(parents=True, exist_ok=True)
    results = [_result(comparison, name) for name in comparison.systems]
    write_json(
        comparison.root / "comparison.json",
        {
            "pretraining": str(comparison.pretraining.absolute()),
            "fine_tuning": str(comparison.fine_tuning.absolute()),
            "minutes": comparison.minutes,
            "updates": comparison.updates,
            "systems": [asdict(result) for result in results],
        },
    )
    (comparison.root / "comparison.md").write_text(markdown(results, comparison))
    by_fraction = {
        f"{share} of the labels": {result.system: result.accuracy[share] for result in results}
        for share in results[0].accuracy
    }
    title = (
        f"Accuracy after {comparison.minutes:g} minutes of pretraining and {comparison.updates:,} updates with labels"
    )
    figure = plot_comparison(by_fraction, ylabel="accuracy", title=title, chance=_chance(comparison))
    figure.savefig(comparison.root / "comparison.png")
    return results


def markdown(results: Sequence[Result], comparison: Comparison) -> str:
    """The results as a table."""
    shares = list(results[0].accuracy)
    header = ["system", "pretraining", "updates", "clips seen", "clips/s"]
    header += [f"accuracy, {share} of the labels" for share in shares]
    rows = [header, ["---"] * len(header)]
    for result in results:
        pretrained = [
            f"{result.pretraining_seconds:,.0f} s",
            f"{result.pretraining_updates:,}",
            f"{result.pretraining_clips:,}",
            f"{result.pretraining_clips_per_second:,.1f}",
        ]
        figures = pretrained if result.pretraining_updates else ["none", "", "", ""]
        rows.append([result.system, *figures, *(f"{result.accuracy[share]:.1%}" for share in shares)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nFine-tuning: {comparison.updates:,} updates each. By chance: {_chance(comparison):.1%}.\n"


def _result(comparison: Comparison, name: str) -> Result:
    contestant = CONTESTANTS[name]
    folder = comparison.root / name.lower().replace(" ", "-")
    pretraining = None
    updates, seconds, loss, clips = 0, 0.0, None, 0
    if contestant.recipe is not None:
        pretraining = _pretraining(comparison, name, contestant.recipe, folder)
        complete([pretraining])
        done, loss = read_losses(pretraining.log)["validation"][-1]
        updates = int(done)
        seconds = _seconds(pretraining.log)
        clips = updates * _setting(comparison, contestant.recipe, "task.clips_per_update", comparison.overrides)
    accuracy, times = {}, {}
    for fraction in comparison.fractions:
        training = _fine_tuning(comparison, name, contestant, pretraining, folder, fraction)
        complete([training])
        share = f"{fraction:.0%}"
        best = training.folder / "checkpoints" / "checkpoint_best.pt"
        result = evaluate(best, comparison.fine_tuning, "test", Options(progress=False))
        write(result, training.folder / "evaluation" / "test")
        accuracy[share] = result.headline["accuracy"]
        times[fraction] = _seconds(training.log)
    return Result(
        system=name,
        pretraining_updates=updates,
        pretraining_clips=clips,
        pretraining_seconds=seconds,
        pretraining_clips_per_second=clips / seconds if seconds else 0.0,
        pretraining_loss=loss,
        fine_tuning_seconds=times[max(times)],
        accuracy=accuracy,
    )


def _pretraining(comparison: Comparison, name: str, recipe: str, folder: Path) -> Training:
    """The pretraining of as many updates as fit the time."""
    arguments = [
        *_arguments(comparison, recipe, comparison.pretraining, comparison.overrides),
        f"hydra.run.dir={folder / 'pretraining'}",
        "lr_scheduler._name=amae_cosine_by_time",
        f"optimization.stop_time_hours={comparison.minutes / 60}",
        f"optimization.max_update={_MAX_UPDATE}",
        f"lr_scheduler.warmup_updates={round(_WARM_UP * _MAX_UPDATE)}",
        # Time is for training; the end is validated all the same.
        "task.picture_interval=0",
        "checkpoint.save_interval_updates=0",
        "dataset.validate_interval_updates=0",
    ]
    return Training(f"{name}: pretraining", arguments, round(comparison.minutes * 60), folder / "pretraining", "s")


def _fine_tuning(
    comparison: Comparison,
    name: str,
    contestant: Contestant,
    pretraining: Training | None,
    folder: Path,
    fraction: float,
) -> Training:
    target = folder / f"fine-tuning_{fraction:.0%}".replace("%", "")
    if pretraining is not None:
        encoder = [f"model.pretrained={pretraining.checkpoint}"]
    else:
        encoder = ["model.pretrained=null", f"+model@model.encoder={contestant.encoder}"]
    arguments = [
        *_arguments(comparison, FINE_TUNING, comparison.fine_tuning, comparison.fine_tuning_overrides),
        f"hydra.run.dir={target}",
        *encoder,
        f"task.label_fraction={fraction}",
        f"optimization.max_update={comparison.updates}",
        f"lr_scheduler.warmup_updates={min(60, comparison.updates // 10)}",
    ]
    return Training(f"{name}: fine-tuning, {fraction:.0%} of the labels", arguments, comparison.updates, target)


def _arguments(comparison: Comparison, recipe: str, data: Path, overrides: Sequence[str]) -> list[str]:
    frames = _setting(comparison, recipe, "task.target_length", overrides)
    mean, std = read_or_measure(data / "train.tsv", frames, comparison.root / "statistics.json")
    return [
        *("--config-dir", str(comparison.config_dir), "--config-name", recipe),
        f"task.data={data}",
        f"task.mean={mean:.4f}",
        f"task.std={std:.4f}",
        "distributed_training.distributed_world_size=1",
        *overrides,
    ]


def _setting(comparison: Comparison, recipe: str, name: str, overrides: Sequence[str]) -> int:
    path = comparison.config_dir / f"{recipe}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe {path}; --config-dir says where they are")
    given = [override for override in overrides if override.startswith(f"{name}=")]
    return int(OmegaConf.select(OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(given)), name))


def _chance(comparison: Comparison) -> float:
    """Accuracy of always naming the most frequent class of the training clips."""
    labels = (comparison.fine_tuning / "train.lbl").read_text().splitlines()
    return max(labels.count(label) for label in set(labels)) / len(Manifest.read(comparison.fine_tuning / "train.tsv"))


def _seconds(log: Path) -> float:
    """fairseq's time of training, of all runs in a log that was continued."""
    return sum(float(seconds) for seconds in _DONE.findall(log.read_text()))
