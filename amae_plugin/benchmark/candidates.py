"""What can be measured, by the ``_name`` of a recipe's model section: how to build, feed and train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.benchmark.textbook import TextbookMAE
from amae_plugin.errors import UserError
from amae_plugin.models import registry as models
from amae_plugin.models.audio_mae import AudioMAEConfig
from amae_plugin.models.base import PretrainingModel, summed_losses
from amae_plugin.modules.embedding import grid_size
from amae_plugin.modules.masking import ClipNoise

TEXTBOOK = "textbook"
TWO_PASS_SSAST = "two-pass SSAST"
"""SSAST as its published code trains it: each objective has a mask and a forward pass of its own."""

_Settings = Mapping[str, Any]


@dataclass(frozen=True)
class System:
    """What the benchmark must know about a model.

    Attributes:
        build: the model from the settings of a recipe's model section.
        inputs: what one training step of a batch of that size takes, on the CPU, random.
        loss: the training loss of those inputs.
        mask: makes the masks of those inputs and nothing else; None if the model cannot do that apart.
        fused_optimizer: AdamW in its fused form, as the trainer has it.
    """

    build: Callable[[_Settings], nn.Module]
    inputs: Callable[[_Settings, int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    mask: Callable[..., object] | None = None
    fused_optimizer: bool = True


def system_of(settings: _Settings) -> System:
    """The system that a model section names.

    Raises:
        UserError: it names none that can be measured.
    """
    name = settings.get("_name")
    if name not in SYSTEMS:
        raise UserError(f"model._name={name} is not a model that can be measured; there are: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def _inputs(settings: _Settings, batch: int) -> tuple[Tensor, Tensor]:
    """Spectrograms (B, T, F) and seeds (B,)."""
    return torch.randn(batch, settings["input_length"], settings["num_mel_bins"]), torch.arange(batch)


def _loss(model: PretrainingModel, source: Tensor, seed: Tensor) -> Tensor:
    output = model(source, seed=seed)
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def _loss_in_two_passes(model: PretrainingModel, source: Tensor, seed: Tensor) -> Tensor:
    means = []
    for number, (name, weight) in enumerate(model.loss_weights.items()):
        output = model(source, seed=seed + number * len(seed))
        means.append(weight * model.token_losses(output)[name].sum() / output["mask"].sum())
    return torch.stack(means).sum()


def _mask(model: PretrainingModel, source: Tensor, seed: Tensor) -> Tensor:
    return model.masking(ClipNoise(seed), model.encoder.grid(source.shape[1], source.shape[2]))


def _textbook_inputs(settings: _Settings, batch: int) -> tuple[Tensor]:
    patch_size = tuple(settings["patch_size"])
    rows, columns = grid_size(settings["input_length"], settings["num_mel_bins"], patch_size)
    return (torch.randn(batch, rows * columns, patch_size[0] * patch_size[1]),)


SYSTEMS: dict[str, System] = {
    **{name: System(system.model, _inputs, _loss, _mask) for name, system in models.SYSTEMS.items()},
    TWO_PASS_SSAST: System(models.SYSTEMS["amae_ssast"].model, _inputs, _loss_in_two_passes, _mask),
    TEXTBOOK: System(
        build=lambda settings: TextbookMAE(AudioMAEConfig.from_settings(settings)),
        inputs=_textbook_inputs,
        loss=lambda model, patches: model(patches),
        fused_optimizer=False,
    ),
}
