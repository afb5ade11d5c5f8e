"""The models as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from typing import Any, Optional, cast

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import nn

from amae_plugin.checkpoints import CLASSIFIER
from amae_plugin.errors import UserError
from amae_plugin.fairseq_shell.optim import set_overrides
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.models.ssast import SSAST, SSASTConfig


@dataclass
class _Compiled(FairseqDataclass):
    compile: bool = field(
        default=False, metadata={"help": "compile the transformer blocks at their first use (a minute or two)"}
    )


@dataclass
class AmaeAudioMAEConfig(AudioMAEConfig, _Compiled):
    """:class:`AudioMAEConfig` with what the trainer adds: input sizes from the task, and compilation."""

    _name: str = "amae_audio_mae"
    input_length: int = II("task.target_length")
    num_mel_bins: int = II("task.num_mel_bins")


@dataclass
class AmaeMAEASTConfig(MAEASTConfig, _Compiled):
    """:class:`MAEASTConfig` with what the trainer adds: the bands from the task, and compilation."""

    _name: str = "amae_mae_ast"
    num_mel_bins: int = II("task.num_mel_bins")


@dataclass
class AmaeSSASTConfig(SSASTConfig, _Compiled):
    """:class:`SSASTConfig` with what the trainer adds: input sizes from the task, and compilation."""

    _name: str = "amae_ssast"
    input_length: int = II("task.target_length")
    num_mel_bins: int = II("task.num_mel_bins")


class _Pretraining(PretrainingModel, BaseFairseqModel):
    """A pretraining model with fairseq's model interface; its state dict is the plain model's."""

    @classmethod
    def build_model(cls, cfg: Any, task: FairseqTask) -> "_Pretraining":
        """Build the model from a config whose interpolations are resolved.

        Raises:
            UserError: the settings make no model.
        """
        try:
            model = cls(cls.plain_config.from_settings(cfg))
        except ValueError as error:
            raise UserError(f"model: {error}") from None
        set_overrides(model)
        if cfg.compile:
            model.compile_blocks()
        return model


@register_model("amae_audio_mae", dataclass=AmaeAudioMAEConfig)
class AmaeAudioMAE(AudioMAE, _Pretraining):
    """Audio-MAE in fairseq."""

    plain_config = AudioMAEConfig


@register_model("amae_mae_ast", dataclass=AmaeMAEASTConfig)
class AmaeMAEAST(MAEAST, _Pretraining):
    """MAE-AST in fairseq."""

    plain_config = MAEASTConfig


@register_model("amae_ssast", dataclass=AmaeSSASTConfig)
class AmaeSSAST(SSAST, _Pretraining):
    """SSAST in fairseq."""

    plain_config = SSASTConfig


@dataclass
class AmaeClassifierConfig(ClassifierConfig, _Compiled):
    """:class:`ClassifierConfig` with what the trainer adds: initial weights, learning rates, and compilation."""

    _name: str = CLASSIFIER
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
        set_overrides(model, cfg.layer_decay, model.depth_of, len(model.encoder.blocks) + 1)
        if cfg.compile:
            model.compile_blocks()
        return model


def plain_module(model: nn.Module) -> PretrainingModel:
    """The pretraining model inside fairseq's wrappers for distributed training."""
    while not isinstance(model, PretrainingModel):
        model = cast(nn.Module, model.module)
    return model
