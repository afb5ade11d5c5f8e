"""Published weights of M2D (Niizumi et al. 2023, 2024)."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from amae_plugin.models import state_dicts
from amae_plugin.models.m2d.config import M2DConfig
from amae_plugin.models.published import (
    ConversionOptions,
    ConvertedWeights,
    PublishedFile,
    PublishedFormat,
    classifier_section,
    kernel_channels,
)

NAME = "amae_m2d"
_BACKBONE = "ar.runtime.backbone."  # of the fine-tuning code, before every name of the encoder
# Pattern of a published name -> name here; the first pattern that matches counts.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^pos_embed$", r"encoder.positions.pos_embed"),
    (r"^decoder_pos_embed$", r"decoder.positions.pos_embed"),
    (r"^mask_token$", r"decoder.mask_token"),
    (r"^decoder_(embed|blocks|norm|pred)\.", r"decoder.\1."),
    (r"^target_(blocks|norm)\.", r"teacher.\1."),
    (r"^(cls_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
)
_STATISTICS = "norm_stats"  # mean and standard deviation of the corpus's log-mel values
_DECODER = "decoder_embed.weight"
_TARGET = "target_norm.weight"
_BANDS = 80  # by whose positions the encoders of 2022 are known, which have no names of M2D's own


class _M2DFile(PublishedFormat):
    renames = _RENAMES

    def convert(self, state: Mapping[str, Tensor], bands: int) -> dict[str, Tensor]:
        """Rename the tensors of a state dict, and turn them to time-major order.

        Args:
            state: weights under the published names.
            bands: number of patches in frequency.
        """
        converted = self.rename_all(state)
        for name in ("encoder.positions.pos_embed", "decoder.positions.pos_embed"):
            if name in converted:
                converted[name] = state_dicts.turn_positions(converted[name], 1, bands)
        kernel = "encoder.patch_embed.proj.weight"
        if kernel in converted:
            converted[kernel] = converted[kernel].transpose(2, 3).contiguous()
        return converted


class M2DPretrained(_M2DFile):
    """Pretrained M2D, with or without its decoder and its target encoder."""

    name = "m2d"
    title = "M2D, pretrained"
    takes = (*PublishedFormat.takes, "decoder_num_heads")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        is_encoder = state_dicts.has_rows_of_bands(state, _BANDS) and "head.weight" not in state
        return kernel_channels(state) == 1 and (is_encoder or not {_STATISTICS, _TARGET}.isdisjoint(state))

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        weights = {name: tensor for name, tensor in file.state.items() if name != _STATISTICS}
        sizes = _encoder_sizes(weights, options)
        if _DECODER in weights:
            sizes.update(state_dicts.decoder_sizes(weights, options.decoder_num_heads))
        elif options.decoder_num_heads:
            sizes["decoder_num_heads"] = options.decoder_num_heads
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.convert(weights, sizes["num_mel_bins"] // sizes["patch_size"][1]),
            target_length=sizes["input_length"],
            initialised=(
                *(() if _DECODER in weights else ("decoder.",)),
                *(() if _TARGET in weights else ("teacher.",)),
            ),
            statistics=_statistics(file.state),
        )


class M2DFineTuned(_M2DFile):
    """Classifier fine-tuned from an M2D by the authors' evaluation package, EVAR."""

    name = "m2d_finetuned"
    title = "M2D, fine-tuned"
    takes = (*PublishedFormat.takes, "classes")
    renames = (
        (r"^head\.norm\.", r"batch_norm."),
        (r"^head\.mlp\.mlp\.0\.", r"head."),
        (rf"^{_BACKBONE}pos_embed$", r"encoder.positions.pos_embed"),
        (rf"^{_BACKBONE}(cls_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
    )

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, f"{_BACKBONE}patch_embed.proj.weight") == 1 and "head.mlp.mlp.0.weight" in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        backbone = {
            name.removeprefix(_BACKBONE): tensor for name, tensor in file.state.items() if name.startswith(_BACKBONE)
        }
        sizes = _encoder_sizes(backbone, options)
        weights = {name: tensor for name, tensor in file.state.items() if self.rename(name) != name}
        others = file.state.keys() - weights.keys() - {_BACKBONE + _STATISTICS}
        classes, width = file.state["head.mlp.mlp.0.weight"].shape
        pooling = "token_mean" if width == sizes["embed_dim"] else "time_concat"
        return ConvertedWeights(
            model={
                **classifier_section(NAME, sizes, classes, pooling),
                "batch_norm": True,
                "mask_ratio_time": 0.0,
                "mask_ratio_frequency": 0.0,
            },
            state=self.convert(weights, sizes["num_mel_bins"] // sizes["patch_size"][1]),
            target_length=sizes["input_length"],
            without_effect=dict.fromkeys(sorted(others), "the classifier has no use for it"),
            statistics=_statistics(backbone),
        )


def _encoder_sizes(state: Mapping[str, Tensor], options: ConversionOptions) -> state_dicts.Sizes:
    """Read the fields of :class:`M2DConfig` that describe the encoder."""
    patch_frequency, patch_time = state["patch_embed.proj.weight"].shape[2:]
    bands = options.num_mel_bins or M2DConfig.num_mel_bins
    return {
        "patch_size": (patch_time, patch_frequency),
        **state_dicts.transformer_sizes(state, "", options.num_heads),
        "input_length": state_dicts.count_steps(state["pos_embed"], 1, bands, patch_frequency) * patch_time,
        "num_mel_bins": bands,
    }


def _statistics(state: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """Return the mean and the standard deviation of the input; None as in the first files, which lack them."""
    return tuple(map(float, state[_STATISTICS].flatten().tolist())) if _STATISTICS in state else None  # type: ignore
