"""What all encoders have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from amae_plugin.models.registry import SYSTEMS

SIZES = {"input_length": 32, "num_mel_bins": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}


def encoder(name: str, **settings: object) -> Any:
    return SYSTEMS[name].encoder({"_name": name, **SIZES, **settings})


def ends(*lengths: int, frames: int) -> Tensor:
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_patch_is_padding_where_all_of_its_frames_are(name: str) -> None:
    model = encoder(name, patch_size=(4, 16), masking="random")
    columns = [[False, False, False], [False, False, True], [False, False, True], [True, True, True]]
    padding = model.patch_padding(ends(12, 8, 7, 0, frames=12))
    assert padding.unflatten(1, (3, 2)).transpose(1, 2).tolist() == [[clip] * 2 for clip in columns]
    with pytest.raises(ValueError, match="13 frames x 32 bands"):
        model.patch_padding(ends(12, frames=13))


def test_an_overlapping_patch_is_padding_where_all_of_its_frames_are() -> None:
    model = encoder("amae_ssast", patch_size=(16, 16), patch_stride=(10, 10))
    grid = model.grid(48, 32)
    assert grid == (4, 2)  # which begin at frames 0, 10, 20 and 30
    assert model.patch_padding(ends(48, 21, 20, frames=48)).tolist() == [
        [False] * 8,
        [False] * 6 + [True] * 2,
        [False] * 4 + [True] * 4,
    ]


@pytest.mark.parametrize("name", SYSTEMS)
def test_only_systems_that_mask_padding_take_note_of_it(name: str) -> None:
    model, masks = encoder(name), name == "amae_mae_ast"
    some = ends(32, 20, frames=32)
    assert (model.relevant_padding(some) is some) == masks
    assert model.relevant_padding(ends(32, 32, frames=32)) is None
    assert model.relevant_padding(None) is None


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_mean_of_the_patches_leaves_out_class_tokens_and_padding(name: str) -> None:
    model = encoder(name)
    tokens = torch.arange(5.0).expand(2, 5)[..., None] + 100 * torch.eye(2)[:, :1, None]
    prefix = torch.full((2, model.num_prefix_tokens, 1), 1e6)
    padding = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])
    whole = torch.cat([prefix, tokens], dim=1)
    assert model.mean_of_patches(whole, None).tolist() == [[102.0], [2.0]]
    assert model.mean_of_patches(whole, padding).tolist() == [[102.0], [0.5]]
