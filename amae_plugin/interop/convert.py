"""Published checkpoints to checkpoints of this plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from amae_plugin.checkpoints import CLASSIFIER, Checkpoint, Model
from amae_plugin.errors import UserError
from amae_plugin.interop.audio_mae import AudioMAEFineTuned, AudioMAEPretrained, ImageMAE
from amae_plugin.interop.mae_ast import MAEASTPretrained
from amae_plugin.interop.ssast import ASTFineTuned, ImageNetViT, SSASTPretrained
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.published import Kind, Options, PublishedFile, Reading
from amae_plugin.models.registry import SYSTEMS, read_input, system_of

# In the order in which they are asked whether they recognise a file.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        MAEASTPretrained(),
        SSASTPretrained(),
        ASTFineTuned(),
        AudioMAEPretrained(),
        AudioMAEFineTuned(),
        ImageMAE(),
        ImageNetViT(),
    )
}
"""The kinds of published checkpoints, by name."""

_AUDIOSET = {"mean": -4.2677393, "std": 4.5689974}  # what published models were pretrained with
_AUDIOSET_CLASSES = 527
_SEED = 0  # of what a file lacks: a conversion gives the same checkpoint every time


@dataclass(frozen=True)
class Conversion:
    """A published checkpoint that was converted.

    Attributes:
        kind: which it is.
        checkpoint: the result.
        used: tensors of the file that went into it.
        without_effect: official names of tensors that no output depends on, and why.
        surplus: official names of tensors that have no place, or another size than it.
        missing: names of parameters of the model that a file of this kind should hold, and were initialised.
        notes: what was taken to be so.
    """

    kind: Kind
    checkpoint: Checkpoint
    used: int
    without_effect: Mapping[str, str]
    surplus: Sequence[str]
    missing: Sequence[str]
    notes: Sequence[str]


def convert(
    source: PublishedFile,
    out: Path,
    options: Options,
    *,
    kind: str | None = None,
    front_end: Mapping[str, Any] = MappingProxyType({}),
    multi_label: bool | None = None,
    partial: bool = False,
) -> Conversion:
    """Make a published checkpoint one of this plugin; nothing is written.

    Args:
        source: the published checkpoint.
        out: path of the result.
        options: what the user says of it.
        kind: one of :data:`KINDS`; recognised if None.
        front_end: of the task's settings ``mean``, ``std`` and ``window_type`` those that are not as published.
        multi_label: of a classifier, whether a clip may have several labels; if None, with AudioSet's 527 classes.
        partial: leave out tensors that have no place, and initialise those that are missing.

    Raises:
        UserError: the kind is not recognised; sizes or options do not fit; tensors are missing or have no place.
    """
    chosen = KINDS[kind] if kind else recognise(source)
    official = _by_own_name(source, chosen)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            reading = chosen.read(source, options)
            model = _build(reading.model)
    except KeyError as error:
        raise UserError(f"{source.path}: no {chosen.name}: it has no tensor {error.args[0]}") from None
    except (ValueError, RuntimeError, IndexError, TypeError) as error:  # the last two of too few dimensions
        raise UserError(f"{source.path}, as {chosen.name}: {error}") from None
    encoder = reading.model.get("encoder", reading.model)
    if system_of(encoder).normalizes_input and not {"mean", "std"}.isdisjoint(front_end):
        raise UserError(f"{source.path}: the model normalises its input itself, so --mean and --std mean nothing to it")
    if options.target_length and options.target_length != reading.target_length:
        raise UserError(
            f"{source.path}: its positions are those of {reading.target_length} frames, so --target-length "
            f"{options.target_length} cannot be"
        )
    missing, surplus = _load(model, reading)
    surplus = [official.get(name, name) for name in surplus]
    unexpected = [name for name in missing if not name.startswith(reading.fresh)]
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
    return Conversion(
        kind=chosen,
        checkpoint=checkpoint,
        used=len(source.state) - len(reading.without_effect) - len(surplus),
        without_effect=reading.without_effect,
        surplus=surplus,
        missing=unexpected,
        notes=(*reading.notes, *_idle_options(chosen, options)),
    )


def recognise(source: PublishedFile) -> Kind:
    """The kind of a published checkpoint, by the names and shapes of its tensors.

    Raises:
        UserError: it is none that is known.
    """
    for kind in KINDS.values():
        if kind.recognises(source.state):
            return kind
    shown = ", ".join(list(source.state)[:5])
    raise UserError(
        f"{source.path}: its tensors ({shown}, ...) are those of no kind that is known; there are: {', '.join(KINDS)} "
        "(--kind)"
    )


def _by_own_name(source: PublishedFile, kind: Kind) -> dict[str, str]:
    """Official names by this package's.

    Raises:
        UserError: two tensors have one name here, so one of them would be lost.
    """
    official: dict[str, str] = {}
    for name in source.state:
        other = official.setdefault(kind.rename(name), name)
        if other != name:
            raise UserError(f"{source.path}, as {kind.name}: {other} and {name} are the same weight; which one counts?")
    return official


def _idle_options(kind: Kind, options: Options) -> list[str]:
    names = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    flags = {"classes": "--labels"}
    return [
        f"{flags.get(name, '--' + name.replace('_', '-'))} means nothing to {kind.name}"
        for name in names
        if name not in kind.takes
    ]


def _build(settings: Mapping[str, Any]) -> Model:
    if settings["_name"] == CLASSIFIER:
        return Classifier(ClassifierConfig.from_settings(settings))
    return SYSTEMS[settings["_name"]].model(settings)


def _load(model: nn.Module, reading: Reading) -> tuple[list[str], list[str]]:
    """Load what fits; the names of the model's tensors that are missing, and of those that have no place in it."""
    own = model.state_dict()
    fitting = {name: value for name, value in reading.state.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting], [name for name in reading.state if name not in fitting]


