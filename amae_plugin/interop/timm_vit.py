"""Encoders and classifiers as timm's Vision Transformers: the same weights under timm's names, loaded strictly."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.errors import UserError
from amae_plugin.interop.formats import Format
from amae_plugin.models.base import Model
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.timm_vit import DEIT, TimmVit

_WEIGHTS, _HEAD, _CONFIG = "model.safetensors", "head.safetensors", "config.json"


class Timm(Format):
    """Vision Transformer that ``timm.create_model("local-dir:...", pretrained=True)`` loads strictly."""

    name = library = "timm"
    packages = ("timm",)
    files = (_CONFIG, _WEIGHTS, _HEAD)

    def __init__(self, checkpoint: Checkpoint, model: Model):
        super().__init__(checkpoint, model)
        pooling = model.config.pooling if isinstance(model, Classifier) else None
        as_timm = checkpoint.system.as_timm
        if as_timm is None:
            raise UserError(
                f"timm's names for the weights of {type(model.encoder).__name__} are unknown; export it as ONNX"
            )
        vit = as_timm(model.encoder, self.input_size, pooling)
        self.vit = _with_head(vit, model) if isinstance(model, Classifier) else vit

    @override
    def write(self, folder: Path) -> None:
        (folder / _CONFIG).write_text(json.dumps(self._config(), indent=1) + "\n", encoding="utf-8")
        for name, weights in ((_WEIGHTS, self.vit.state), (_HEAD, self.vit.head)):
            if weights:
                contiguous = {part: value.contiguous() for part, value in weights.items()}
                (folder / name).write_bytes(save(contiguous, {"format": "pt"}))

    @override
    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        import timm

        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        if self.vit.stride:
            model.patch_embed.img_size, model.patch_embed.proj.stride = None, self.vit.stride
        image = source[:, None]
        if not isinstance(self.model, Classifier):
            return model.forward_features(image)
        if not self.vit.head:
            return model(image)
        head = self._head()
        head.load_state_dict(load_file(folder / _HEAD))
        return head(model(image))

    @override
    def loading(self, folder: str) -> str:
        imports, lines = ["import timm"], [f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()']
        if self.vit.stride:
            lines.append(f"model.patch_embed.img_size, model.patch_embed.proj.stride = None, {self.vit.stride}")
        if not isinstance(self.model, Classifier):
            lines.append("features = model.forward_features(log_mel[:, None])")
        elif not self.vit.head:
            lines.append("logits = model(log_mel[:, None])")
        else:
            imports += ["import torch", "from safetensors.torch import load_file"]
            linear = self._head()[1]
            lines += [
                f"head = torch.nn.Sequential(torch.nn.LayerNorm({linear.in_features}), "
                f"torch.nn.Linear({linear.in_features}, {linear.out_features}))",
                f'head.load_state_dict(load_file("{folder}/{_HEAD}"))',
                "logits = head(model(log_mel[:, None]))",
            ]
        return "```python\n" + "\n".join([*imports, "", *lines]) + "\n```\n"

    def _head(self) -> nn.Sequential:
        classes, width = self.vit.head["1.weight"].shape
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def _config(self) -> dict[str, object]:
        """Return the entries of timm's own export, and the description of the input."""
        arguments, model_input = self.vit.arguments, self.checkpoint.input
        shift, scale = model_input.shift_and_scale
        config = {
            "architecture": self.vit.architecture,
            "num_classes": arguments["num_classes"],
            "num_features": arguments["embed_dim"],
            "global_pool": arguments["global_pool"],
            "model_args": dict(arguments),
            "pretrained_cfg": {
                "input_size": [1, *arguments["img_size"]],
                "fixed_input_size": True,
                "mean": [shift],
                "std": [scale],
                "first_conv": "patch_embed.proj",
                "classifier": ["head", "head_dist"] if self.vit.architecture == DEIT else "head",
            },
            "log_mel": {**asdict(model_input.front_end), **model_input.settings()},
        }
        if isinstance(self.model, Classifier):
            config["label_names"] = list(self.checkpoint.classes)
        return config


def _with_head(vit: TimmVit, model: Classifier) -> TimmVit:
    head = model.head
    if isinstance(model.batch_norm, nn.BatchNorm1d):
        head = _folded(model.batch_norm, head)
    if model.config.pooling in ("avgtok", "avgcls"):
        return replace(vit, head=nn.Sequential(model.fc_norm, head).state_dict())
    weights = nn.ModuleDict({"fc_norm": model.fc_norm, "head": head}).state_dict()
    arguments = {**vit.arguments, "num_classes": head.out_features}
    return replace(vit, arguments=arguments, state={**vit.state, **weights})


@torch.no_grad()
def _folded(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """Fold a batch norm in evaluation mode into the linear layer that follows it."""
    assert norm.running_mean is not None and norm.running_var is not None
    folded = copy.deepcopy(linear)
    folded.weight.mul_((norm.running_var + norm.eps).rsqrt())
    folded.bias.sub_(folded.weight @ norm.running_mean)
    return folded
