"""Recipes as ``fairseq-hydra-train`` composes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairseq.dataclass.initialize import hydra_init
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

CONFIG_DIR = Path(__file__).parents[1] / "config"


@contextmanager
def composed(*overrides: str, recipe: str = "pretrain_audio_mae_base") -> Iterator[DictConfig]:
    """A recipe as fairseq-hydra-train composes it."""
    hydra_init(recipe)
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.1"):
        config = compose(recipe, overrides=["task.data=/data", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        yield config
    HydraConfig.instance().cfg = before
