"""Published weights of SSAST and AST (Gong et al. 2022, 2021) and of image models, and the encoder in timm's form."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models import state_dicts, timm_vit
from amae_plugin.models.published import (
    ConversionOptions,
    ConvertedWeights,
    PublishedFile,
    PublishedFormat,
    classifier_section,
    kernel_channels,
)
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.frequency_major import MARK, turn_encoder, turn_heads
from amae_plugin.modules.embedding import Size2d, grid_size

NAME = "amae_ssast"
# Pattern of a published name -> name here; the first pattern that matches counts.
_RENAMES = (
    (r"^mask_embed$", r"mask_token"),
    (r"^cpredlayer\.", r"classification_head."),
    (r"^gpredlayer\.", r"reconstruction_head."),
    (r"^mlp_head\.0\.", r"fc_norm."),
    (r"^mlp_head\.1\.", r"head."),
    (r"^v\.pos_embed$", r"encoder.positions.pos_embed"),
    (r"^v\.(cls_token|dist_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
)
_UNUSED = re.compile(r"^v\.head(_dist)?\.")  # DeiT's ImageNet heads, which stay untrained
_INPUT_SIZE = "p_input_"  # frames (tdim) and bands (fdim) as tensors
_IMAGE_HEADS = re.compile(r"^(head(_dist|_drop)?|fc_norm|pre_logits)\.")
_KERNEL = "v.patch_embed.proj.weight"
_OVERLAPS: dict[Size2d, Size2d] = {(16, 16): (10, 10), (2, 128): (1, 128)}  # patch -> stride in published fine-tuning
_ROUND = 16  # divisor of all published input lengths
_POOLING = "avgcls"  # AST's pooling


class _SSASTFile(PublishedFormat):
    renames = _RENAMES

    def convert(self, state: Mapping[str, Tensor], config: SSASTConfig) -> dict[str, Tensor]:
        """Rename the tensors of a state dict, turn them to time-major order, and leave out those without effect.

        Args:
            state: weights under the published names.
            config: sizes, from which the grid of the position table follows.
        """
        weights = {name: state[name] for name in state if not (_UNUSED.match(name) or name.startswith(_INPUT_SIZE))}
        converted = self.rename_all(weights)
        grid = grid_size(config.input_length, config.num_mel_bins, config.patch_size, config.patch_stride)
        converted[f"encoder.{MARK}"] = torch.tensor(grid[::-1])
        turn_heads(converted, "", config.patch_size)
        turn_encoder(converted, "encoder.", SSASTEncoder.num_prefix_tokens)
        return converted


class SSASTPretrained(_SSASTFile):
    """Pretrained SSAST."""

    name = "ssast"
    title = "SSAST, pretrained"
    takes = ("num_heads", "target_length")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, _KERNEL) == 1 and "mlp_head.1.weight" not in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, "v.", options.num_heads)
        sizes["input_length"], sizes["num_mel_bins"] = (int(file.state[f"{_INPUT_SIZE}{side}dim"]) for side in "tf")
        sizes["masking"] = "random" if sizes["patch_size"][1] == sizes["num_mel_bins"] else "cluster"
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.convert(file.state, SSASTConfig(**sizes)),
            target_length=sizes["input_length"],
            without_effect=_unused(file.state),
        )


class ASTFineTuned(_SSASTFile):
    """AST, or SSAST fine-tuned as a classifier."""

    name = "ast"
    title = "AST, or SSAST fine-tuned"
    takes = (*PublishedFormat.takes, "patch_stride", "pooling", "classes")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, _KERNEL) == 1 and "mlp_head.1.weight" in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _fine_tuned_sizes(file.state, options)
        notes = []
        if not (options.target_length and options.patch_stride):
            stride = " x ".join(map(str, sizes["patch_stride"]))
            notes.append(
                f"assumed, by the number of positions: {sizes['input_length']} frames in patches that start {stride} "
                "apart (--target-length, --patch-stride)"
            )
        if not options.pooling:
            notes.append(
                "assumed, since the weights do not show it: the head reads the mean of the class tokens, as in AST "
                "(--pooling avgtok: the mean of the patch tokens, as in some fine-tuned SSAST)"
            )
        classes = len(file.state["mlp_head.1.weight"])
        return ConvertedWeights(
            model=classifier_section(NAME, sizes, classes, options.pooling or _POOLING),
            state=self.convert(file.state, SSASTConfig(**sizes)),
            target_length=sizes["input_length"],
            without_effect=_unused(file.state),
            notes=tuple(notes),
        )


class ImageNetViT(PublishedFormat):
    """ViT or DeiT of timm as the start of an SSAST."""

    name = "image_vit"
    title = "ViT or DeiT of images, as the start of an SSAST"
    renames = ((r"^", r"encoder."),)

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state) == 3

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, "", options.num_heads)
        sizes["input_length"] = options.target_length or SSASTConfig.input_length
        sizes["num_mel_bins"] = options.num_mel_bins or SSASTConfig.num_mel_bins
        state = _convert_image(file.state, SSASTEncoder(SSASTConfig(**sizes)))
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.rename_all(state),
            target_length=sizes["input_length"],
            without_effect={name: "it classifies images" for name in file.state if _IMAGE_HEADS.match(name)},
            initialised=("encoder.dist_token", "mask_token", "reconstruction_head.", "classification_head."),
            notes=("the colours of the patch kernel were summed and its positions fitted to the spectrogram's grid",),
        )


def load_image_weights(encoder: SSASTEncoder, state: Mapping[str, Tensor]) -> None:
    """Load the weights of a ViT or DeiT of timm into an encoder; a ViT leaves the distillation token as it is.

    Raises:
        ValueError: the positions are not those of a square image with class tokens.
        RuntimeError: a tensor is missing, has no place or has another size (PyTorch's message names it).
    """
    converted = {"dist_token": encoder.dist_token.detach(), **_convert_image(state, encoder)}
    if isinstance(encoder.norm, nn.Identity):  # in a classifier whose norm follows the pooling
        converted = {name: tensor for name, tensor in converted.items() if not name.startswith("norm.")}
    encoder.load_state_dict(converted)


def as_timm(encoder: SSASTEncoder, input_size: Size2d, pooling: str | None) -> timm_vit.TimmVit:
    """Return a distilled DeiT if the mean of both class tokens is read, else a ViT with a register token."""
    grid = encoder.grid(*input_size)
    state = timm_vit.encoder_weights(encoder)
    state["pos_embed"] = encoder.positions(grid).detach()
    overlap = encoder.patch_stride != encoder.patch_size
    # timm counts adjacent patches: an enlarged image has as many of them as the real one has overlapping patches.
    image = (grid[0] * encoder.patch_size[0], grid[1] * encoder.patch_size[1]) if overlap else input_size
    arguments = timm_vit.vit_arguments(encoder, image, pooling)
    architecture = timm_vit.VIT
    if pooling in (None, "avgcls"):
        architecture = timm_vit.DEIT
        arguments.update(global_pool="token", fc_norm=False)
    else:
        arguments["reg_tokens"] = 1
        state["reg_token"] = state.pop("dist_token")
    return timm_vit.TimmVit(architecture, arguments, state, stride=encoder.patch_stride if overlap else None)


def _convert_image(state_dict: Mapping[str, Tensor], encoder: SSASTEncoder) -> dict[str, Tensor]:
    """Convert a ViT or DeiT of timm to an encoder's state dict as AST does (Gong et al. 2021, section 2.2).

    The sum of the three colours' kernels treats a spectrogram as the kernel treats a grey image. The image's rows
    become mel bands. The square position table keeps its middle along a side that becomes shorter and is interpolated
    along a side that becomes longer. A ViT has no distillation token, whose position stays the encoder's own.
    """
    state = {name: tensor for name, tensor in state_dict.items() if not _IMAGE_HEADS.match(name)}
    if "pos_embed" in state:
        table = state.pop("pos_embed")
        prefix = 2 if "dist_token" in state else 1
        side = state_dicts.square_side(table, prefix)
        if prefix == 1:
            own = encoder.positions.pos_embed.detach()[:, 1:2].to(table)
            table = torch.cat([table[:, :1], own, table[:, 1:]], dim=1)
        state["positions.pos_embed"] = table
        state[MARK] = torch.tensor([side, side])
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    turn_encoder(state, "", encoder.num_prefix_tokens)
    if "positions.pos_embed" in state:
        grid = state["positions.table_grid"].tolist()
        table = state["positions.pos_embed"]
        state["positions.pos_embed"] = encoder.positions.resize(table, tuple(grid), encoder.positions.grid)
        state["positions.table_grid"] = encoder.positions.table_grid
    return state


def _encoder_sizes(state: Mapping[str, Tensor], prefix: str, num_heads: int | None) -> state_dicts.Sizes:
    patch_frequency, patch_time = state[f"{prefix}patch_embed.proj.weight"].shape[2:]
    return {"patch_size": (patch_time, patch_frequency), **state_dicts.transformer_sizes(state, prefix, num_heads)}


def _fine_tuned_sizes(state: Mapping[str, Tensor], options: ConversionOptions) -> state_dicts.Sizes:
    """Read the fields of :class:`SSASTConfig` that describe the encoder of an AST or a fine-tuned SSAST.

    The weights only show the number of patches, which depends on the input's length and the stride. If these are not
    given, the patches are assumed to overlap as published or not at all, whichever gives a length that is a multiple of
    16.
    """
    encoder = _encoder_sizes(state, "v.", options.num_heads)
    bands, wanted = options.num_mel_bins or SSASTConfig.num_mel_bins, options.target_length
    patch = encoder["patch_size"]
    positions = state["v.pos_embed"].shape[1] - SSASTEncoder.num_prefix_tokens
    strides = [options.patch_stride] if options.patch_stride else [_OVERLAPS.get(patch, patch), patch]
    candidates = [
        (length, stride)
        for stride in strides
        for length in _lengths(positions, bands, patch, stride)
        if wanted in (None, length)
    ]
    if not candidates:
        shown = " or ".join(f"{stride[0]} x {stride[1]}" for stride in strides)
        raise ValueError(
            f"{positions} positions are not those of {bands} bands{f' and {wanted} frames' if wanted else ''} in "
            f"patches of {patch[0]} x {patch[1]} that start {shown} apart"
        )
    # Several lengths have the same patches; the first round one is the most likely.
    length, stride = min(candidates, key=lambda candidate: candidate[0] % _ROUND != 0)
    return {**encoder, "input_length": length, "num_mel_bins": bands, "patch_stride": stride}


def _lengths(positions: int, bands: int, patch: Size2d, stride: Size2d) -> range:
    """Return the lengths in frames of the spectrograms that are cut into this many patches."""
    columns = (bands - patch[1]) // stride[1] + 1
    if columns < 1 or positions % columns or (stride == patch and bands % patch[1]):
        return range(0)
    shortest = (positions // columns - 1) * stride[0] + patch[0]
    # Without overlap the patches cover the whole spectrogram; with overlap a few frames may be left at the end.
    return range(shortest, shortest + (1 if stride == patch else stride[0]))


def _unused(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: "DeiT's head for images, which no output depends on" for name in state if _UNUSED.match(name)}
