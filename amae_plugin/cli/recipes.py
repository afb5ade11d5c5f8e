"""Recipes as Hydra puts them together, for commands that work on one without training it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amae_plugin.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A recipe with its groups and overrides; interpolations are not resolved yet.

    Args:
        recipe: its name in ``config_dir``, or a file.
        config_dir: folder of recipes.
        overrides: in Hydra's form, ``model.depth=3``.

    Raises:
        UserError: there is no such recipe, or it or an override cannot be read.
    """
    # Hydra puts a recipe's files together; only some commands and the trainer need it.
    import hydra

    path = Path(recipe)
    if path.suffix != ".yaml":
        path = config_dir / f"{recipe}.yaml"
    if not path.is_file():
        there_are = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"no recipe {path}; in {path.parent} there are: {there_are} (--config-dir says where they are)")
    with readable(str(path)), hydra.initialize_config_dir(str(path.parent.absolute()), version_base="1.2"):
        return hydra.compose(path.stem, overrides=list(overrides))


def model_settings(config: DictConfig, recipe: str) -> dict[str, Any]:
    """The model section of a recipe with its interpolations resolved, and with the sizes that the task gives it.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf

    with readable(recipe):
        settings = OmegaConf.to_container(config.model, resolve=True)
        assert isinstance(settings, dict)
        sizes = {"input_length": config.task.target_length, "num_mel_bins": config.task.num_mel_bins}
    return {**sizes, **{str(name): value for name, value in settings.items()}}


@contextmanager
def readable(recipe: str) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise about a recipe into a UserError that names it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{recipe}: {error}") from None
