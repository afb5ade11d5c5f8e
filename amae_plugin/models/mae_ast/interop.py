"""The published MAE-AST's parameter and setting names and this package's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amae_plugin.models import state_dicts
from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.model import MAEAST
from amae_plugin.modules.patching import Size2d

# Official name pattern -> ours; all that match are applied, in this order.
RENAMES = (
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
# What has no effect: a norm that is never called, an embedding that is overwritten, and the fixed position tables.
UNUSED = r"^(layer_norm\.|encoder_mask_emb$|(enc|dec)_sine_pos_embed\.)"
_QUERY = r"\.self_attn\.q_proj\."

# Official setting -> field of MAEASTConfig: of the run's sections model and criterion.
MODEL_SETTINGS = {
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "dropout_input": "dropout_input",
    "encoder_layerdrop": "layerdrop",
    "feature_grad_mult": "feature_grad_mult",
    "random_mask_prob": "mask_ratio",
    "mask_length": "mask_length",
}
CRITERION_SETTINGS = {"reconstruction_weight": "reconstruction_weight", "classification_weight": "info_nce_weight"}
# task.mask_type -> MAEASTConfig.masking.
MASKINGS = {
    "random_mask": "random",
    "random_mask_batched": "random_batched",
    "chunk_mask": "chunk",
    "retain_spans": "span",
}
# Official settings that the published models share, and without which the model would be another function.
REQUIRED = {
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


def from_official(
    state_dict: Mapping[str, Tensor],
    patch_size: Size2d,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    **config: Any,
) -> MAEAST:
    """A :class:`MAEAST` with the weights and sizes of a published state dict.

    Args:
        state_dict: pretraining weights under the official names.
        patch_size: frames and bands of a token, which a state dict does not tell: (16, 16) or (2, 128).
        num_heads: see :func:`sizes`.
        decoder_num_heads: see :func:`sizes`.
        config: further fields of :class:`MAEASTConfig`, for instance ``dropout``; a head whose weight is 0 is left out.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the sizes are not to be told.
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    config = {**sizes(state_dict, patch_size, num_heads, decoder_num_heads), **config}
    model = MAEAST(MAEASTConfig(**config))
    unwanted = tuple(
        f"{head}_head."
        for head, module in (
            ("reconstruction", model.reconstruction_head),
            ("classification", model.classification_head),
        )
        if module is None
    )
    state = convert(state_dict, patch_size)
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(unwanted)})
    return model


def sizes(
    state_dict: Mapping[str, Tensor],
    patch_size: Size2d,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> dict[str, Any]:
    """Fields of :class:`MAEASTConfig` that describe an official state dict.

    Args:
        state_dict: pretraining weights under the official names.
        patch_size: frames and bands of a token, which a state dict does not tell.
        num_heads: nor this; 64 wide a head if None, as in every published model.
        decoder_num_heads: as many as ``num_heads`` if None, as the published code has it.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the heads are not to be told.
    """
    width = len(state_dict["encoder.layer_norm.weight"])
    decoder_width = len(state_dict["decoder.layer_norm.weight"])
    return {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": state_dicts.count_blocks(state_dict, "encoder.layers."),
        "num_heads": state_dicts.heads_of(width, num_heads),
        "mlp_ratio": state_dicts.mlp_ratio(len(state_dict["encoder.layers.0.fc1.bias"]), width),
        "decoder_embed_dim": decoder_width,
        "decoder_depth": state_dicts.count_blocks(state_dict, "decoder.layers."),
        "decoder_num_heads": state_dicts.heads_of(decoder_width, decoder_num_heads or num_heads),
        "decoder_mlp_ratio": state_dicts.mlp_ratio(len(state_dict["decoder.layers.0.fc1.bias"]), decoder_width),
        "reconstruction_weight": 10.0 * ("final_proj_reconstruction.weight" in state_dict),
        "info_nce_weight": 1.0 * ("final_proj_classification.weight" in state_dict),
    }


def convert(state_dict: Mapping[str, Tensor], patch_size: Size2d) -> dict[str, Tensor]:
    """This package's state dict of an official one; also of gradients or of a part of it.

    Names that nothing matches are kept as they are; tensors without effect are left out.

    Raises:
        RuntimeError: of an attention, there is a query projection but no key or value projection.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if re.search(UNUSED, name) or re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        if re.search(_QUERY, name):
            parts = [re.sub(_QUERY, rf".self_attn.{part}_proj.", name) for part in "qkv"]
            missing = [part for part in parts if part not in state_dict]
            if missing:
                raise RuntimeError(f"the state dict has {name}, but not {', '.join(missing)}")
            converted[rename(re.sub(_QUERY, ".attn.qkv.", name))] = torch.cat([state_dict[part] for part in parts])
        elif name == "post_extract_proj.weight":
            converted[rename(name)] = tensor.unflatten(1, (1, *patch_size))
        elif name == "decoder_mask_emb":
            converted[rename(name)] = tensor[None, None]
        else:
            converted[rename(name)] = tensor
    return converted


def rename(name: str) -> str:
    """This package's name of an official parameter; a name that nothing matches is returned as it is."""
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name
