"""Foreign weights: the published SSAST's and AST's parameter names, and ImageNet's ViT and DeiT as timm stores them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.models import state_dicts
from amae_plugin.models.published import PublishedFile
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.model import SSAST
from amae_plugin.modules.patching import Size2d, overlapping_grid_size

# Official name pattern -> ours; the first that matches counts. The module. in front is that of DataParallel.
RENAMES = (
    (r"^(module\.)?mask_embed$", r"mask_token"),
    (r"^(module\.)?cpredlayer\.", r"classification_head."),
    (r"^(module\.)?gpredlayer\.", r"reconstruction_head."),
    (r"^(module\.)?mlp_head\.0\.", r"fc_norm."),
    (r"^(module\.)?mlp_head\.1\.", r"head."),
    (r"^(module\.)?v\.pos_embed$", r"encoder.positions.pos_embed"),
    (r"^(module\.)?v\.(cls_token|dist_token|patch_embed|blocks|norm)\b", r"encoder.\2"),
)
# What has no effect: DeiT's ImageNet heads, which are carried along untrained.
UNUSED = re.compile(r"^(module\.)?v\.head(_dist)?\.")
_INPUT_SIZE = re.compile(r"^(module\.)?p_input_[ft]dim$")  # becomes the config
IMAGENET_HEADS = re.compile(r"^(head(_dist|_drop)?|fc_norm|pre_logits)\.")
"""What an image model has after its encoder."""

OVERLAPS: dict[Size2d, Size2d] = {(16, 16): (10, 10), (2, 128): (1, 128)}
"""Strides with which the published code fine-tunes patches and frames that overlap."""
_ROUND = 16  # published input lengths are multiples of it


def from_official(state_dict: Mapping[str, Tensor], num_heads: int | None = None, **config: Any) -> SSAST:
    """An :class:`SSAST` with the weights and sizes of a published state dict.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: see :func:`sizes`.
        config: further fields of :class:`SSASTConfig`, for instance ``mask_ratio``.

    Raises:
        KeyError: the sizes of the input or of the encoder are missing.
        ValueError: the heads are not to be told.
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    model = SSAST(SSASTConfig(**{**sizes(state_dict, num_heads), **config}))
    model.load_state_dict(convert(state_dict, model.config))
    return model


