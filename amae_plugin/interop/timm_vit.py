"""Encoders and classifiers as timm's Vision Transformers: the same weights under timm's names, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from safetensors.torch import load_file, save
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint, Model
from amae_plugin.data.log_mel import LogMel
from amae_plugin.errors import UserError
from amae_plugin.interop.formats import Format
from amae_plugin.models import state_dicts
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.encoder import Encoder
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.modules.patching import Size2d

_WEIGHTS, _HEAD, _CONFIG = "model.safetensors", "head.safetensors", "config.json"
# Entry points of timm, of which every size is given anew.
_VIT = "vit_base_patch16_224"
_DEIT = "deit_base_distilled_patch16_224"
# Of a classifier's pooling, timm's pooling and whether the norm comes after it; else the mean of normalised patches.
_POOLINGS = {"mean": ("avg", True), "cls": ("token", False), "avgcls": ("token", False)}
_MEAN_OF_NORMALISED = ("avg", False)


@dataclass(frozen=True)
class _Vit:
    """A model as timm builds it.

    Attributes:
        architecture: timm's entry point.
        arguments: of it.
        state: its weights.
        bands_first: whether the rows of its image are the bands, as in AST; else they are the frames.
        stride: rows and columns from patch to patch where they overlap, as timm's never do.
        head: weights of the ``Sequential(LayerNorm, Linear)`` that classifies the features of AST's forms: timm's
            models have no place for a norm after the pooling beside that before it.
    """

    architecture: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    bands_first: bool = False
    stride: tuple[int, int] | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)


class Timm(Format):
    """A Vision Transformer that ``timm.create_model("local-dir:...", pretrained=True)`` loads strictly."""

    name = "timm"
    packages = ("timm",)
    files = (_CONFIG, _WEIGHTS, _HEAD)

    def __init__(self, checkpoint: Checkpoint, model: Model):
        super().__init__(checkpoint, model)
        pooling = model.config.pooling if isinstance(model, Classifier) else None
        as_timm = _AS_TIMM.get(type(model.encoder), _unknown)
        vit = as_timm(model.encoder, self.input_size, pooling)
        self.vit = _with_head(vit, model) if isinstance(model, Classifier) else vit

    def write(self, folder: Path) -> None:
        """See :meth:`Format.write`."""
        (folder / _CONFIG).write_text(json.dumps(self._config(), indent=1) + "\n", encoding="utf-8")
        for name, weights in ((_WEIGHTS, self.vit.state), (_HEAD, self.vit.head)):
            if weights:
                contiguous = {part: value.contiguous() for part, value in weights.items()}
                (folder / name).write_bytes(save(contiguous, {"format": "pt"}))

    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        """See :meth:`Format.outputs`."""
        import timm

        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        if self.vit.stride:
            model.patch_embed.img_size, model.patch_embed.proj.stride = None, self.vit.stride
        image = (source.transpose(1, 2) if self.vit.bands_first else source)[:, None]
        if not isinstance(self.model, Classifier):
            return model.forward_features(image)
        if not self.vit.head:
            return model(image)
        head = self._head()
        head.load_state_dict(load_file(folder / _HEAD))
        return head(model(image))

    def loading(self, folder: str) -> str:
        """See :meth:`Format.loading`."""
        imports, lines = ["import timm"], []
        lines.append(f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()')
        if self.vit.stride:
            lines.append(f"model.patch_embed.img_size, model.patch_embed.proj.stride = None, {self.vit.stride}")
        image = "log_mel.transpose(1, 2)[:, None]" if self.vit.bands_first else "log_mel[:, None]"
        if not isinstance(self.model, Classifier):
            lines.append(f"features = model.forward_features({image})")
        elif not self.vit.head:
            lines.append(f"logits = model({image})")
        else:
            imports += ["import torch", "from safetensors.torch import load_file"]
            linear = self._head()[1]
            lines += [
                f"head = torch.nn.Sequential(torch.nn.LayerNorm({linear.in_features}), "
                f"torch.nn.Linear({linear.in_features}, {linear.out_features}))",
                f'head.load_state_dict(load_file("{folder}/{_HEAD}"))',
                f"logits = head(model({image}))",
            ]
        return "```python\n" + "\n".join([*imports, "", *lines]) + "\n```\n"

    def _head(self) -> nn.Sequential:
        classes, width = self.vit.head["1.weight"].shape
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def _config(self) -> dict[str, Any]:
        """What timm's own export writes, and how the input is made."""
        arguments, features = self.vit.arguments, LogMel.from_settings(self.checkpoint.input_settings)
        mean, std = (self.checkpoint.input_settings[name] for name in ("mean", "std"))
        config = {
            "architecture": self.vit.architecture,
            "num_classes": arguments["num_classes"],
            "num_features": arguments["embed_dim"],
            "global_pool": arguments["global_pool"],
            "model_args": dict(arguments),
            "pretrained_cfg": {
                "input_size": [1, *arguments["img_size"]],
                "fixed_input_size": True,
                "mean": [mean],
                "std": [2 * std],
                "first_conv": "patch_embed.proj",
                "classifier": ["head", "head_dist"] if self.vit.architecture == _DEIT else "head",
            },
            "log_mel": {**asdict(features), "mean": mean, "std": std},
        }
        if isinstance(self.model, Classifier):
            config["label_names"] = list(self.checkpoint.classes)
        return config


def _audio_mae(encoder: Encoder, input_size: Size2d, pooling: str | None) -> _Vit:
    assert isinstance(encoder, AudioMAEEncoder)
    state = _weights(encoder)
    state["pos_embed"] = encoder.positions(encoder.grid(*input_size))
    return _Vit(_VIT, _arguments(encoder, input_size, encoder.patch_size, pooling), state)


def _ssast(encoder: Encoder, input_size: Size2d, pooling: str | None) -> _Vit:
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
    return _Vit(architecture, arguments, state, bands_first=True, stride=stride if overlap else None)


def _unknown(encoder: Encoder, input_size: Size2d, pooling: str | None) -> _Vit:
    raise UserError(f"what timm calls the weights of {type(encoder).__name__} is not known; export it as ONNX")


def _mae_ast(encoder: Encoder, input_size: Size2d, pooling: str | None) -> _Vit:
    raise UserError(
        "timm has no model that computes what MAE-AST does: its blocks have their norms after the residual sums, where "
        "timm's Vision Transformer has them before the branches; export it as ONNX (--format onnx)"
    )


_AS_TIMM: dict[type[Encoder], Callable[[Encoder, Size2d, Optional[str]], _Vit]] = {
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
        "mlp_ratio": state_dicts.mlp_ratio(hidden, width),
        "global_pool": global_pool,
        "fc_norm": fc_norm,
    }


def _with_head(vit: _Vit, model: Classifier) -> _Vit:
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
