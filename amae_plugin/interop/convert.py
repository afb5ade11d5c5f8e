"""Conversion of published checkpoints to checkpoints of this plugin."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.models.base import DownstreamModel, Model
from amae_plugin.models.downstream import DOWNSTREAM, build_model, encoder_section
from amae_plugin.models.published import ConversionOptions, ConvertedWeights, PublishedFile, PublishedFormat
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.models.settings import Settings

FORMATS: dict[str, PublishedFormat] = {form.name: form() for system in SYSTEMS.values() for form in system.published}
"""Formats of published checkpoints by name."""

_AUDIOSET_CLASSES = 527
_SEED = 0  # seed of the parameters that a file lacks, so that every conversion has the same result


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        kind: format of the file.
        checkpoint: converted checkpoint.
        used: number of tensors of the file that the checkpoint holds.
        without_effect: published names of tensors that no output depends on, and the reasons.
        surplus: published names of tensors that have no place or another size.
        missing: parameters that a file of this format should hold, and that were initialised instead.
        notes: assumptions.
    """

    kind: PublishedFormat
    checkpoint: Checkpoint
    used: int
    without_effect: Mapping[str, str]
    surplus: Sequence[str]
    missing: Sequence[str]
    notes: Sequence[str]


def convert(
    source: PublishedFile,
    out: Path,
    options: ConversionOptions,
    *,
    kind: str | None = None,
    front_end: Settings = MappingProxyType({}),
    multi_label: bool | None = None,
    partial: bool = False,
) -> Conversion:
    """Convert a published checkpoint; nothing is written.

    Args:
        source: published checkpoint.
        out: path of the result.
        options: facts that the user states about the file.
        kind: key of :data:`FORMATS`; recognised if None.
        front_end: task settings (``mean``, ``std``, ``window_type``) that differ from the published ones.
        multi_label: whether a clip of a classifier may have several labels; None: if it has AudioSet's 527 classes.
        partial: leave out tensors that have no place, and initialise missing ones.

    Raises:
        UserError: the kind is not recognised; sizes, options or the input do not fit; tensors are missing or have no
            place.
    """
    chosen = FORMATS[kind] if kind else recognise(source)
    published = _published_names(source, chosen)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            reading = chosen.read(source, options)
            model = build_model(reading.model)
    except KeyError as error:
        raise UserError(f"{source.path}: not of kind {chosen.name}: it has no tensor {error.args[0]}") from None
    except (ValueError, RuntimeError, IndexError, TypeError) as error:  # the last two if dimensions are missing
        raise UserError(f"{source.path}, as {chosen.name}: {error}") from None
    system = find_system(encoder_section(reading.model))
    if system.default_input.normalization == "model" and not {"mean", "std"}.isdisjoint(front_end):
        raise UserError(f"{source.path}: the model normalises its input itself, so --mean and --std have no effect")
    if options.target_length and options.target_length != reading.target_length:
        raise UserError(
            f"{source.path}: its positions are those of {reading.target_length} frames, which contradicts "
            f"--target-length {options.target_length}"
        )
    missing, surplus = _load(model, reading)
    surplus = [published.get(name, name) for name in surplus]
    unexpected = [name for name in missing if not name.startswith(reading.initialised)]
    if (unexpected or surplus) and not partial:
        raise UserError(_mismatch(source.path, chosen, unexpected, surplus))
    conversion = {
        "source": source.path.name,
        "kind": chosen.name,
        "initialised": missing,
        "left_out": [*reading.without_effect, *surplus],
    }
    checkpoint = Checkpoint(
        out,
        _sections(model, reading, front_end, multi_label),
        model.state_dict(),
        _task_state(source.path, reading, options),
        {"conversion": conversion},
    )
    _ = replace(checkpoint, path=source.path).input  # before anything is written
    return Conversion(
        kind=chosen,
        checkpoint=checkpoint,
        used=len(source.state) - len(reading.without_effect) - len(surplus),
        without_effect=reading.without_effect,
        surplus=surplus,
        missing=unexpected,
        notes=(*reading.notes, *_idle_options(chosen, options)),
    )


