"""Published weights of Audio-MAE (Huang et al. 2022) and of image MAEs."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from amae_plugin.models import state_dicts
from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.published import (
    ConversionOptions,
    ConvertedWeights,
    PublishedFile,
    PublishedFormat,
    classifier_section,
    kernel_channels,
)
from amae_plugin.modules.embedding import GridPositions

NAME = "amae_audio_mae"
# Pattern of a published name -> name here; the first pattern that matches counts.
_RENAMES = (
    (r"^pos_embed$", r"encoder.positions.pos_embed"),
    (r"^decoder_pos_embed$", r"decoder.positions.pos_embed"),
    (r"^mask_token$", r"decoder.mask_token"),
    (r"^decoder_(embed|blocks|norm|pred)\.", r"decoder.\1."),
    (r"^(cls_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
)
_DECODER = ("decoder_", "mask_token")  # published names
_OF_OTHERS = {"dist_token", "norm_stats", "target_norm.weight"}  # names that DeiT and M2D add
_M2D_BANDS = 80  # by whose positions M2D's encoders of 2022 are known, which have none of its names


class AudioMAEPretrained(PublishedFormat):
    """Pretrained Audio-MAE, with or without its decoder."""

    name = "audio_mae"
    title = "Audio-MAE, pretrained"
    takes = (*PublishedFormat.takes, "decoder_num_heads")
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        is_other = not _OF_OTHERS.isdisjoint(state) or state_dicts.has_rows_of_bands(state, _M2D_BANDS)
        return kernel_channels(state) == 1 and not is_other and "head.weight" not in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, options)
        has_decoder = any(name.startswith(_DECODER) for name in file.state)
        if has_decoder:
            sizes.update(_decoder_sizes(file.state, options.decoder_num_heads))
        elif options.decoder_num_heads:
            sizes["decoder_num_heads"] = options.decoder_num_heads
        arguments = file.settings.get("args", {})
        for name, kind in (("norm_pix_loss", bool), ("mask_ratio", float)):
            if isinstance(arguments.get(name), kind):
                sizes[name] = arguments[name]
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.rename_all(file.state),
            target_length=sizes["input_length"],
            initialised=() if has_decoder else ("decoder.",),
        )


class AudioMAEFineTuned(PublishedFormat):
    """Classifier fine-tuned from an Audio-MAE."""

    name = "audio_mae_finetuned"
    title = "Audio-MAE, fine-tuned"
    takes = (*PublishedFormat.takes, "pooling", "classes")
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state) == 1 and _OF_OTHERS.isdisjoint(state) and "head.weight" in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, options)
        pooling = options.pooling or ("mean" if "fc_norm.weight" in file.state else "cls")
        return ConvertedWeights(
            model=classifier_section(NAME, sizes, len(file.state["head.weight"]), pooling),
            state=self.rename_all(file.state),
            target_length=sizes["input_length"],
        )


class ImageMAE(PublishedFormat):
    """Encoder of an image MAE as the start of an Audio-MAE."""

    name = "image_mae"
    title = "MAE of images, as the start of an Audio-MAE"
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        # Among ViTs, only an MAE has fixed positions.
        is_image = kernel_channels(state) == 3 and "dist_token" not in state
        return is_image and ("mask_token" in state or _has_sincos_positions(state))

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        without_effect = {}
        for name in file.state:
            if name.startswith(_DECODER):
                without_effect[name] = "the decoder draws patches of images"
            elif name.startswith("head."):
                without_effect[name] = "the head classifies images"
        state = {name: tensor for name, tensor in file.state.items() if name not in without_effect}
        sizes: state_dicts.Sizes = {
            **_sizes(state, options.num_heads),
            "input_length": options.target_length or AudioMAEConfig.input_length,
            "num_mel_bins": options.num_mel_bins or AudioMAEConfig.num_mel_bins,
        }
        encoder = AudioMAEEncoder(AudioMAEConfig.from_settings(sizes))
        if "pos_embed" in state:  # a fixed sine-cosine table is recomputed, any other is interpolated
            state["pos_embed"] = _image_positions(state["pos_embed"])(encoder.positions.grid)
        # The sum of the three colours' kernels treats a spectrogram as the kernel treats a grey image.
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.rename_all(state),
            target_length=sizes["input_length"],
            without_effect=without_effect,
            initialised=("decoder.",),
            notes=("the colours of the patch kernel were summed and its positions fitted to the spectrogram's grid",),
        )


def _encoder_sizes(state: Mapping[str, Tensor], options: ConversionOptions) -> state_dicts.Sizes:
    """Read the fields of :class:`AudioMAEConfig` that describe the encoder."""
    sizes = _sizes(state, options.num_heads)
    bands = options.num_mel_bins or AudioMAEConfig.num_mel_bins
    patch_time, patch_frequency = sizes["patch_size"]
    steps = state_dicts.count_steps(state["pos_embed"], 1, bands, patch_frequency)
    return {**sizes, "input_length": steps * patch_time, "num_mel_bins": bands}


def _decoder_sizes(state: Mapping[str, Tensor], num_heads: int | None) -> state_dicts.Sizes:
    """Read the fields of :class:`AudioMAEConfig` that describe the decoder; local attention shows its heads."""
    depth = state_dicts.count_blocks(state, "decoder_blocks.")
    local_blocks = sum(f"decoder_blocks.{i}.attn.tau" in state for i in range(depth))
    if local_blocks:
        heads = len(state["decoder_blocks.0.attn.tau"])
        if num_heads not in (None, heads):
            raise ValueError(f"the decoder has {heads} attention heads, not --decoder-num-heads {num_heads}")
        num_heads = heads
    return {
        **state_dicts.decoder_sizes(state, num_heads),
        "decoder": "global" if not local_blocks else "shifted" if local_blocks == depth else "hybrid",
        "decoder_global_blocks": depth - local_blocks,
    }


def _sizes(state: Mapping[str, Tensor], num_heads: int | None) -> state_dicts.Sizes:
    patch_size = tuple(state["patch_embed.proj.weight"].shape[2:])
    return {"patch_size": patch_size, **state_dicts.transformer_sizes(state, "", num_heads)}


def _has_sincos_positions(state: Mapping[str, Tensor]) -> bool:
    try:
        side = state_dicts.square_side(state["pos_embed"], prefix=1)
    except (KeyError, ValueError):
        return False
    return state_dicts.is_sincos(state["pos_embed"], (side, side))


def _image_positions(table: Tensor) -> GridPositions:
    side = state_dicts.square_side(table, prefix=1)
    positions = GridPositions((side, side), table.shape[2])
    positions.load_state_dict({"pos_embed": table})
    return positions
