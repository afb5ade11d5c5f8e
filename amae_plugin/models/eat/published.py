"""Published weights of EAT (Chen et al. 2024), written by fairseq."""

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.errors import UserError
from amae_plugin.models import state_dicts
from amae_plugin.models.eat.config import EATConfig
from amae_plugin.models.eat.encoder import EATEncoder
from amae_plugin.models.published import (
    ConversionOptions,
    ConvertedWeights,
    PublishedFile,
    PublishedFormat,
    classifier_section,
    kernel_channels,
)
from amae_plugin.models.settings import Settings
from amae_plugin.models.timm_vit import TimmVit
from amae_plugin.modules.embedding import GridPositions, Size2d, grid_size

NAME = "amae_eat"
# data2vec 2.0's names, in which spectrograms are images.
_MODALITY = "modality_encoders.IMAGE."
_KERNEL = f"{_MODALITY}local_encoder.proj.weight"
_POSITIONS = f"{_MODALITY}fixed_positional_encoder.positions"
_DECODER = f"{_MODALITY}decoder."
_TEACHER = "_ema."
_FINE_TUNED = "model."
_HEAD = "head.weight"
# Pattern of a published name -> name here; the first pattern that matches counts.
_RENAMES = (
    (rf"^{_TEACHER}blocks\.", r"teacher.blocks."),
    (rf"^{_TEACHER}{_MODALITY}local_encoder\.", r"teacher.patch_embed."),
    (rf"^{_TEACHER}{_MODALITY}context_encoder\.norm\.", r"teacher.norm_pre."),
    (rf"^{_TEACHER}{_MODALITY}extra_tokens$", r"teacher.cls_token"),
    (r"^blocks\.", r"encoder.blocks."),
    (rf"^{_MODALITY}local_encoder\.", r"encoder.patch_embed."),
    (rf"^{_MODALITY}context_encoder\.norm\.", r"encoder.norm_pre."),
    (rf"^{_MODALITY}extra_tokens$", r"encoder.cls_token"),
    (rf"^{_POSITIONS}$", r"encoder.positions.pos_embed"),
    (rf"^{_DECODER}blocks\.(\d+)\.0\.", r"decoder.blocks.\1.conv."),
    (rf"^{_DECODER}proj\.", r"decoder.proj."),
)
# Field of EATConfig -> path of the published setting below cfg.model.
_SETTINGS = {
    "clones": ("clone_batch",),
    "mask_ratio": ("modalities", "image", "mask_prob"),
    "decoder_noise_std": ("modalities", "image", "mask_noise_std"),
    "teacher_decay_updates": ("ema_anneal_end_step",),
}
# Setting of a fine-tuning below cfg.task -> mean and standard deviation of its corpus; the first that is true counts.
_STATISTICS = {"spcv2_eval": (-6.846, 5.565), "esc50_eval": (-6.627, 5.359)}
_POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean"}  # by the cfg.model.prediction_mode of a fine-tuning
# Settings of the published models, below cfg.model. A model with other values computes something else.
_REQUIRED = {
    ("layer_norm_first",): False,
    ("end_of_block_targets",): False,
    ("instance_norm_target_layer",): True,
    ("layer_norm_target_layer",): False,
    ("layer_norm_targets",): True,
    ("instance_norm_targets",): False,
    ("modalities", "image", "transformer_decoder"): False,
    ("modalities", "image", "use_alibi_encoder"): False,
}


class EATPretrained(PublishedFormat):
    """Pretrained EAT, with or without its teacher; the teacher of a file without one is a copy of the encoder."""

    name = "eat"
    title = "EAT, pretrained"
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, _KERNEL) == 1

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        settings = file.settings.get("model", {})
        _check_function(settings)
        state = dict(file.state)
        sizes = {**_read_settings(settings), **_encoder_sizes(file, state, options)}
        has_decoder = any(name.startswith(_DECODER) for name in state)
        if has_decoder:
            sizes.update(_decoder_sizes(state))
        unused = {name: "its positions are the encoder's" for name in state if name == f"{_TEACHER}{_POSITIONS}"}
        converted = self.rename_all({name: tensor for name, tensor in state.items() if name not in unused})
        notes = []
        if not any(name.startswith(_TEACHER) for name in state):
            copies = {f"teacher.{name.removeprefix('encoder.')}": tensor for name, tensor in converted.items()}
            converted.update({name: copies[name] for name in copies if _is_followed(name)})
            notes.append("the file holds no teacher, which therefore is a copy of the encoder")
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=converted,
            target_length=sizes["input_length"],
            without_effect=unused,
            initialised=() if has_decoder else ("decoder.",),
            notes=tuple(notes),
        )