def recognise(source: PublishedFile) -> PublishedFormat:
    """Recognise the format of a published checkpoint by the names and shapes of its tensors.

    Raises:
        UserError: no format recognises it.
    """
    for form in FORMATS.values():
        if form.recognises(source.state):
            return form
    shown = ", ".join(list(source.state)[:5])
    raise UserError(
        f"{source.path}: no known kind of checkpoint has its tensors ({shown}, ...); the kinds are: "
        f"{', '.join(FORMATS)} (--kind)"
    )


def _published_names(source: PublishedFile, kind: PublishedFormat) -> dict[str, str]:
    """Return the published names by this package's names.

    Raises:
        UserError: two tensors have one name here, so one would be lost.
    """
    published: dict[str, str] = {}
    for name, ours in kind.names(source.state).items():
        other = published.setdefault(ours, name)
        if other != name:
            raise UserError(f"{source.path}, as {kind.name}: {other} and {name} are the same weight; keep one of them")
    return published


def _idle_options(kind: PublishedFormat, options: ConversionOptions) -> list[str]:
    idle = [name for name, value in asdict(options).items() if value is not None and name not in kind.takes]
    flags = ["--labels" if name == "classes" else f"--{name.replace('_', '-')}" for name in idle]
    return [f"{flag} has no effect on {kind.name}" for flag in flags]


def _load(model: Model, reading: ConvertedWeights) -> tuple[list[str], list[str]]:
    """Load the tensors that fit; returns the names of missing tensors and of tensors without a place."""
    own = model.state_dict()
    fitting = {name: value for name, value in reading.state.items() if name in own and own[name].shape == value.shape}
    missing = model.load_state_dict(fitting, strict=False).missing_keys
    return missing, [name for name in reading.state if name not in fitting]


def _mismatch(path: Path, kind: PublishedFormat, missing: Sequence[str], surplus: Sequence[str]) -> str:
    lines = [f"{path}: does not fit the model ({kind.title}) of its sizes"]
    if missing:
        lines.append(f"missing, by the names of this package: {', '.join(missing)}")
    if surplus:
        lines.append(f"without a place, or of another size: {', '.join(surplus)}")
    lines.append("--partial initialises missing tensors and leaves out those without a place")
    return "\n".join(lines)


def _sections(
    model: Model, reading: ConvertedWeights, front_end: Settings, multi_label: bool | None
) -> dict[str, Settings]:
    """Return the settings of a run that could have written the checkpoint."""
    settings = json.loads(json.dumps({**asdict(model.config), **reading.model}))  # with lists instead of tuples
    encoder = encoder_section(settings)
    default = find_system(encoder).default_input.settings()
    sizes = {"target_length": reading.target_length, "num_mel_bins": encoder["num_mel_bins"]}
    statistics = dict(zip(("mean", "std"), reading.statistics or ()))
    task = {"_name": "amae_pretraining", "data": "", **default, **sizes, **statistics, **front_end}
    sections: dict[str, Settings] = {
        # fairseq's tasks read these from other sections.
        "common": {"seed": 1, "tensorboard_logdir": None},
        "checkpoint": {"save_dir": "", "best_checkpoint_metric": "loss"},
        "dataset": {"valid_subset": "valid"},
        "task": task,
        "model": settings,
    }
    if isinstance(model, DownstreamModel):
        task["_name"] = model.task
        task["multi_label"] = settings["num_classes"] == _AUDIOSET_CLASSES if multi_label is None else multi_label
        loss = "bce" if task["multi_label"] else "cross_entropy"
        sections["criterion"] = {"_name": model.task, "loss": loss}
    return sections


def _task_state(path: Path, reading: ConvertedWeights, options: ConversionOptions) -> dict[str, list[str]]:
    if reading.model["_name"] not in DOWNSTREAM:
        return {}
    count = reading.model["num_classes"]
    classes = list(options.classes or map(str, range(count)))
    if len(classes) != count:
        raise UserError(f"{path}: has {count} classes, but --labels names {len(classes)}")
    return {"classes": classes}
