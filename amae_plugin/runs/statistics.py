"""The input of a recipe's model, by which a manifest is measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from amae_plugin.data.log_mel import FrontEnd, ModelInput
from amae_plugin.errors import UserError
from amae_plugin.models.downstream import encoder_section
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.recipes import model_section, open_recipe, whole_number

_KEYS = ("front_end", "window_type", "num_mel_bins")


def front_end_of(model: Mapping[str, Any]) -> FrontEnd:
    """Return the front end of the system that a model section names."""
    return find_system(model).input(model).front_end


def read_front_end(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> tuple[FrontEnd, int]:
    """Read the front end of a recipe's model and the frames of its input.

    A fine-tuning recipe whose encoder comes from a checkpoint has that of Audio-MAE unless it names another.

    Raises:
        UserError: see :func:`~amae_plugin.recipes.open_recipe`; or there is no such front end.
    """
    with open_recipe(recipe, config_dir, overrides) as config:
        encoder, frames = encoder_section(model_section(config)), whole_number(config, "task.target_length")
        settings = {key: OmegaConf.select(config, f"task.{key}") for key in _KEYS}
    default = find_system(encoder).input(encoder) if encoder and encoder.get("_name") in SYSTEMS else ModelInput()
    try:
        found = ModelInput.from_settings(settings | {"target_length": frames, "mean": 0.0, "std": 1.0}, default)
    except ValueError as error:
        raise UserError(f"{recipe}: task: {error}") from None
    return found.front_end, frames
