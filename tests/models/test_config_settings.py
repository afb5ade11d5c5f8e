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
from amae_plugin.modules.masking import ChunkMasking


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


@pytest.mark.parametrize(
    ("masking", "options", "message"),
    [
        ("chunk", 5, r"mask_options is 5, must be parameters of the mask by name, as \{sides: \[5\]\}"),
        ("chunk", {"sides": 5}, "mask_options.sides is 5, must be a list of whole numbers"),
        ("chunk", {"sides": [3.5]}, r"mask_options.sides is \[3.5\], must be a list of whole numbers"),
        ("chunk", {"sides": None}, "mask_options.sides is None, must be a list of whole numbers"),
        ("inverse_block", {"side": 2.5}, "mask_options.side is 2.5, must be a whole number"),
        ("inverse_block", {"surplus": "a"}, "mask_options.surplus is 'a', must be a finite number"),
    ],
)
def test_parameters_of_a_mask_are_of_their_types(masking: str, options: object, message: str) -> None:
    settings = OmegaConf.create({"masking": masking, "mask_options": options})
    with pytest.raises(ValueError, match=rf"^model\.{message}"):
        EATConfig.from_settings(settings).build_masking()


def test_lists_of_a_mask_s_parameters_become_tuples() -> None:
    settings = OmegaConf.create({"masking": "chunk", "mask_options": {"sides": [3, 5]}})
    assert EATConfig.from_settings(settings).build_masking() == ChunkMasking(0.8, (3, 5))
