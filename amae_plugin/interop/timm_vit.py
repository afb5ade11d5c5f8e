"""Encoders and classifiers as timm's Vision Transformers: the same weights under timm's names, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from amae_plugin.checkpoints import Model
from amae_plugin.errors import UserError
from amae_plugin.models import official
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.encoder import Encoder
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.modules.patching import Size2d

WEIGHTS, HEAD, CONFIG = "model.safetensors", "head.safetensors", "config.json"
"""Names of the files."""

# Entry points of timm, of which every size is given anew.
_VIT = "vit_base_patch16_224"
_DEIT = "deit_base_distilled_patch16_224"
# Of a classifier's pooling and of none, timm's pooling and whether the norm comes after it.
_POOLINGS = {"mean": ("avg", True), "cls": ("token", False), "avgcls": ("token", False)}
_MEAN_OF_NORMALISED = ("avg", False)


@dataclass(frozen=True)
class TimmModel:
    """A model as timm builds it.

    Attributes:
        architecture: timm's entry point.
        arguments: of it.
        state: its weights.
        bands_first: whether the rows of its image are the bands, as in AST; else they are the frames.
        stride: rows and columns from patch to patch where they overlap, as timm's never do.
        head: weights of the ``Sequential(LayerNorm, Linear)`` that classifies the features of AST's forms; timm's
            models have no place for a norm after the pooling beside that before it.
    """

    architecture: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    bands_first: bool = False
    stride: tuple[int, int] | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)


def timm_model(model: Model, input_size: Size2d) -> TimmModel:
    """What timm needs to compute what a model computes: of a classifier its logits, else its encoder's features.

    Args:
        model: a classifier or a pretraining model.
        input_size: frames and bands of its input, for which the positions are made.

    Raises:
        UserError: timm has no such model.
    """
    pooling = model.config.pooling if isinstance(model, Classifier) else None
    vit = _AS_TIMM[type(model.encoder)](model.encoder, input_size, pooling)
    return _with_head(vit, model) if isinstance(model, Classifier) else vit


def write(vit: TimmModel, folder: Path, classes: tuple[str, ...] | None, log_mel: Mapping[str, Any]) -> list[Path]:
    """Write a model's weights and its ``config.json``, as ``timm.create_model("local-dir:...")`` reads them.

    Args:
        vit: the model.
        folder: where to, which exists.
        classes: of a classifier.
        log_mel: the task's settings of the front end: ``mean`` and ``std`` among them.

    Returns:
        The files.
    """
    from safetensors.torch import save_file

    arguments = dict(vit.arguments)
    config = {
        "architecture": vit.architecture,
        "num_classes": arguments["num_classes"],
        "num_features": arguments["embed_dim"],
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [1, *arguments["img_size"]],
            "fixed_input_size": True,
            "mean": [log_mel["mean"]],
            "std": [2 * log_mel["std"]],
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if vit.architecture == _DEIT else "head",
        },
        "log_mel": dict(log_mel),
    }
    if classes:
        config["label_names"] = list(classes)
    paths = [folder / CONFIG, folder / WEIGHTS]
    paths[0].write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in vit.state.items()}, paths[1], metadata={"format": "pt"})
    if vit.head:
        paths.append(folder / HEAD)
        save_file({name: value.contiguous() for name, value in vit.head.items()}, paths[2], metadata={"format": "pt"})
    return paths


def largest_difference(vit: TimmModel, folder: Path, model: Model, source: Tensor) -> float:
    """How far what timm computes with the written files is from what the model computes, relative to its size.

    Args:
        vit: what was written.
        folder: where it was written.
        model: in evaluation mode.
        source: (B, T, F) normalised log-mel.
    """
    import timm
    from safetensors.torch import load_file

    loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if vit.stride:
        loaded.patch_embed.img_size, loaded.patch_embed.proj.stride = None, vit.stride
    image = (source.transpose(1, 2) if vit.bands_first else source)[:, None]
    with torch.inference_mode():
        if isinstance(model, Classifier):
            actual, expected = loaded(image), model(source)["logits"]
            if vit.head:
                width, classes = vit.head["1.weight"].shape[::-1]
                head: Any = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
                head.load_state_dict(load_file(folder / HEAD))
                actual = head(actual)
        else:
            actual, expected = loaded.forward_features(image), model.extract_features(source)[0]
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


def _audio_mae(encoder: Encoder, input_size: Size2d, pooling: str | None) -> TimmModel:
    assert isinstance(encoder, AudioMAEEncoder)
    state = _weights(encoder)
    state["pos_embed"] = encoder.positions(encoder.grid(*input_size))
    return TimmModel(_VIT, _arguments(encoder, input_size, encoder.patch_size, pooling), state)


def _ssast(encoder: Encoder, input_size: Size2d, pooling: str | None) -> TimmModel:
    """Where both class tokens are read, a distilled DeiT, which reads their mean; else a ViT with a register token."""
    assert isinstance(encoder, SSASTEncoder)
    rows, columns = encoder.grid(*input_size)[::-1]
    state = _weights(encoder)
    state["pos_embed"] = encoder.positions((rows, columns)).detach()
    stride = encoder.patch_stride[::-1]
    patch = encoder.patch_size[::-1]
    overlap = stride != patch
    # timm counts patches that lie side by side: overlapping ones are as many in an image that is larger than the real.
    image = (rows * patch[0], columns * patch[1]) if overlap else input_size[::-1]
    arguments = _arguments(encoder, image, patch, pooling)
    architecture = _VIT
    if pooling in (None, "avgcls"):
        architecture = _DEIT
        arguments.update(global_pool="token", fc_norm=False)
    else:
        arguments["reg_tokens"] = 1
        state["reg_token"] = state.pop("dist_token")
    return TimmModel(architecture, arguments, state, bands_first=True, stride=stride if overlap else None)


def _mae_ast(encoder: Encoder, input_size: Size2d, pooling: str | None) -> TimmModel:
    raise UserError(
        "timm has no model that computes what MAE-AST does: its blocks have their norms after the residual sums, where "
        "timm's Vision Transformer has them before the branches; export it as ONNX (--format onnx)"
    )


_AS_TIMM: dict[type[Encoder], Callable[[Encoder, Size2d, Optional[str]], TimmModel]] = {
    AudioMAEEncoder: _audio_mae,
    SSASTEncoder: _ssast,
    MAEASTEncoder: _mae_ast,
}


def _weights(encoder: Encoder) -> dict[str, Tensor]:
    """An encoder's weights, which have timm's names but for the positions."""
    return {name: value for name, value in encoder.state_dict().items() if not name.startswith("positions.")}


def _arguments(encoder: Encoder, image: tuple[int, int], patch: tuple[int, int], pooling: str | None) -> dict[str, Any]:
    block: Any = encoder.blocks[0]
    hidden, width = block.mlp.fc1.weight.shape
    global_pool, fc_norm = _POOLINGS.get(pooling or "", _MEAN_OF_NORMALISED)
    return {
        "img_size": list(image),
        "patch_size": list(patch),
        "in_chans": 1,
        "num_classes": 0,
        "embed_dim": width,
        "depth": len(encoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": official.mlp_ratio(hidden, width),
        "global_pool": global_pool,
        "fc_norm": fc_norm,
    }


def _with_head(vit: TimmModel, model: Classifier) -> TimmModel:
    linear = {"weight": model.head.weight.detach(), "bias": model.head.bias.detach()}
    if isinstance(model.batch_norm, nn.BatchNorm1d):
        linear = _folded(model.batch_norm, linear)
    norm = model.fc_norm.state_dict()
    if model.config.pooling in ("avgtok", "avgcls"):
        first = {f"0.{part}": value for part, value in norm.items()}
        return replace(vit, head={**first, **{f"1.{part}": value for part, value in linear.items()}})
    state = {
        **vit.state,
        **{f"fc_norm.{part}": value for part, value in norm.items()},
        **{f"head.{part}": value for part, value in linear.items()},
    }
    return replace(vit, arguments={**vit.arguments, "num_classes": len(linear["bias"])}, state=state)


def _folded(norm: nn.BatchNorm1d, linear: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The linear layer that computes what a batch norm in evaluation and a linear layer after it compute."""
    assert norm.running_mean is not None and norm.running_var is not None
    weight = linear["weight"] * (norm.running_var + norm.eps).rsqrt()
    return {"weight": weight, "bias": linear["bias"] - weight @ norm.running_mean}
