"""Configs from the settings of recipes and checkpoints."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from amae_plugin.models.audio_mae import AudioMAEConfig
from amae_plugin.models.classifier import ClassifierConfig
from amae_plugin.models.eat import EATConfig
from amae_plugin.models.mae_ast import MAEASTConfig
from amae_plugin.models.settings import ModelConfig
from amae_plugin.models.ssast import SSASTConfig


@pytest.mark.parametrize("kind", [AudioMAEConfig, MAEASTConfig, SSASTConfig, EATConfig])
def test_lists_become_pairs_other_keys_are_left_aside_and_missing_ones_keep_their_defaults(
    kind: type[ModelConfig],
) -> None:
    settings = {"_name": "some", "embed_dim": 24, "patch_size": [2, 128], "masking": "time"}
    expected = kind(embed_dim=24, patch_size=(2, 128), masking="time")
    assert kind.from_settings(settings) == kind.from_settings(OmegaConf.create(settings)) == expected


def test_null_and_the_settings_of_an_encoder_stay_what_they_are() -> None:
    assert SSASTConfig.from_settings({"patch_stride": None}).patch_stride is None
    encoder = {"_name": "amae_ssast", "patch_size": [2, 128]}
    assert ClassifierConfig.from_settings({"encoder": encoder}).encoder is encoder
