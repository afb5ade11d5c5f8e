"""The models as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from typing import Optional, cast

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


@dataclass
class AmaeAudioMAEConfig(AudioMAEConfig, FairseqDataclass):
    """:class:`AudioMAEConfig` with what the trainer adds: input sizes from the task, and compilation."""

    _name: str = "amae_audio_mae"
    input_length: int = II("task.target_length")
    num_mel_bins: int = II("task.num_mel_bins")
    compile: bool = field(
        default=False, metadata={"help": "compile the transformer blocks at their first use (a minute or two)"}
    )


@register_model("amae_audio_mae", dataclass=AmaeAudioMAEConfig)
class AmaeAudioMAE(AudioMAE, BaseFairseqModel):
    """Audio-MAE with fairseq's model interface; its state dict is the plain model's."""

    @classmethod
    def build_model(cls, cfg: AmaeAudioMAEConfig, task: FairseqTask) -> "AmaeAudioMAE":
        """Build the model from a config whose interpolations are resolved."""
        model = cls(AudioMAEConfig.from_settings(cfg))
        set_overrides(model)
        if cfg.compile:
            model.compile_blocks()
        return model


@dataclass
class AmaeClassifierConfig(ClassifierConfig, FairseqDataclass):
    """:class:`ClassifierConfig` with what the trainer adds: initial weights, learning rates, and compilation."""

    _name: str = CLASSIFIER
    pretrained: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint of this plugin whose encoder is taken; null trains model.encoder from scratch"},
    )
    layer_decay: float = field(
        default=0.75, metadata={"help": "learning rate of a layer over that of the one above it"}
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the transformer blocks at their first use (a minute or two)"}
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


def plain_module(model: nn.Module) -> AudioMAE:
    """The model inside fairseq's wrappers for distributed training."""
    while not isinstance(model, AudioMAE):
        model = cast(nn.Module, model.module)
    return model