def sizes(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """Fields of :class:`SSASTConfig` that describe an official state dict of pretraining.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: a state dict does not tell; 64 wide a head if None, as in every published model.

    Raises:
        KeyError: the sizes of the input or of the encoder are missing.
        ValueError: the heads are not to be told.
    """
    state = _without_module(state_dict)
    encoder = _encoder_sizes(state, "v.", num_heads)
    bands = int(state["p_input_fdim"])
    return {
        **encoder,
        "input_length": int(state["p_input_tdim"]),
        "num_mel_bins": bands,
        "masking": "random" if encoder["patch_size"][1] == bands else "cluster",
    }


def finetuned_sizes(
    state_dict: Mapping[str, Tensor],
    num_mel_bins: int,
    num_heads: int | None = None,
    input_length: int | None = None,
    patch_stride: Size2d | None = None,
) -> dict[str, Any]:
    """Fields of :class:`SSASTConfig` that describe the encoder of an official AST or fine-tuned SSAST.

    Of the input's length and the stride of the patches, the weights tell only how many patches they make. What is not
    given is taken to be as published: no overlap, or that of :data:`OVERLAPS`, whichever gives a length that is a
    multiple of 16.

    Args:
        state_dict: fine-tuned weights under the official names.
        num_mel_bins: bands of the input.
        num_heads: see :func:`sizes`.
        input_length: frames of the input.
        patch_stride: frames and bands from patch to patch.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: nothing fits the number of positions, or the heads are not to be told.
    """
    state = _without_module(state_dict)
    encoder = _encoder_sizes(state, "v.", num_heads)
    patch = encoder["patch_size"]
    positions = state["v.pos_embed"].shape[1] - SSASTEncoder.num_prefix_tokens
    strides = [patch_stride] if patch_stride else [OVERLAPS.get(patch, patch), patch]
    found: list[tuple[bool, int, Size2d]] = []
    for stride in strides:
        lengths = _lengths(positions, num_mel_bins, patch, stride)
        if input_length in lengths:
            return {**encoder, "input_length": input_length, "num_mel_bins": num_mel_bins, "patch_stride": stride}
        # Of several lengths with the same patches a rounder one is the likelier.
        found += [(length % _ROUND != 0, length, stride) for length in lengths]
    if input_length or not found:
        shown = " or ".join(f"{stride[0]} x {stride[1]}" for stride in strides)
        raise ValueError(
            f"{positions} positions are not those of {num_mel_bins} bands"
            f"{f' and {input_length} frames' if input_length else ''} in patches of {patch[0]} x {patch[1]} that start "
            f"{shown} apart"
        )
    _, length, stride = min(found, key=lambda candidate: candidate[0])  # the first of the best
    return {**encoder, "input_length": length, "num_mel_bins": num_mel_bins, "patch_stride": stride}


def convert(state_dict: Mapping[str, Tensor], config: SSASTConfig) -> dict[str, Tensor]:
    """This package's state dict of an official one, pretrained or fine-tuned.

    Names that nothing matches are kept as they are; tensors without effect are left out.

    Args:
        state_dict: weights under the official names.
        config: the sizes, which tell the grid of the position table.
    """
    with torch.device("meta"):  # whose tensors hold no values
        grid = SSASTEncoder(config).positions.grid
    left_out = (UNUSED, _INPUT_SIZE)
    state = {
        rename(name): tensor
        for name, tensor in state_dict.items()
        if not any(pattern.match(name) for pattern in left_out)
    }
    return {**state, "encoder.positions.grid_shape": torch.tensor(grid)}


def rename(name: str) -> str:
    """This package's name of an official parameter; a name that nothing matches is returned as it is."""
    return state_dicts.rename(name, RENAMES)


def image_sizes(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """Fields of :class:`SSASTConfig` that the encoder of an image model gives to one of audio.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the heads are not to be told.
    """
    return _encoder_sizes(state_dict, "", num_heads)


def load_imagenet_file(encoder: nn.Module, path: Path) -> None:
    """Give an encoder the weights of a file: ``.safetensors``, or of ``torch.save``, where they may be under ``model``.

    Raises:
        UserError: the encoder is of another system, or the file cannot be read or does not fit it.
    """
    if not isinstance(encoder, SSASTEncoder):
        raise UserError(f"model.imagenet={path}: only an amae_ssast encoder can start from ImageNet's weights")
    state = PublishedFile.read(path).state
    try:
        load_imagenet(encoder, state)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model.imagenet={path}: no ViT or DeiT of model.encoder's sizes: {error}") from None


def load_imagenet(encoder: SSASTEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """Give an encoder the weights of an image model, see :func:`convert_imagenet`.

    A ViT, unlike a DeiT, has no distillation token: the encoder's stays as it is.

    Raises:
        ValueError: the positions are not of a square image with class tokens.
        RuntimeError: a tensor is missing, has no place or is of another size (PyTorch's own message names them).
    """
    state = {"dist_token": encoder.dist_token.detach(), **convert_imagenet(state_dict, encoder)}
    if isinstance(encoder.norm, nn.Identity):  # in a classifier that has its norm after the pooling
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    encoder.load_state_dict(state)


def convert_imagenet(state_dict: Mapping[str, Tensor], encoder: SSASTEncoder) -> dict[str, Tensor]:
    """The encoder's state dict of an image model, as AST makes it (Gong et al. 2021, section 2.2).

    The kernel's three colours are summed: it computes on a spectrogram what it computed on a grey image. Of the square
    positions, the middle is kept along a side on which the spectrogram has fewer patches, and they are interpolated
    along one on which it has more. The image model's heads are left aside. Of a ViT, which has no distillation token,
    the position of that token is the encoder's own.

    Args:
        state_dict: of a ViT or a DeiT of timm.
        encoder: which the weights are meant for.

    Raises:
        ValueError: the positions are not of a square image with class tokens.
    """
    state = {name: tensor for name, tensor in state_dict.items() if not IMAGENET_HEADS.match(name)}
    if "pos_embed" in state:
        table = state.pop("pos_embed")
        prefix = 2 if "dist_token" in state else 1
        side = state_dicts.square_side(table, prefix)
        if prefix == 1:
            own = encoder.positions.pos_embed.detach()[:, 1:2].to(table)
            table = torch.cat([table[:, :1], own, table[:, 1:]], dim=1)
        state["positions.pos_embed"] = encoder.positions.fit(table, (side, side))
        state["positions.grid_shape"] = encoder.positions.grid_shape
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    return state


def _without_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def _encoder_sizes(state: Mapping[str, Tensor], prefix: str, num_heads: int | None) -> dict[str, Any]:
    width, _, patch_frequency, patch_time = state[f"{prefix}patch_embed.proj.weight"].shape
    return {
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
        "depth": state_dicts.count_blocks(state, f"{prefix}blocks."),
        "num_heads": state_dicts.heads_of(width, num_heads),
        "mlp_ratio": state_dicts.mlp_ratio(len(state[f"{prefix}blocks.0.mlp.fc1.weight"]), width),
    }


def _lengths(positions: int, bands: int, patch: Size2d, stride: Size2d) -> range:
    """Frames of a spectrogram that is cut into so many patches."""
    if bands < patch[1] or (stride == patch and bands % patch[1]):
        return range(0)
    rows = overlapping_grid_size(patch[0], bands, patch, stride)[1]
    if positions % rows:
        return range(0)
    shortest = (positions // rows - 1) * stride[0] + patch[0]
    # Without overlap the patches make up the whole spectrogram, with it some frames at the end may be left over.
    return range(shortest, shortest + (1 if stride == patch else stride[0]))
