"""The input of a recipe's model, by which a manifest is measured."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import FRONT_ENDS, FrontEnd, LogMel, ModelInput
from amae_plugin.errors import UserError
from amae_plugin.models.downstream import encoder_section
from amae_plugin.models.registry import SYSTEMS, find_system
from amae_plugin.recipes import model_section, open_recipe, whole_number

_KEYS = ("front_end", "window_type", "num_mel_bins")


def read_front_end(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> tuple[FrontEnd, int]:
    """Read the front end of a recipe's model and the frames of its input.

    A fine-tuning recipe has those of its encoder, from the checkpoint ``model.pretrained`` if there is one. Without it,
    they are Audio-MAE's, or those of the front end that the recipe names.

    Raises:
        UserError: see :func:`~amae_plugin.recipes.open_recipe`; or there is no such front end.
    """
    with open_recipe(recipe, config_dir, overrides) as config:
        model, frames = model_section(config), whole_number(config, "task.target_length")
        settings = {key: OmegaConf.select(config, f"task.{key}") for key in _KEYS}
    encoder, pretrained = encoder_section(model) or {}, model.get("pretrained")
    if pretrained and Path(pretrained).is_file():
        encoder = {**Checkpoint.read(pretrained).encoder_settings, **encoder}
    default = ModelInput(FRONT_ENDS.get(settings["front_end"], LogMel)())
    if encoder.get("_name") in SYSTEMS:
        default = find_system(encoder).input(encoder)
    try:
        found = ModelInput.from_settings(settings | {"target_length": frames, "mean": 0.0, "std": 1.0}, default)
    except ValueError as error:
        raise UserError(f"{recipe}: task: {error}") from None
    return found.front_end, frames
