"""Foreign weights: the published SSAST's parameter names, and ImageNet's ViT and DeiT as timm stores them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.interop.files import read_weights
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.model import SSAST

# Official name pattern -> ours; the first that matches counts. The module. in front is that of DataParallel.
RENAMES = (
    (r"^(module\.)?mask_embed$", r"mask_token"),
    (r"^(module\.)?cpredlayer\.", r"classification_head."),
    (r"^(module\.)?gpredlayer\.", r"reconstruction_head."),
    (r"^(module\.)?v\.pos_embed$", r"encoder.positions.pos_embed"),
    (r"^(module\.)?v\.(cls_token|dist_token|patch_embed|blocks|norm)\b", r"encoder.\2"),
)
# The input size, which becomes the config, and DeiT's ImageNet heads, which are carried along untrained.
_LEFT_OUT = re.compile(r"^(module\.)?(p_input_[ft]dim$|v\.head(_dist)?\.)")
_IMAGENET_HEADS = re.compile(r"^(head(_dist|_drop)?|fc_norm|pre_logits)\.")


def from_official(state_dict: Mapping[str, Tensor], num_heads: int | None = None, **config: Any) -> SSAST:
    """An :class:`SSAST` with the weights and sizes of a published state dict.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: a state dict does not tell; 64 wide a head if None, as in every published model.
        config: further fields of :class:`SSASTConfig`, for instance ``mask_ratio``.

    Raises:
        KeyError: the sizes of the input or of the encoder are missing.
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    official = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    width, _, patch_frequency, patch_time = official["v.patch_embed.proj.weight"].shape
    frames, bands = int(official["p_input_tdim"]), int(official["p_input_fdim"])
    sizes = {
        "input_length": frames,
        "num_mel_bins": bands,
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
        "depth": len({name.split(".")[2] for name in official if name.startswith("v.blocks.")}),
        "num_heads": num_heads or width // 64,
        "mlp_ratio": official["v.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "masking": "random" if patch_frequency == bands else "cluster",
    }
    model = SSAST(SSASTConfig(**{**sizes, **config}))
    state = {rename(name): tensor for name, tensor in state_dict.items() if not _LEFT_OUT.match(name)}
    state["encoder.positions.grid_shape"] = torch.tensor([bands // patch_frequency, frames // patch_time])
    model.load_state_dict(state)
    return model


def rename(name: str) -> str:
    """This package's name of an official parameter; a name that nothing matches is returned as it is."""
    for pattern, ours in RENAMES:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def load_imagenet_file(encoder: nn.Module, path: Path) -> None:
    """Give an encoder the weights of a file: ``.safetensors``, or of ``torch.save``, where they may be under ``model``.

    Raises:
        UserError: the encoder is of another system, or the file cannot be read or does not fit it.
    """
    if not isinstance(encoder, SSASTEncoder):
        raise UserError(f"model.imagenet={path}: only an amae_ssast encoder can start from ImageNet's weights")
    state = read_weights(path)
    try:
        load_imagenet(encoder, state.get("model", state))
    except (AttributeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"model.imagenet={path}: no ViT or DeiT of model.encoder's sizes: {error}") from None


def load_imagenet(encoder: SSASTEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """Give an encoder the weights of an image model, as AST does (Gong et al. 2021, section 2.2).

    The kernel's three colours are summed: it computes on a spectrogram what it computed on a grey image. Of the square
    positions, the middle is kept along a side on which the spectrogram has fewer patches, and they are interpolated
    along one on which it has more. The image model's heads are left aside. A ViT, unlike a DeiT, has no distillation
    token: the encoder's stays as it is.

    Args:
        encoder: of the image model's width and depth, with square patches of the same size.
        state_dict: of a ViT or a DeiT of timm.

    Raises:
        ValueError: the positions are not of a square image with class tokens.
        RuntimeError: a tensor is missing, has no place or is of another size (PyTorch's own message names them).
    """
    state = {name: tensor for name, tensor in state_dict.items() if not _IMAGENET_HEADS.match(name)}
    if isinstance(encoder.norm, nn.Identity):  # in a classifier that has its norm after the pooling
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    table = state.pop("pos_embed")
    prefix = 2 if "dist_token" in state else 1
    side = math.isqrt(max(0, table.shape[1] - prefix))
    if side == 0 or side**2 + prefix != table.shape[1]:
        raise ValueError(f"{table.shape[1]} positions are not those of a square image and {prefix} class tokens")
    if prefix == 1:
        state["dist_token"] = encoder.dist_token.detach()
        own = encoder.positions.pos_embed.detach()[:, 1:2].to(table)
        table = torch.cat([table[:, :1], own, table[:, 1:]], dim=1)
    state["positions.pos_embed"] = table
    state["positions.grid_shape"] = torch.tensor([side, side])
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    encoder.load_state_dict(state)
