"""Recipes, and the groups of settings that they compose: families, corpora, sampling, cross-validation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import CONFIG_DIR, composed
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.optim.lr_scheduler.fixed_schedule import FixedLRScheduleConfig
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.nn import Parameter

from amae_plugin.data.manifest import write_manifest
from amae_plugin.fairseq_plugin.optim import AmaeAdamW, AmaeAdamWConfig

RECIPES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
OWN = "the recipe's own"


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIG_DIR, tmp_path / "config"))


def mark(section: dict[str, Any]) -> dict[str, Any]:
    return {key: mark(value) if isinstance(value, dict) and value else OWN for key, value in section.items()}


def marked_keys(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from marked_keys(value, f"{prefix}{key}.")
        elif value == OWN:
            yield f"{prefix}{key}"


def overridden(config_dir: Path, recipe: str) -> list[str]:
    """Settings of a recipe that a group sets as well, with the same value or another one."""
    settings = OmegaConf.to_container(OmegaConf.load(config_dir / f"{recipe}.yaml"))
    assert isinstance(settings, dict)
    defaults = settings.pop("defaults")
    assert defaults[0] == "_self_", "fairseq's defaults would replace the values of a group before it"
    marked = mark(settings)
    # Under a name that no test has given fairseq's schema, whose types the marks would not fit.
    (config_dir / "marked.yaml").write_text(OmegaConf.to_yaml({"defaults": defaults, **marked}))
    with initialize_config_dir(str(config_dir), version_base="1.2"):
        composed_keys = set(marked_keys(OmegaConf.to_container(compose("marked"))))
    return [key for key in marked_keys(marked) if key not in composed_keys]


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_group_silently_overrides_what_a_recipe_sets(recipe: str, config_dir: Path) -> None:
    assert overridden(config_dir, recipe) == []


def test_a_setting_in_both_a_recipe_and_a_group_is_found(config_dir: Path) -> None:
    recipe = config_dir / "finetune_audio_mae_as20k.yaml"
    recipe.write_text(f"{recipe.read_text()}lr_scheduler: {{_name: fixed, warmup_updates: 3, t_mult: 1}}\n")
    corpus = config_dir / "corpus" / "audioset.yaml"
    corpus.write_text(f"{corpus.read_text()}  multi_label: true\n")
    model = config_dir / "run_config" / "local.yaml"
    model.write_text(f"{model.read_text()}\nmodel: {{layer_decay: 1, pooling: cls}}\noptimizer: {{weight_decay: 0}}\n")
    assert overridden(config_dir, recipe.stem) == [
        "task.multi_label",
        "optimizer.weight_decay",
        "lr_scheduler._name",
        "lr_scheduler.warmup_updates",
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_holds_its_own_numbers_and_no_more(recipe: str) -> None:
    lines = (CONFIG_DIR / f"{recipe}.yaml").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) <= 25


@pytest.mark.parametrize(
    ("recipe", "override", "value"),
    [
        ("pretrain_audio_mae_base", "task.mean=1", 1),
        ("pretrain_audio_mae_base", "optimization.max_update=7", 7),
        ("pretrain_audio_mae_base", "model.depth=3", 3),
        ("pretrain_audio_mae_base", "common.log_format=tqdm", "tqdm"),
        ("pretrain_mae_ast_patch", "common.seed=5", 5),
        ("finetune_audio_mae_esc50", "task.fold=4", 4),
        ("finetune_audio_mae_as2m", "task.balanced_samples=10", 10),
        ("finetune_ssast_spc2", "model.encoder.patch_stride=[4,4]", [4, 4]),
        ("linear_probe_audio_mae", "model.frozen=false", False),
        ("finetune_audio_mae_spc2", "task.mixup=0.3", 0.3),
    ],
)
def test_the_command_line_wins_over_groups_and_recipe(recipe: str, override: str, value: object) -> None:
    with composed(override, recipe=recipe) as config:
        assert OmegaConf.select(config, override.partition("=")[0]) == value


def updates(config: DictConfig) -> tuple[int, int]:
    return config.optimization.max_update, config.lr_scheduler.warmup_updates


def test_the_length_of_a_training_follows_from_its_manifest(tmp_path: Path) -> None:
    for folder, clips in (("", 100), ("fold3", 65)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_manifest(tmp_path / folder / "train.tsv", tmp_path, [(f"{index}.wav", 1) for index in range(clips)])
    data = f"task.data={tmp_path}"
    with composed(data, recipe="finetune_audio_mae_as20k") as config:
        assert updates(config) == (4 * 60, 4 * 4)
    with composed(data, "task.epochs=5", "task.clips_per_update=64", recipe="finetune_audio_mae_as20k") as config:
        assert updates(config) == (2 * 5, 2 * 4)
    with composed(data, "task.fold=3", recipe="finetune_audio_mae_esc50") as config:
        assert updates(config) == (2 * 60, 2 * 4)
    with composed(data, "task.clips_per_update=50") as config:
        assert updates(config) == (2 * 32, 2 * 3)
    with composed(data, "task.clips_per_update=50", "optimization.max_epoch=4") as config:
        assert updates(config) == (2 * 4, 2 * 3)
    with composed(recipe="finetune_audio_mae_as2m") as config:
        assert updates(config) == (391 * 100, 391 * 20)


@pytest.mark.parametrize(
    ("recipe", "halvings"),
    [
        ("pretrain_cav_mae", {10: 0, 11: 1, 15: 1, 16: 2, 20: 2, 21: 3, 25: 3}),
        ("finetune_cav_mae_as20k", {1: 0, 5: 0, 6: 1, 7: 2, 15: 10}),
        ("finetune_cav_mae_as2m", {1: 0, 2: 0, 3: 1, 10: 8}),
        ("finetune_cav_mae_vggsound", {1: 0, 2: 0, 3: 1, 10: 8}),
    ],
)
def test_the_learning_rate_is_halved_as_published(recipe: str, halvings: dict[int, int]) -> None:
    with composed(recipe=recipe) as config:
        settings = OmegaConf.to_container(OmegaConf.merge(FixedLRScheduleConfig(), config.lr_scheduler))
        rates = list(config.optimization.lr)
        optimizer = AmaeAdamW(OmegaConf.merge(AmaeAdamWConfig(), {"lr": rates}), [Parameter(torch.zeros(1))])
        schedule = build_lr_scheduler(OmegaConf.create({**settings, "lr": rates}), optimizer)
    for epoch, number in halvings.items():
        assert schedule.step_begin_epoch(epoch) == schedule.step_update(epoch * 100) == rates[0] * 0.5**number