class EATFineTuned(PublishedFormat):
    """Classifier fine-tuned from an EAT."""

    name = "eat_finetuned"
    title = "EAT, fine-tuned"
    takes = (*PublishedFormat.takes, "pooling", "classes")
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, f"{_FINE_TUNED}{_KERNEL}") == 1 and _HEAD in state

    @override
    def rename(self, name: str) -> str:
        return super().rename(name.removeprefix(_FINE_TUNED))

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        pretraining = (f"{_FINE_TUNED}{_TEACHER}", f"{_FINE_TUNED}{_DECODER}")
        unused = {name: "only pretraining needs it" for name in file.state if name.startswith(pretraining)}
        state = {name.removeprefix(_FINE_TUNED): file.state[name] for name in file.state if name not in unused}
        sizes = _encoder_sizes(file, state, options)
        pooling = options.pooling or _read_pooling(file.settings.get("model", {}))
        task = file.settings.get("task", {})
        return ConvertedWeights(
            model=classifier_section(NAME, sizes, len(state[_HEAD]), pooling),
            state=self.rename_all(state),
            target_length=sizes["input_length"],
            without_effect=unused,
            statistics=next((found for name, found in _STATISTICS.items() if _setting(task, (name,))), None),
        )


def as_timm(encoder: EATEncoder, input_size: Size2d, pooling: str | None) -> TimmVit:
    """Refuse the export: timm has no such model."""
    raise UserError(
        "timm has no model that computes what EAT does: here norms follow the residual sums, in timm's Vision "
        "Transformer they precede the branches; export it as ONNX (--format onnx)"
    )


def _encoder_sizes(file: PublishedFile, state: dict[str, Tensor], options: ConversionOptions) -> state_dicts.Sizes:
    """Read the fields of :class:`EATConfig` that describe the encoder, and fit the position table to the input.

    The published table covers inputs longer than any of the published models'; its rows are those of any shorter table.
    """
    patch_size: Size2d = tuple(state[_KERNEL].shape[2:])  # type: ignore[assignment]
    heads = options.num_heads or _whole(file.settings.get("model", {}), "num_heads")
    sizes: state_dicts.Sizes = {"patch_size": patch_size, **state_dicts.transformer_sizes(state, "", heads)}
    bands = options.num_mel_bins or EATConfig.num_mel_bins
    stated = options.target_length or _whole(file.settings.get("task", {}), "target_length")
    table = state.get(_POSITIONS)
    length = stated or EATConfig.input_length
    if table is not None:
        length = min(length, state_dicts.count_steps(table, 0, bands, patch_size[1]) * patch_size[0])
    grid = grid_size(length, bands, patch_size)
    if table is None:
        state[_POSITIONS] = GridPositions(grid, sizes["embed_dim"]).pos_embed
    else:
        state[_POSITIONS] = torch.cat([table.new_zeros(1, 1, table.shape[2]), table[:, : grid[0] * grid[1]]], dim=1)
    return {**sizes, "input_length": length, "num_mel_bins": bands}


def _decoder_sizes(state: Mapping[str, Tensor]) -> state_dicts.Sizes:
    """Read the fields of :class:`EATConfig` that describe the decoder."""
    width, by_group, kernel, _ = state[f"{_DECODER}blocks.0.0.weight"].shape
    return {
        "decoder_depth": state_dicts.count_blocks(state, f"{_DECODER}blocks."),
        "decoder_kernel": kernel,
        "decoder_groups": width // max(1, by_group),
    }


def _is_followed(name: str) -> bool:
    return name.startswith(("teacher.blocks.", "teacher.patch_embed.", "teacher.norm_pre.", "teacher.cls_token"))


def _setting(settings: Settings, path: tuple[str, ...]) -> int | float | bool | None:
    """Return a number of the settings in the file, or None if they do not hold it."""
    value: object = settings
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, (int, float)) else None


def _whole(settings: Settings, name: str) -> int | None:
    value = _setting(settings, (name,))
    return value if isinstance(value, int) else None


def _read_settings(settings: Settings) -> state_dicts.Sizes:
    """Read other fields of :class:`EATConfig` from the settings in the file."""
    found = {name: _setting(settings, path) for name, path in _SETTINGS.items()}
    sizes: state_dicts.Sizes = {name: type(getattr(EATConfig, name))(v) for name, v in found.items() if v is not None}
    decay = tuple(_setting(settings, (name,)) for name in ("ema_decay", "ema_end_decay"))
    if None not in decay:
        sizes["teacher_decay"] = decay
    blocks = {
        "side": _setting(settings, ("modalities", "image", "mask_length")),
        "surplus": _setting(settings, ("modalities", "image", "mask_prob_adjust")),
    }
    if None not in blocks.values():
        sizes["mask_options"] = blocks
    return sizes


def _read_pooling(settings: Settings) -> str:
    """Read the pooling of a fine-tuning from the settings in the file.

    Raises:
        ValueError: no pooling here computes it.
    """
    mode = settings.get("prediction_mode") or "CLS_TOKEN"
    if mode not in _POOLINGS:
        raise ValueError(
            f"its cfg.model.prediction_mode is {mode}, which no classifier here computes; it must be one of "
            f"{', '.join(_POOLINGS)}"
        )
    return _POOLINGS[mode]


def _check_function(settings: Settings) -> None:
    for path, value in _REQUIRED.items():
        actual = _setting(settings, path)
        if actual not in (None, value):
            raise ValueError(
                f"its cfg.model.{'.'.join(path)} is {actual}, so it computes something other than the published "
                f"models, where it is {value}"
            )
