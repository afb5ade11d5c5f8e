"""Published weights of MAE-AST (Baade et al. 2022), written by fairseq."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.errors import UserError
from amae_plugin.models import state_dicts
from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.published import ConversionOptions, ConvertedWeights, PublishedFile, PublishedFormat
from amae_plugin.models.settings import Settings
from amae_plugin.models.timm_vit import TimmVit
from amae_plugin.modules.embedding import Size2d

_TARGET_LENGTH = 1024  # a choice, since positions are computed for any length
# Pattern of a published name -> name here; all patterns that match are applied, in this order.
_RENAMES = (
    (r"^batch_norm\.", r"encoder.input_norm."),
    (r"^post_extract_proj\.", r"encoder.patch_embed.proj."),
    (r"^post_enc_proj\.", r"decoder.embed."),
    (r"^decoder_mask_emb$", r"decoder.mask_token"),
    (r"^final_proj_(reconstruction|classification)\.", r"\1_head."),
    (r"^(encoder|decoder)\.layer_norm\.", r"\1.norm_pre."),
    (r"^(encoder|decoder)\.layers\.", r"\1.blocks."),
    (r"\.self_attn\.out_proj\.", r".attn.proj."),
    (r"\.self_attn_layer_norm\.", r".norm1."),
    (r"\.final_layer_norm\.", r".norm2."),
    (r"\.fc([12])\.", r".mlp.fc\1."),
)
# A norm that is never called, an embedding that is overwritten, and fixed position tables.
_UNUSED = r"^(layer_norm\.|encoder_mask_emb$|(enc|dec)_sine_pos_embed\.)"
_QUERY = r"\.self_attn\.q_proj\."
# Field of MAEASTConfig -> section and name of the published setting.
_SETTINGS = {
    "dropout": ("model", "dropout"),
    "attention_dropout": ("model", "attention_dropout"),
    "dropout_input": ("model", "dropout_input"),
    "layerdrop": ("model", "encoder_layerdrop"),
    "mask_ratio": ("model", "random_mask_prob"),
    "mask_length": ("model", "mask_length"),
    "reconstruction_weight": ("criterion", "reconstruction_weight"),
    "info_nce_weight": ("criterion", "classification_weight"),
}
# task.mask_type -> masking.
_MASKINGS = {
    "random_mask": "random",
    "random_mask_batched": "random_batched",
    "chunk_mask": "chunk",
    "retain_spans": "span",
}
# Settings that the published models share. A model with other values computes something else.
_REQUIRED = {
    "model": {
        "layer_norm_first": False,
        "activation_fn": "gelu",
        "enc_sine_pos": True,
        "dec_sine_pos": True,
        "enc_conv_pos": False,
        "dec_conv_pos": False,
    },
    "task": {"feature_type": "fbank", "deltas": False, "normalize": False, "sample_rate": 16_000},
}
_HEADS = {"reconstruction_weight": "final_proj_reconstruction.", "info_nce_weight": "final_proj_classification."}


class MAEASTPretrained(PublishedFormat):
    """Pretrained MAE-AST."""

    name = "mae_ast"
    title = "MAE-AST, pretrained"
    takes = (*PublishedFormat.takes, "decoder_num_heads", "patch_size")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return "post_extract_proj.weight" in state and "decoder_mask_emb" in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        _check_function(file.settings)
        model = file.settings.get("model", {})
        bands = options.num_mel_bins or _whole(file.settings.get("task", {}), "feature_dim")
        patch_size = options.patch_size or _patch_size(file.state, model)
        heads = options.num_heads or _whole(model, "encoder_attention_heads")
        config = {
            **_sizes(file.state, patch_size, heads, options.decoder_num_heads),
            **_read_settings(file.settings),
            "num_mel_bins": bands or MAEASTConfig.num_mel_bins,
        }
        unused = {name: "no output depends on it" for name in file.state if re.search(_UNUSED, name)}
        for weight, prefix in _HEADS.items():
            if config[weight] == 0:
                unused.update({name: "its loss has weight 0" for name in file.state if name.startswith(prefix)})
        state = {name: tensor for name, tensor in file.state.items() if name not in unused}
        return ConvertedWeights(
            model={"_name": "amae_mae_ast", **config},
            state=self.convert(state, patch_size),
            target_length=options.target_length or _TARGET_LENGTH,
            without_effect=unused,
        )

    def convert(self, state: Mapping[str, Tensor], patch_size: Size2d) -> dict[str, Tensor]:
        """Rename tensors, join the projections of each attention, and shape the patch kernel.

        Raises:
            RuntimeError: an attention has a query projection but no key or value projection.
        """
        converted: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if re.search(r"\.self_attn\.[kv]_proj\.", name):
                continue
            if re.search(_QUERY, name):
                parts = [re.sub(_QUERY, rf".self_attn.{part}_proj.", name) for part in "qkv"]
                missing = [part for part in parts if part not in state]
                if missing:
                    raise RuntimeError(f"the state dict has {name}, but not {', '.join(missing)}")
                name, tensor = re.sub(_QUERY, ".attn.qkv.", name), torch.cat([state[part] for part in parts])
            elif name == "post_extract_proj.weight":
                tensor = tensor.unflatten(1, (1, *patch_size))
            elif name == "decoder_mask_emb":
                tensor = tensor[None, None]
            converted[self.rename(name)] = tensor
        return converted

    @override
    def rename(self, name: str) -> str:
        for pattern, ours in _RENAMES:
            name = re.sub(pattern, ours, name)
        return name


def as_timm(encoder: MAEASTEncoder, input_size: Size2d, pooling: str | None) -> TimmVit:
    """Refuse the export: timm has no such model."""
    raise UserError(
        "timm has no model that computes what MAE-AST does: here norms follow the residual sums, in timm's Vision "
        "Transformer they precede the branches; export it as ONNX (--format onnx)"
    )


def _sizes(
    state: Mapping[str, Tensor], patch_size: Size2d, num_heads: int | None, decoder_num_heads: int | None
) -> state_dicts.Sizes:
    """Read the fields of :class:`MAEASTConfig` that describe sizes."""
    sizes: state_dicts.Sizes = {"patch_size": patch_size}
    for part, prefix, heads in (("encoder", "", num_heads), ("decoder", "decoder_", decoder_num_heads or num_heads)):
        width = len(state[f"{part}.layer_norm.weight"])
        sizes[f"{prefix}embed_dim"] = width
        sizes[f"{prefix}depth"] = state_dicts.count_blocks(state, f"{part}.layers.")
        sizes[f"{prefix}num_heads"] = state_dicts.count_heads(width, heads)
        sizes[f"{prefix}mlp_ratio"] = state_dicts.mlp_ratio(len(state[f"{part}.layers.0.fc1.bias"]), width)
    for weight, prefix in _HEADS.items():
        sizes[weight] = getattr(MAEASTConfig, weight) * (f"{prefix}weight" in state)
    return sizes


def _patch_size(state: Mapping[str, Tensor], model: Settings) -> Size2d:
    frames, bands = _whole(model, "ast_kernel_size_time"), _whole(model, "ast_kernel_size_chan")
    if frames and bands:
        return frames, bands
    values = state["post_extract_proj.weight"].shape[1]
    raise ValueError(
        f"a token has {values} values, and without its cfg the file does not show their shape: give --patch-size 16 16 "
        "for patches or --patch-size 2 128 for frames"
    )


def _whole(settings: Settings, name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) else None


def _check_function(settings: Mapping[str, Settings]) -> None:
    for section, required in _REQUIRED.items():
        for name, value in required.items():
            actual = settings.get(section, {}).get(name, value)
            if actual != value:
                raise ValueError(
                    f"its cfg.{section}.{name} is {actual}, so it computes something other than the published models, "
                    f"where it is {value}"
                )


def _read_settings(settings: Mapping[str, Settings]) -> state_dicts.Sizes:
    """Read the other fields of :class:`MAEASTConfig` from the settings in the file."""
    found: state_dicts.Sizes = {}
    for ours, (section, name) in _SETTINGS.items():
        value = settings.get(section, {}).get(name)
        if isinstance(value, (int, float)):
            found[ours] = type(getattr(MAEASTConfig, ours))(value)
    masking = _MASKINGS.get(settings.get("task", {}).get("mask_type", ""))
    if masking:
        found["masking"] = masking
    if masking == "span":
        found.pop("mask_ratio", None)  # for spans, the published ratio counts the kept ones before they overlap
    return found
