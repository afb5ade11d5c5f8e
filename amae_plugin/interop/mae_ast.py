"""Published MAE-AST checkpoints (Baade et al. 2022), which fairseq wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amae_plugin.models.mae_ast import MAEASTConfig, interop
from amae_plugin.models.published import Kind, Options, PublishedFile, Reading
from amae_plugin.modules.patching import Size2d

_TARGET_LENGTH = 1024  # of positions that are computed for any length
_HEADS = {"reconstruction_weight": "final_proj_reconstruction.", "info_nce_weight": "final_proj_classification."}

Settings = Mapping[str, Mapping[str, Any]]


class MAEASTPretrained(Kind):
    """MAE-AST's pretraining."""

    name = "mae_ast"
    title = "MAE-AST, pretrained"
    takes = (*Kind.takes, "decoder_num_heads", "patch_size")

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`."""
        return "post_extract_proj.weight" in state and "decoder_mask_emb" in state

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        settings = file.settings
        _check_function(settings)
        model = settings.get("model", {})
        patch_size = options.patch_size or _patch_size(file.state, model)
        heads = options.num_heads or _whole(model, "encoder_attention_heads")
        config = {
            **interop.sizes(file.state, patch_size, heads, options.decoder_num_heads),
            **_config(settings),
            "num_mel_bins": options.num_mel_bins
            or _whole(settings.get("task", {}), "feature_dim")
            or MAEASTConfig.num_mel_bins,
        }
        unused = {name: "no output depends on it" for name in file.state if re.search(interop.UNUSED, name)}
        for weight, prefix in _HEADS.items():
            if config[weight] == 0:
                unused.update({name: "its loss has weight 0" for name in file.state if name.startswith(prefix)})
        state = {name: tensor for name, tensor in file.state.items() if name not in unused}
        return Reading(
            model={"_name": "amae_mae_ast", **config},
            state=interop.convert(state, patch_size),
            target_length=options.target_length or _TARGET_LENGTH,
            without_effect=unused,
        )

    def rename(self, name: str) -> str:
        """See :meth:`Kind.rename`."""
        return interop.rename(name)


def _patch_size(state: Mapping[str, Tensor], model: Mapping[str, Any]) -> Size2d:
    frames, bands = _whole(model, "ast_kernel_size_time"), _whole(model, "ast_kernel_size_chan")
    if frames and bands:
        return frames, bands
    values = state["post_extract_proj.weight"].shape[1]
    raise ValueError(
        f"a token has {values} values, and without its cfg the file does not tell their shape: give --patch-size 16 16 "
        "for patches, --patch-size 2 128 for frames"
    )


def _whole(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) else None


def _check_function(settings: Settings) -> None:
    for section, required in interop.REQUIRED.items():
        for name, value in required.items():
            actual = settings.get(section, {}).get(name, value)
            if actual != value:
                raise ValueError(
                    f"its cfg.{section}.{name} is {actual}, which makes it another function than the published models, "
                    f"where it is {value}"
                )


def _config(settings: Settings) -> dict[str, Any]:
    """Fields of :class:`MAEASTConfig` beyond the sizes, from the settings that the file holds."""
    default = MAEASTConfig()
    found: dict[str, Any] = {}
    for section, names in (("model", interop.MODEL_SETTINGS), ("criterion", interop.CRITERION_SETTINGS)):
        for name, ours in names.items():
            value = settings.get(section, {}).get(name)
            if isinstance(value, (int, float)):
                found[ours] = type(getattr(default, ours))(value)
    masking = interop.MASKINGS.get(settings.get("task", {}).get("mask_type", ""))
    if masking:
        found["masking"] = masking
    if masking == "span":
        found.pop("mask_ratio", None)  # there, the ratio is of the spans that are kept, before they overlap
    return found
