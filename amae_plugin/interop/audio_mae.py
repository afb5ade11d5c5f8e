"""Published Audio-MAE checkpoints (Huang et al. 2022), and the image MAE that it comes from (He et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amae_plugin.models.audio_mae import AudioMAEConfig, interop
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.published import Kind, Options, PublishedFile, Reading, channels

_NAME = "amae_audio_mae"
_DECODER = "decoder."  # how this package's names of its parameters begin


class _AudioMAENames(Kind):
    def rename(self, name: str) -> str:
        """See :meth:`Kind.rename`."""
        return interop.rename(name)


class AudioMAEPretrained(_AudioMAENames):
    """Audio-MAE's pretraining, with its decoder or without."""

    name = "audio_mae"
    title = "Audio-MAE, pretrained"
    takes = (*Kind.takes, "decoder_num_heads")

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`."""
        return channels(state) == 1 and "dist_token" not in state and "head.weight" not in state

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        bands = options.num_mel_bins or AudioMAEConfig.num_mel_bins
        sizes = interop.encoder_sizes(file.state, bands, options.num_heads)
        has_decoder = any(name.startswith(interop.DECODER) for name in file.state)
        if has_decoder:
            sizes.update(interop.decoder_sizes(file.state, options.decoder_num_heads))
        elif options.decoder_num_heads:
            sizes["decoder_num_heads"] = options.decoder_num_heads
        sizes.update(_objective(file.settings.get("args", {})))
        return Reading(
            model={"_name": _NAME, **sizes},
            state=interop.convert(file.state),
            target_length=sizes["input_length"],
            fresh=() if has_decoder else (_DECODER,),
        )


class AudioMAEFineTuned(_AudioMAENames):
    """Audio-MAE fine-tuned to classify."""

    name = "audio_mae_finetuned"
    title = "Audio-MAE, fine-tuned"
    takes = (*Kind.takes, "pooling", "classes")

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`."""
        return channels(state) == 1 and "dist_token" not in state and "head.weight" in state

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        bands = options.num_mel_bins or AudioMAEConfig.num_mel_bins
        sizes = interop.classifier_sizes(file.state, bands, options.num_heads)
        if options.pooling:
            sizes["pooling"] = options.pooling
        return Reading(
            model={"_name": "amae_classifier", **sizes},
            state=interop.convert(file.state),
            target_length=sizes["encoder"]["input_length"],
        )


class ImageMAE(_AudioMAENames):
    """The encoder of an image MAE as the beginning of an Audio-MAE."""

    name = "image_mae"
    title = "MAE of images, as the beginning of an Audio-MAE"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`; a ViT whose positions are MAE's fixed ones is an MAE."""
        is_image = channels(state) == 3 and "dist_token" not in state
        return is_image and ("mask_token" in state or interop.has_fixed_positions(state))

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        without_effect = {}
        for name in file.state:
            if name.startswith(interop.DECODER):
                without_effect[name] = "the decoder draws patches of images"
            elif name.startswith("head."):
                without_effect[name] = "the head classifies images"
        state = {name: tensor for name, tensor in file.state.items() if name not in without_effect}
        sizes = interop.image_sizes(state, options.num_heads)
        sizes["input_length"] = options.target_length or AudioMAEConfig.input_length
        sizes["num_mel_bins"] = options.num_mel_bins or AudioMAEConfig.num_mel_bins
        encoder = AudioMAEEncoder(AudioMAEConfig.from_settings(sizes))
        return Reading(
            model={"_name": _NAME, **sizes},
            state=interop.convert_image(state, encoder),
            target_length=sizes["input_length"],
            without_effect=without_effect,
            fresh=(_DECODER,),
            notes=("the colours of the patch kernel were summed and its positions fitted to the spectrogram's grid",),
        )


def _objective(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`AudioMAEConfig` from the arguments of the published script, where the file holds them."""
    found: dict[str, Any] = {}
    if isinstance(args.get("norm_pix_loss"), bool):
        found["norm_pix_loss"] = args["norm_pix_loss"]
    if isinstance(args.get("mask_ratio"), float):
        found["mask_ratio"] = args["mask_ratio"]
    return found
