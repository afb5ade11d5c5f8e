"""Published SSAST and AST checkpoints (Gong et al. 2022, 2021), and the image models that they begin from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from amae_plugin.models.published import Kind, Options, PublishedFile, Reading, channels
from amae_plugin.models.ssast import SSASTConfig, interop
from amae_plugin.models.ssast.encoder import SSASTEncoder

_NAME = "amae_ssast"
_KERNEL = "v.patch_embed.proj.weight"
_POOLING = "avgcls"  # of AST


class _SSASTNames(Kind):
    def rename(self, name: str) -> str:
        """See :meth:`Kind.rename`."""
        return interop.rename(name)


class SSASTPretrained(_SSASTNames):
    """SSAST's pretraining."""

    name = "ssast"
    title = "SSAST, pretrained"
    takes = ("num_heads", "target_length")

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`."""
        return channels(state, _KERNEL) == 1 and "mlp_head.1.weight" not in state

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        sizes = interop.sizes(file.state, options.num_heads)
        return Reading(
            model={"_name": _NAME, **sizes},
            state=interop.convert(file.state, SSASTConfig(**sizes)),
            target_length=sizes["input_length"],
            without_effect=_unused(file.state),
        )


class ASTFineTuned(_SSASTNames):
    """An AST, or an SSAST fine-tuned to classify, which is one."""

    name = "ast"
    title = "AST, or SSAST fine-tuned"
    takes = (*Kind.takes, "patch_stride", "pooling", "classes")

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`."""
        return channels(state, _KERNEL) == 1 and "mlp_head.1.weight" in state

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        bands = options.num_mel_bins or SSASTConfig.num_mel_bins
        sizes = interop.finetuned_sizes(
            file.state, bands, options.num_heads, options.target_length, options.patch_stride
        )
        notes = []
        if not (options.target_length and options.patch_stride):
            stride = " x ".join(map(str, sizes["patch_stride"]))
            notes.append(
                f"taken to be {sizes['input_length']} frames in patches that start {stride} apart, as the number of "
                "positions fits (--target-length, --patch-stride)"
            )
        if not options.pooling:
            notes.append(
                "the weights do not tell what the head reads: taken to be the mean of the class tokens, as in AST "
                "(--pooling avgtok: the mean of the patch tokens, as SSAST may be fine-tuned)"
            )
        return Reading(
            model={
                "_name": "amae_classifier",
                "encoder": {"_name": _NAME, **sizes},
                "num_classes": len(file.state["mlp_head.1.weight"]),
                "pooling": options.pooling or _POOLING,
            },
            state=interop.convert(file.state, SSASTConfig(**sizes)),
            target_length=sizes["input_length"],
            without_effect=_unused(file.state),
            notes=tuple(notes),
        )


class ImageNetViT(Kind):
    """A ViT or a DeiT of timm as the beginning of an SSAST."""

    name = "image_vit"
    title = "ViT or DeiT of images, as the beginning of an SSAST"

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """See :meth:`Kind.recognises`; see also :class:`ImageMAE`, which is asked first."""
        return channels(state) == 3

    def read(self, file: PublishedFile, options: Options) -> Reading:
        """See :meth:`Kind.read`."""
        sizes = interop.image_sizes(file.state, options.num_heads)
        sizes["input_length"] = options.target_length or SSASTConfig.input_length
        sizes["num_mel_bins"] = options.num_mel_bins or SSASTConfig.num_mel_bins
        state = interop.convert_imagenet(file.state, SSASTEncoder(SSASTConfig(**sizes)))
        heads = {name: "it classifies images" for name in file.state if interop.IMAGENET_HEADS.match(name)}
        return Reading(
            model={"_name": _NAME, **sizes},
            state={self.rename(name): tensor for name, tensor in state.items()},
            target_length=sizes["input_length"],
            without_effect=heads,
            fresh=("encoder.dist_token", "mask_token", "reconstruction_head.", "classification_head."),
            notes=("the colours of the patch kernel were summed and its positions fitted to the spectrogram's grid",),
        )

    def rename(self, name: str) -> str:
        """See :meth:`Kind.rename`."""
        return f"encoder.{name}"


def _unused(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: "DeiT's head for images, which nothing reads" for name in state if interop.UNUSED.match(name)}
