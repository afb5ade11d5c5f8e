"""The objectives as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import Tensor, nn

from amae_plugin.fairseq_shell.models import plain_module
from amae_plugin.models.audio_mae import patch_errors


@dataclass
class AmaeReconstructionConfig(FairseqDataclass):
    """What :class:`AmaeReconstruction` takes from the task."""

    score_padding: bool = II("task.score_padding")


@register_criterion("amae_reconstruction", dataclass=AmaeReconstructionConfig)
class AmaeReconstruction(FairseqCriterion):
    """Mean squared error of the hidden patches.

    The loss is a sum over patches and ``sample_size`` their number, so that fairseq's division gives the same gradient
    however a global batch is cut into devices and accumulation steps.
    """

    def __init__(self, task: FairseqTask, score_padding: bool):
        super().__init__(task)
        self.score_padding = score_padding

    def forward(
        self, model: nn.Module, sample: Dict[str, Any], reduce: bool = True
    ) -> Tuple[Tensor, Tensor, Dict[str, Any]]:
        """Loss (summed over scored patches), their number, and what to log, for a batch of the task."""
        output = model(**sample["net_input"])
        scored = output["mask"]
        if not self.score_padding:
            scored = scored & ~plain_module(model).patch_padding(sample["padding_mask"])
        loss = (patch_errors(output) * scored).sum()
        sample_size = scored.sum()
        log = {
            "loss": loss.detach(),
            "sample_size": sample_size,
            "nsentences": sample["nsentences"],
            "ntokens": sample["ntokens"],
        }
        return loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Log the mean over all scored patches of all devices."""
        loss = sum(log["loss"] for log in logging_outputs)
        sample_size = sum(log["sample_size"] for log in logging_outputs)
        metrics.log_scalar("loss", loss / torch.as_tensor(sample_size).clamp(min=1), sample_size, round=6)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every logged value is a sum."""
        return True