def _mismatch(path: Path, kind: Kind, missing: Sequence[str], surplus: Sequence[str]) -> str:
    lines = [f"{path}: does not fit the model ({kind.title}) that its sizes make"]
    if missing:
        lines.append(f"missing, by the names of this package: {', '.join(missing)}")
    if surplus:
        lines.append(f"without a place, or of another size: {', '.join(surplus)}")
    lines.append("--partial leaves out the ones and initialises the others")
    return "\n".join(lines)


def _sections(model: Model, reading: Reading, front_end: Mapping[str, Any], multi_label: bool | None) -> dict[str, Any]:
    """The settings of a run that could have written the checkpoint."""
    settings = _plain({**asdict(model.config), **reading.model})
    is_classifier = settings["_name"] == CLASSIFIER
    encoder = settings["encoder"] if is_classifier else settings
    task = {
        "_name": "amae_classification" if is_classifier else "amae_pretraining",
        "data": "",
        "target_length": reading.target_length,
        "num_mel_bins": encoder["num_mel_bins"],
        **_AUDIOSET,
        **front_end,
    }
    task.update(read_input(task, encoder).settings())
    sections: dict[str, Any] = {
        # What fairseq's tasks look up in other sections.
        "common": {"seed": 1, "tensorboard_logdir": None},
        "checkpoint": {"save_dir": "", "best_checkpoint_metric": "loss"},
        "dataset": {"valid_subset": "valid"},
        "task": task,
        "model": settings,
    }
    if is_classifier:
        task["multi_label"] = settings["num_classes"] == _AUDIOSET_CLASSES if multi_label is None else multi_label
        loss = "bce" if task["multi_label"] else "cross_entropy"
        sections["criterion"] = {"_name": "amae_classification", "loss": loss}
    return sections


def _plain(value: Any) -> Any:
    """Settings as YAML has them: lists instead of tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _task_state(path: Path, reading: Reading, options: Options) -> dict[str, Any]:
    if reading.model["_name"] != CLASSIFIER:
        return {}
    count = reading.model["num_classes"]
    classes = list(options.classes or map(str, range(count)))
    if len(classes) != count:
        raise UserError(f"{path}: has {count} classes, but --labels names {len(classes)}")
    return {"classes": classes}
