"""The published Audio-MAE's parameter names and this package's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.model import AudioMAE
from amae_plugin.models.classifier import Classifier, ClassifierConfig

# Official name pattern -> ours; the first that matches counts.
RENAMES = (
    (r"^pos_embed$", r"encoder.positions.pos_embed"),
    (r"^decoder_pos_embed$", r"decoder.positions.pos_embed"),
    (r"^mask_token$", r"decoder.mask_token"),
    (r"^decoder_(embed|blocks|norm|pred)\.", r"decoder.\1."),
    (r"^(cls_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
)


def from_official(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    **config: Any,
) -> AudioMAE:
    """An :class:`AudioMAE` with the weights and sizes of a published state dict.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: of the encoder; a state dict does not tell; 64 wide a head if None, as in every published model.
        decoder_num_heads: of a global decoder; 16 if None. A local decoder's weights tell theirs.
        config: further fields of :class:`AudioMAEConfig`, for instance ``norm_pix_loss``, or an ``input_length`` that
            fits a position table of another length than that of 128 bands.

    Raises:
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    tau = state_dict.get("decoder_blocks.0.attn.tau")
    decoder_blocks = _count_blocks(state_dict, "decoder_blocks")
    local_blocks = sum(f"decoder_blocks.{i}.attn.tau" in state_dict for i in range(decoder_blocks))
    sizes = {
        **_encoder_sizes(state_dict, num_heads, config),
        "decoder": "global" if tau is None else "shifted" if local_blocks == decoder_blocks else "hybrid",
        "decoder_embed_dim": state_dict["decoder_embed.weight"].shape[0],
        "decoder_depth": decoder_blocks,
        "decoder_num_heads": len(tau) if tau is not None else decoder_num_heads or 16,
        "decoder_global_blocks": decoder_blocks - local_blocks,
    }
    model = AudioMAE(AudioMAEConfig(**{**sizes, **config}))
    model.load_state_dict({rename(name): tensor for name, tensor in state_dict.items()})
    return model


def classifier_from_official(
    state_dict: Mapping[str, Tensor], num_heads: int | None = None, **config: Any
) -> Classifier:
    """A :class:`Classifier` with the weights and sizes of a published fine-tuned state dict.

    Args:
        state_dict: fine-tuned weights under the official names; ``fc_norm`` among them tells mean pooling.
        num_heads: see :func:`from_official`.
        config: further fields of :class:`ClassifierConfig`, for instance ``drop_path``.

    Raises:
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    sizes = {
        "encoder": {"_name": "amae_audio_mae", **_encoder_sizes(state_dict, num_heads, {})},
        "num_classes": len(state_dict["head.weight"]),
        "pooling": "mean" if "fc_norm.weight" in state_dict else "cls",
    }
    model = Classifier(ClassifierConfig(**{**sizes, **config}))
    model.load_state_dict({rename(name): tensor for name, tensor in state_dict.items()})
    return model


def rename(name: str) -> str:
    """This package's name of an official parameter; a name that nothing matches is returned as it is."""
    for pattern, ours in RENAMES:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def _count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in state_dict if name.startswith(f"{prefix}.")})


def _encoder_sizes(
    state_dict: Mapping[str, Tensor], num_heads: int | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    bands = int(config.get("num_mel_bins", AudioMAEConfig.num_mel_bins))
    width, _, patch_time, patch_frequency = state_dict["patch_embed.proj.weight"].shape
    return {
        "input_length": (state_dict["pos_embed"].shape[1] - 1) // (bands // patch_frequency) * patch_time,
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
        "depth": _count_blocks(state_dict, "blocks"),
        "num_heads": num_heads or width // 64,
        "mlp_ratio": state_dict["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
