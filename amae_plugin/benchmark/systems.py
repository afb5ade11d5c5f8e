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
from amae_plugin.models.audio_mae import AudioMAEConfig
from amae_plugin.models.pretraining import summed_losses
from amae_plugin.modules.masking import ClipNoise

Settings = Mapping[str, Any]
"""A recipe's model section, its interpolations resolved, with ``input_length`` and ``num_mel_bins``."""

TEXTBOOK = "textbook"
TWO_PASSES = "two_pass_ssast"


@dataclass(frozen=True)
class System:
    """What the benchmark must know about a model.

    Attributes:
        build: the model from its settings.
        inputs: what one training step of a batch of that size takes, on the CPU, random.
        loss: the training loss of those inputs.
        mask: makes the masks of those inputs and nothing else; None if the model cannot do that apart.
        fused_optimizer: AdamW in its fused form, as the trainer has it.
    """

    build: Callable[[Settings], nn.Module]
    inputs: Callable[[Settings, int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    mask: Callable[..., object] | None = None
    fused_optimizer: bool = True


def system_of(settings: Settings) -> System:
    """The system that a model section names.

    Raises:
        UserError: it names none that can be measured.
    """
    name = settings.get("_name")
    if name not in SYSTEMS:
        raise UserError(f"model._name={name} is not a model that can be measured; there are: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def _clips(settings: Settings, batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, settings["input_length"], settings["num_mel_bins"]), torch.arange(batch)


def _patches(settings: Settings, batch: int) -> tuple[Tensor]:
    frames, bands = settings["patch_size"]
    tokens = settings["input_length"] // frames * (settings["num_mel_bins"] // bands)
    return (torch.randn(batch, tokens, frames * bands),)


def _loss(model: Any, source: Tensor, seed: Tensor) -> Tensor:
    output = model(source, seed=seed)
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def _loss_in_passes(model: Any, source: Tensor, seed: Tensor) -> Tensor:
    """Each objective in a forward pass of its own, under masks of its own."""
    losses = []
    for index, (name, weight) in enumerate(model.loss_weights.items()):
        output = model(source, seed=seed + index * len(seed))
        losses.append(weight * model.token_losses(output)[name].sum() / output["mask"].sum())
    return torch.stack(losses).sum()


def _masks(model: Any, source: Tensor, seed: Tensor) -> Tensor:
    grid = model.encoder.grid(*source.shape[1:])
    return model.encoder.in_token_order(model.masking(ClipNoise(seed), grid), grid)


SYSTEMS: dict[str, System] = {
    **{
        name: System(build=system.model, inputs=_clips, loss=_loss, mask=_masks)
        for name, system in models.SYSTEMS.items()
    },
    # As SSAST's published code trains: it computes the two objectives one after the other, then one backward pass.
    TWO_PASSES: System(
        build=models.SYSTEMS["amae_ssast"].model, inputs=_clips, loss=_loss_in_passes, mask=_masks
    ),
    TEXTBOOK: System(
        build=lambda settings: TextbookMAE(AudioMAEConfig.from_settings(settings)),
        inputs=_patches,
        loss=lambda model, patches: model(patches),
        fused_optimizer=False,
    ),
}
