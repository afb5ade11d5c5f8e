"""Models that can be measured, by the ``_name`` of a recipe's model section: how to build, feed and train each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.benchmark.textbook import TextbookMAE
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.errors import UserError
from amae_plugin.models.audio_mae import AudioMAEConfig
from amae_plugin.models.base import PretrainingModel, summed_losses
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.models.system import System
from amae_plugin.modules.embedding import grid_size
from amae_plugin.modules.masking import ClipNoise

TEXTBOOK = "textbook"
TWO_PASS_SSAST = "two-pass SSAST"
"""SSAST as its published code trains it: each objective has its own mask and forward pass."""

_Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model that can be measured.

    Attributes:
        sizes: file of ``config/model`` with its sizes.
        build: builds the model from the settings of a recipe's model section.
        inputs: makes the random input of a training step, on the CPU, for a number of clips.
        loss: computes the training loss of such an input.
        mask: draws the masks of such an input and does nothing else; None if the model cannot do that separately.
        optimized: whether the recipe may compile the model, and AdamW runs in its fused form, as in the trainer.
        target_length: frames of its input in a comparison, those of its published models; the recipe's if None.
    """

    sizes: str
    build: Callable[[_Settings], nn.Module]
    inputs: Callable[[_Settings, int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    mask: Callable[..., object] | None = None
    optimized: bool = True
    target_length: int | None = None


def find_candidate(settings: _Settings) -> Candidate:
    """Find the candidate that a model section names.

    Raises:
        UserError: a model of that name cannot be measured.
    """
    name = settings.get("_name")
    if name not in CANDIDATES:
        raise UserError(f"model._name={name} is not a model that can be measured; there are: {', '.join(CANDIDATES)}")
    return CANDIDATES[name]


def _of_system(name: str) -> Candidate:
    """Describe a system; one that is not trained on clips of the usual length is compared at its own."""
    system = SYSTEMS[name]
    length = system.default_input.target_length
    own = None if length == ModelInput().target_length else length
    return Candidate(name, system.model, partial(_inputs, system), _loss, _mask, target_length=own)


def _inputs(system: System, settings: _Settings, batch: int) -> tuple[Tensor, ...]:
    """Spectrograms (B, T, F), seeds (B,) and, for a system that takes them, pictures (B, 3, S, S)."""
    sounds = torch.randn(batch, settings["input_length"], settings["num_mel_bins"]), torch.arange(batch)
    image = system.input(settings).image
    return sounds if image is None else (*sounds, torch.randn(batch, 3, image.size, image.size))


def _loss(model: PretrainingModel, source: Tensor, seed: Tensor, image: Tensor | None = None) -> Tensor:
    output = model(source, seed=seed, **({} if image is None else {"image": image}))
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def _loss_in_two_passes(model: PretrainingModel, source: Tensor, seed: Tensor) -> Tensor:
    means = []
    for number, (name, weight) in enumerate(model.loss_weights.items()):
        output = model(source, seed=seed + number * len(seed))
        means.append(weight * model.token_losses(output)[name].sum() / output["mask"].sum())
    return torch.stack(means).sum()


def _mask(model: PretrainingModel, source: Tensor, seed: Tensor, image: Tensor | None = None) -> Tensor:
    return model.masking(ClipNoise(seed), model.encoder.grid(source.shape[1], source.shape[2]))


def _textbook(settings: _Settings) -> nn.Module:
    return TextbookMAE(AudioMAEConfig.from_settings(settings))


def _textbook_inputs(settings: _Settings, batch: int) -> tuple[Tensor]:
    patch_size = tuple(settings["patch_size"])
    rows, columns = grid_size(settings["input_length"], settings["num_mel_bins"], patch_size)
    return (torch.randn(batch, rows * columns, patch_size[0] * patch_size[1]),)


CANDIDATES: dict[str, Candidate] = {
    **{name: _of_system(name) for name in SYSTEMS},
    TWO_PASS_SSAST: replace(_of_system("amae_ssast"), loss=_loss_in_two_passes),
    TEXTBOOK: Candidate("amae_audio_mae", _textbook, _textbook_inputs, lambda model, x: model(x), optimized=False),
}

FASTER, SLOWER = "amae_mae_ast", ("amae_ssast", TWO_PASS_SSAST)
"""The claim that a comparison looks at: MAE-AST's paper says three times faster than SSAST, in half the memory."""
