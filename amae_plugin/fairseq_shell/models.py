"""The models as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass, field
from typing import cast

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import nn

from amae_plugin.fairseq_shell.optim import exempt_from_decay
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig


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
        exempt_from_decay(model)
        if cfg.compile:
            model.compile_blocks()
        return model


def plain_module(model: nn.Module) -> AudioMAE:
    """The model inside fairseq's wrappers for distributed training."""
    while not isinstance(model, AudioMAE):
        model = cast(nn.Module, model.module)
    return model
