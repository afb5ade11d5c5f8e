"""The objectives as fairseq knows them."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple, Union

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.models import plain_module
from amae_plugin.models.base import summed_losses


class SummedCriterion(FairseqCriterion):
    """Base of the criterions: a loss that is a sum, and ``sample_size``, the number of its summands.

    fairseq's division then gives the same gradient however a global batch is cut into devices and accumulation steps.
    """

    @staticmethod
    def log_of(losses: Mapping[str, Tensor], sample_size: Union[Tensor, int], sample: Dict[str, Any]) -> Dict[str, Any]:
        """What is logged of a batch of the task; every value can be summed.

        Args:
            losses: sums, under names that begin with ``loss``.
            sample_size: the number of their summands.
            sample: the batch.
        """
        return {
            **{name: loss.detach() for name, loss in losses.items()},
            "sample_size": sample_size,
            "nsentences": sample["nsentences"],
            "ntokens": sample["ntokens"],
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Log the means over all summands of all devices."""
        sample_size = sum(log["sample_size"] for log in logging_outputs)
        summands = torch.as_tensor(sample_size).clamp(min=1)
        for name in dict.fromkeys(name for log in logging_outputs for name in log if name.startswith("loss")):
            loss = sum(log.get(name, 0.0) for log in logging_outputs)
            metrics.log_scalar(name, loss / summands, sample_size, round=6)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every logged value is a sum."""
        return True


@dataclass
class AmaeReconstructionConfig(FairseqDataclass):
    """What :class:`AmaeReconstruction` takes from the task."""

    score_padding: bool = II("task.score_padding")


@register_criterion("amae_reconstruction", dataclass=AmaeReconstructionConfig)
class AmaeReconstruction(SummedCriterion):
    """The objectives of a pretraining model, summed over hidden tokens and weighted as the model says.

    Audio-MAE's is the reconstruction alone; MAE-AST and SSAST have a discriminative one beside it. Each is logged by
    itself as well, as ``loss_reconstruction`` and ``loss_info_nce``, not weighted.
    """

    def __init__(self, task: FairseqTask, score_padding: bool):
        super().__init__(task)
        self.score_padding = score_padding

    def forward(
        self, model: nn.Module, sample: Dict[str, Any], reduce: bool = True
    ) -> Tuple[Tensor, Tensor, Dict[str, Any]]:
        """Loss (summed over scored tokens), their number, and what to log, for a batch of the task."""
        output = model(**sample["net_input"])
        plain = plain_module(model)
        scored = output["mask"]
        if not self.score_padding:
            scored = scored & ~plain.encoder.patch_padding(sample["net_input"]["padding_mask"])
        sums = summed_losses(plain, output, scored)
        losses = {"loss": sums.pop("loss"), **{f"loss_{name}": value for name, value in sums.items()}}
        sample_size = scored.sum()
        return losses["loss"], sample_size, self.log_of(losses, sample_size, sample)


@dataclass
class AmaeClassificationConfig(FairseqDataclass):
    """Options of :class:`AmaeClassification`."""

    loss: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy (softmax), or bce (sigmoid; for several labels a clip, or with mixup)"},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the target spread over all classes, in training only"}
    )


@register_criterion("amae_classification", dataclass=AmaeClassificationConfig)
class AmaeClassification(SummedCriterion):
    """Cross-entropy or binary cross-entropy against soft targets.

    The sum is over clips (of the mean over classes for ``bce``). In validation the log also holds the scores of every
    clip, which cannot be summed: the task takes them out and measures all together.
    """

    def __init__(self, task: FairseqTask, loss: str, label_smoothing: float):
        super().__init__(task)
        if loss not in LOSSES:
            raise UserError(f"criterion.loss={loss}: must be one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"criterion.label_smoothing={label_smoothing}: must be at least 0 and below 1")
        self.clip_losses = LOSSES[loss]
        self.label_smoothing = label_smoothing

    def forward(
        self, model: nn.Module, sample: Dict[str, Any], reduce: bool = True
    ) -> Tuple[Tensor, int, Dict[str, Any]]:
        """Loss (summed over clips), their number, and what to log, for a batch of the task."""
        logits, target = model(**sample["net_input"])["logits"], sample["target"]
        smoothed = target
        if self.training and self.label_smoothing:
            smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / target.shape[1]
        loss = self.clip_losses(logits.float(), smoothed).sum()
        log = self.log_of({"loss": loss}, len(target), sample)
        if not self.training:
            log["id"] = sample["id"].cpu().numpy()
            log["scores"] = logits.float().cpu().numpy()
            log["target"] = target.to(torch.uint8).cpu().numpy()
        return loss, len(target), log


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(B, C) logits and probabilities to (B,)."""
    return F.cross_entropy(logits, target, reduction="none")


def _binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(B, C) logits and probabilities to (B,), the mean over classes."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


LOSSES: Dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "bce": _binary_cross_entropy,
}
