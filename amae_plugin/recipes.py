"""Recipes, as commands read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amae_plugin.errors import UserError


@contextmanager
def open_recipe(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> Iterator[Any]:
    """A recipe (OmegaConf's ``DictConfig``) put together from its files; values are resolved as they are taken.

    Args:
        recipe: name in ``config_dir``, or a file.
        config_dir: the folder of recipes.
        overrides: in Hydra's syntax.

    Raises:
        UserError: there is no such recipe; or it, an override, or a value taken while it is open cannot be read.
    """
    # Hydra puts a recipe's files together; only these commands and the trainer need it.
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    path = Path(recipe)
    if path.suffix != ".yaml":
        path = config_dir / f"{recipe}.yaml"
    if not path.is_file():
        there_are = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"no recipe {path}; in {path.parent} there are: {there_are} (--config-dir says where they are)")
    try:
        with initialize_config_dir(str(path.parent.absolute()), version_base="1.2"):
            config = compose(path.stem, overrides=list(overrides))
        yield config
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {error}") from None


def model_section(config: Any) -> dict[str, Any]:
    """The model section of an open recipe, its interpolations resolved, with the sizes that the task gives it."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(settings, dict)
    sizes = {"input_length": config.task.target_length, "num_mel_bins": config.task.num_mel_bins}
    return {**sizes, **{str(name): value for name, value in settings.items()}}


def model_settings(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """See :func:`open_recipe` and :func:`model_section`."""
    with open_recipe(recipe, config_dir, overrides) as config:
        return model_section(config)
