"""The models as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Optional, Type, cast

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.optim import set_overrides
from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.models.settings import PretrainingConfig
from amae_plugin.models.system import System

# What a model takes from the task, where its config has a field of that name.
_OF_THE_TASK = {"input_length": II("task.target_length"), "num_mel_bins": II("task.num_mel_bins")}


class _Pretraining(PretrainingModel, BaseFairseqModel):
    """A pretraining model with fairseq's model interface; its state dict is the plain model's."""

    config_class: Type[PretrainingConfig]

    @classmethod
    def build_model(cls, cfg: Any, task: FairseqTask) -> "_Pretraining":
        """Build the model from a config whose interpolations are resolved.

        Raises:
            UserError: the settings make no model.
        """
        try:
            model = cls(cls.config_class.from_settings(cfg))
        except ValueError as error:
            raise UserError(f"model: {error}") from None
        set_overrides(model)
        if cfg.compile:
            model.compile_blocks()
        return model


def _register(name: str, system: System) -> None:
    """Register a system's pretraining model, with its config and what the trainer adds to it as options."""
    known = {option.name for option in fields(system.config)}
    given = {"_name": name, **{option: value for option, value in _OF_THE_TASK.items() if option in known}}
    config = make_dataclass(
        f"{system.config.__name__}OfRecipe",
        [(option, str if option == "_name" else int, value) for option, value in given.items()],
        bases=(system.config, FairseqDataclass),
    )
    plain = cast(type, system.model_class)
    model = type(
        f"Amae{plain.__name__}", (plain, _Pretraining), {"config_class": system.config, "__doc__": plain.__doc__}
    )
    register_model(name, dataclass=config)(model)


for _name, _system in SYSTEMS.items():
    _register(_name, _system)


@dataclass
class AmaeClassifierConfig(ClassifierConfig, FairseqDataclass):
    """:class:`ClassifierConfig` with what the trainer adds: initial weights, learning rates, and compilation."""

    _name: str = "amae_classifier"
    pretrained: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint of this plugin whose encoder is taken; null trains model.encoder from scratch"},
    )
    imagenet: Optional[str] = field(
        default=None,
        metadata={"help": "file of timm's weights of a ViT or DeiT, from which an amae_ssast encoder starts"},
    )
    layer_decay: float = field(
        default=0.75, metadata={"help": "learning rate of a layer over that of the one above it"}
    )


@register_model("amae_classifier", dataclass=AmaeClassifierConfig)
class AmaeClassifier(Classifier, BaseFairseqModel):
    """A classifier with fairseq's model interface; its state dict is the plain model's."""

    @classmethod
    def build_model(cls, cfg: AmaeClassifierConfig, task: FairseqTask) -> "AmaeClassifier":
        """Build the model from a config whose interpolations are resolved; the task loads pretrained weights."""
        model = cls(ClassifierConfig.from_settings(cfg))
        if not 0 < cfg.layer_decay <= 1:
            raise UserError(f"model.layer_decay={cfg.layer_decay}: must be above 0 and at most 1")
        set_overrides(model, cfg.layer_decay, model.layer_index, len(model.encoder.blocks) + 1)
        if cfg.compile:
            model.compile_blocks()
        return model


def plain_module(model: nn.Module) -> PretrainingModel:
    """The pretraining model inside fairseq's wrappers for distributed training."""
    while not isinstance(model, PretrainingModel):
        model = cast(nn.Module, model.module)
    return model
