"""Averages of weights: the mean of several checkpoints, or the moving average that a run kept."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.files import reading
from amae_plugin.models.registry import find_system
from amae_plugin.weight_files import unwrapped

_NUMBERED = re.compile(r"checkpoint(?:(\d+)|_(\d+)_(\d+))\.pt")
"""Names of fairseq's checkpoints at the end of an epoch, and of those after an update within one."""
_KEPT = ("train_iterator", "conversion")
"""Entries of the trainer's state that hold for an average as well; its measures do not."""
_FREE = "compile"
"""Setting of a model that changes nothing that it computes."""


def numbered_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder that fairseq has numbered, in the order of training.

    The best and the last one are not among them: they are copies.

    Raises:
        UserError: the folder cannot be read, or has none.
    """
    places = {}
    with reading(folder, "the folder"):
        for path in folder.iterdir():
            if found := _NUMBERED.fullmatch(path.name):
                ended, epoch, update = (None if number is None else int(number) for number in found.groups())
                places[path] = (ended, float("inf")) if ended is not None else (epoch, update)
    if not places:
        remedy = "keep them by checkpoint.keep_interval_updates=5, or checkpoint.no_epoch_checkpoints=false"
        raise UserError(f"{folder}: holds no numbered checkpoints (checkpoint_2_200.pt, checkpoint2.pt); {remedy}")
    return sorted(places, key=places.__getitem__)


def average(paths: Sequence[Path], out: Path, *, moving: bool = False) -> Checkpoint:
    """Average the weights of checkpoints of one model; nothing is written.

    Parameters and buffers are averaged in float32, among them the running mean and variance of a batch norm, as
    PyTorch's :class:`AveragedModel` does. Settings, classes and number of updates are those of the last checkpoint.

    Args:
        paths: checkpoints.
        out: path of the result.
        moving: take the moving average that each keeps (``ema.store_ema``) in place of its weights.

    Raises:
        UserError: a checkpoint cannot be read or keeps no moving average; there is nothing to average; or two are of
            different models or have the same weights.
    """
    checkpoints = [_moving(Checkpoint.read(path)) if moving else Checkpoint.read(path) for path in paths]
    if len(checkpoints) == 1 and not moving:
        remedy = "name several, or the folder of a run that kept several, or take its moving average (--ema)"
        raise UserError(f"{paths[0]}: one checkpoint alone has no average; {remedy}")
    first, *others = checkpoints
    model, facts = first.model(), _facts(first)
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    for index, checkpoint in enumerate(others, 1):
        model = checkpoint.model()
        _check_same_model(first, facts, checkpoint)
        _refuse_copy(checkpoint, checkpoints[:index])
        averaged.update_parameters(model)
    last = checkpoints[-1]
    state = {name: last.extra_state[name] for name in _KEPT if name in last.extra_state}
    state["average"] = {"of": [path.name for path in paths], "moving": moving}
    return replace(last, path=out, state=averaged.module.state_dict(), extra_state=state)


def _moving(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the moving average that it keeps as its weights."""
    state = checkpoint.state_of_run("ema", dict)
    if state is None:
        remedy = "train with ema.store_ema=true, or average several checkpoints"
        raise UserError(f"{checkpoint.path}: keeps no moving average of its weights; {remedy}")
    return replace(checkpoint, state=unwrapped(state))


def _facts(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what checkpoints must have in common, by name: what their weights mean, and what they are given."""
    settings, encoder = checkpoint.model_settings, checkpoint.encoder_settings
    parts: dict[str, Any] = {"encoder": asdict(find_system(encoder).config.from_settings(encoder))}
    if (downstream := checkpoint.downstream) is not None:
        parts |= {**asdict(downstream.plain_config.from_settings(settings)), **parts}
    return dict(
        _leaves(
            {
                "model": {"_name": settings["_name"], **parts},
                "task": checkpoint.input.settings(),
                "task_state": checkpoint.task_state,
                "criterion": {"loss": checkpoint.setting("criterion", "loss", str)},
            }
        )
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name != _FREE:
            yield f"{prefix}{name}", value


def _check_same_model(first: Checkpoint, own: Mapping[str, object], other: Checkpoint) -> None:
    others = _facts(other)
    for name in {**own, **others}:
        if own.get(name) != others.get(name):
            here, there = (textwrap.shorten(str(facts.get(name)), 60) for facts in (own, others))
            values = f"{name} is {here} in the first and {there} in the second"
            raise UserError(f"{first.path} and {other.path} are of different models, which have no average: {values}")


def _refuse_copy(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> None:
    for other in earlier:
        if other.updates == checkpoint.updates and all(
            torch.equal(value, other.state[name]) for name, value in checkpoint.state.items()
        ):
            raise UserError(f"{other.path} and {checkpoint.path} hold the same weights; leave out one of them")
