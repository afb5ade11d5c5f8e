"""Published weights of CAV-MAE (Gong et al. 2023), and of image MAEs as its start."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models import state_dicts
from amae_plugin.models.cav_mae.config import CAVMAEConfig
from amae_plugin.models.cav_mae.encoder import CAVMAEEncoder
from amae_plugin.models.published import (
    ConversionOptions,
    ConvertedWeights,
    PublishedFile,
    PublishedFormat,
    classifier_section,
    kernel_channels,
)

NAME = "amae_cav_mae"
_OWN = "blocks_a."  # published prefix of the sound's own blocks
_SHARED = re.compile(r"^blocks_u\.(\d+)\.(norm[12])?(_[av])?")  # of the shared blocks, whose numbers begin at 0
# Pattern of a published name -> name here; the first pattern that matches counts. Of three sets of norms in every block
# only the shared blocks use all; the others keep their published names.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed_a\.", r"encoder.patch_embed."),
    (r"^patch_embed_v\.", r"encoder.image.patch_embed."),
    (r"^pos_embed_a$", r"encoder.positions.pos_embed"),
    (r"^pos_embed_v$", r"encoder.image.positions.pos_embed"),
    (r"^modality_a$", r"encoder.modality_token"),
    (r"^modality_v$", r"encoder.image.modality_token"),
    (r"^blocks_a\.(\d+\.(norm[12]|attn|mlp)\.)", r"encoder.blocks.\1"),
    (r"^blocks_v\.(\d+\.(norm[12]|attn|mlp)\.)", r"encoder.image.blocks.\1"),
    (r"^norm_a\.", r"encoder.norm."),
    (r"^norm_v\.", r"encoder.image.norm."),
    (r"^norm\.", r"encoder.joint.norm."),
    (r"^mask_token$", r"decoder.mask_token"),
    (r"^decoder_pos_embed_a$", r"decoder.positions.pos_embed"),
    (r"^decoder_pos_embed_v$", r"decoder.image.positions.pos_embed"),
    (r"^decoder_modality_a$", r"decoder.modality_token"),
    (r"^decoder_modality_v$", r"decoder.image.modality_token"),
    (r"^decoder_pred_a\.", r"decoder.pred."),
    (r"^decoder_pred_v\.", r"decoder.image.pred."),
    (r"^decoder_(blocks\.\d+\.(norm[12]|attn|mlp)|embed|norm)\.", r"decoder.\1."),
    (r"^mlp_head\.0\.", r"fc_norm."),
    (r"^mlp_head\.1\.", r"head."),
)
_IDLE = re.compile(r"^(decoder_)?blocks(_[av])?\.\d+\.norm[12]_[av]\.")
_DECODER = "decoder_embed.weight"
_HEAD = "mlp_head.1.weight"


class _CAVMAEFile(PublishedFormat):
    renames = _RENAMES

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return kernel_channels(state, "patch_embed_a.proj.weight") == 1 and "patch_embed_v.proj.weight" in state

    @override
    def names(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        own = state_dicts.count_blocks(state, _OWN)
        return {name: _shared_name(name, own) or self.rename(name) for name in state}

    def convert(self, state: Mapping[str, Tensor], bands: int) -> dict[str, Tensor]:
        """Rename the tensors of a state dict, leave out those without effect, and turn the others to time-major order.

        Args:
            state: weights under the published names.
            bands: number of patches of the sound in frequency.
        """
        converted = {ours: state[name] for name, ours in self.names(state).items() if not _IDLE.match(name)}
        for name, tensor in converted.items():
            if name.endswith("positions.pos_embed"):
                if ".image." not in name:
                    tensor = state_dicts.turn_positions(tensor, 0, bands)
                # There is no class token, whose position comes first here.
                converted[name] = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        kernel = converted["encoder.patch_embed.proj.weight"]
        converted["encoder.patch_embed.proj.weight"] = kernel.transpose(2, 3).contiguous()
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            if name in converted:
                values = converted[name].unflatten(0, tuple(kernel.shape[2:]))
                converted[name] = values.transpose(0, 1).flatten(0, 1)
        return converted


class CAVMAEPretrained(_CAVMAEFile):
    """Pretrained CAV-MAE, with or without its decoder."""

    name = "cav_mae"
    title = "CAV-MAE, pretrained"
    takes = (*PublishedFormat.takes, "decoder_num_heads")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return super().recognises(state) and _HEAD not in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, options)
        if _DECODER in file.state:
            sizes.update(state_dicts.decoder_sizes(file.state, options.decoder_num_heads))
        elif options.decoder_num_heads:
            sizes["decoder_num_heads"] = options.decoder_num_heads
        return ConvertedWeights(
            model={"_name": NAME, **sizes},
            state=self.convert(file.state, sizes["num_mel_bins"] // sizes["patch_size"][1]),
            target_length=sizes["input_length"],
            without_effect=_idle(file.state),
            initialised=() if _DECODER in file.state else ("decoder.",),
        )


class CAVMAEFineTuned(_CAVMAEFile):
    """Classifier fine-tuned from a CAV-MAE, of sounds and pictures."""

    name = "cav_mae_finetuned"
    title = "CAV-MAE, fine-tuned"
    takes = (*PublishedFormat.takes, "classes")

    @override
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return super().recognises(state) and _HEAD in state

    @override
    def read(self, file: PublishedFile, options: ConversionOptions) -> ConvertedWeights:
        sizes = _encoder_sizes(file.state, options)
        return ConvertedWeights(
            model={
                **classifier_section(NAME, sizes, len(file.state[_HEAD]), "avgtok"),
                "mask_ratio_time": 0.0,
                "mask_ratio_frequency": 0.0,
            },
            state=self.convert(file.state, sizes["num_mel_bins"] // sizes["patch_size"][1]),
            target_length=sizes["input_length"],
            without_effect=_idle(file.state),
        )


def load_image_weights(encoder: CAVMAEEncoder, state: Mapping[str, Tensor]) -> None:
    """Load the encoder of an image MAE into the branches of an encoder, each of which becomes that MAE.

    Its last blocks become the shared ones. The sum of the three colours' kernels treats a spectrogram as the kernel
    treats a grey image. The positions are the encoder's own.

    Raises:
        RuntimeError: a tensor is missing, has no place or has another size (PyTorch's message names it).
    """
    left_out = ("cls_token", "pos_embed", "mask_token", "decoder_", "head.", "fc_norm.")
    given = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    converted: dict[str, Tensor] = {}
    for prefix, branch in (("", encoder), ("image.", encoder.image), ("joint.", encoder.joint)):
        if branch is None:
            continue
        own = {f"{prefix}{name}": tensor for name, tensor in given.items()}
        known = branch.state_dict().keys()
        # The other branches have only norms of the shared blocks, and the joint one no embedding.
        converted |= {name: own[name] for name in own if not prefix or name.removeprefix(prefix) in known}
    kernel = "patch_embed.proj.weight"
    if kernel in converted:
        converted[kernel] = converted[kernel].sum(dim=1, keepdim=True).transpose(2, 3)
    if isinstance(encoder.norm, nn.Identity):  # in a classifier whose norm follows the pooling
        converted = {name: tensor for name, tensor in converted.items() if not name.startswith("norm.")}
    kept = {name: tensor for name, tensor in encoder.state_dict().items() if _KEPT.search(name)}
    encoder.load_state_dict({**kept, **converted})


_KEPT = re.compile(r"(^|\.)(positions\.pos_embed|modality_token)$")


def _shared_name(name: str, own: int) -> str | None:
    """Return this package's name of a parameter of a shared block, which follows the own blocks; None for others."""
    if (match := _SHARED.match(name)) is None:
        return None
    block, norm, modality = match.groups()
    branch = "" if norm is None else {"_a": "", "_v": "image.", None: "joint."}[modality]
    return f"encoder.{branch}blocks.{own + int(block)}.{norm or ''}{name[match.end() :]}"


def _idle(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: "a norm of a modality that the block never sees" for name in state if _IDLE.match(name)}


def _encoder_sizes(state: Mapping[str, Tensor], options: ConversionOptions) -> state_dicts.Sizes:
    """Read the fields of :class:`CAVMAEConfig` that describe the encoder."""
    patch_frequency, patch_time = state["patch_embed_a.proj.weight"].shape[2:]
    own, shared = (state_dicts.count_blocks(state, prefix) for prefix in (_OWN, "blocks_u."))
    hidden, width = state["blocks_u.0.mlp.fc1.weight"].shape
    bands = options.num_mel_bins or CAVMAEConfig.num_mel_bins
    image_patch = state["patch_embed_v.proj.weight"].shape[2]
    return {
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
        "depth": own + shared,
        "shared_depth": shared,
        "num_heads": state_dicts.count_heads(width, options.num_heads),
        "mlp_ratio": state_dicts.mlp_ratio(hidden, width),
        "input_length": state_dicts.count_steps(state["pos_embed_a"], 0, bands, patch_frequency) * patch_time,
        "num_mel_bins": bands,
        "image_patch_size": image_patch,
        "image_size": state_dicts.square_side(state["pos_embed_v"], prefix=0) * image_patch,
        "modalities": ("audio", "image"),
    }
