"""The systems that can be measured, by the ``_name`` of a recipe's model section: how to build, feed and train one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from amae_plugin.benchmark.textbook import TextbookMAE
from amae_plugin.errors import UserError
from amae_plugin.models import systems as models
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.pretraining import summed_losses
from amae_plugin.modules.masking import ClipNoise

TEXTBOOK = "textbook"


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

    build: Callable[[Mapping[str, Any]], nn.Module]
    inputs: Callable[[Any, int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    mask: Callable[..., object] | None = None
    fused_optimizer: bool = True


def system_of(settings: Mapping[str, Any]) -> System:
    """The system that a model section names.

    Raises:
        UserError: it names none that can be measured.
    """
    name = settings.get("_name")
    if name not in SYSTEMS:
        raise UserError(f"model._name={name} is not a model that can be measured; there are: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def _audio_mae_inputs(model: AudioMAE, batch: int) -> tuple[Tensor, Tensor]:
    source = torch.randn(batch, model.config.input_length, model.config.num_mel_bins)
    return source, torch.arange(batch)


def _audio_mae_loss(model: AudioMAE, source: Tensor, seed: Tensor) -> Tensor:
    output = model(source, seed=seed)
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def _audio_mae_mask(model: AudioMAE, source: Tensor, seed: Tensor) -> Tensor:
    return model.masking(ClipNoise(seed), model.encoder.positions.grid)


SYSTEMS: dict[str, System] = {
    "amae_audio_mae": System(
        build=models.SYSTEMS["amae_audio_mae"].model,
        inputs=_audio_mae_inputs,
        loss=_audio_mae_loss,
        mask=_audio_mae_mask,
    ),
    TEXTBOOK: System(
        build=lambda settings: TextbookMAE(AudioMAEConfig.from_settings(settings)),
        inputs=lambda model, batch: (torch.randn(batch, model.num_patches, model.patch_values),),
        loss=lambda model, patches: model(patches),
        fused_optimizer=False,
    ),
}
