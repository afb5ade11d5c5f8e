"""Bases of the criterion and the registered models of every kind of task."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
from collections.abc import Mapping
from typing import Any, Dict, List, Type, Union

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.optim import set_overrides
from amae_plugin.models.settings import ModelConfig

Values = Dict[str, Any]
"""A batch of a task, or the log of a step."""


class SummedCriterion(FairseqCriterion):
    """A loss that is a sum, and ``sample_size``, the number of its summands.

    fairseq's division then gives the same gradient however a global batch is cut into devices and accumulation steps.
    """

    @staticmethod
    def log(losses: Mapping[str, Tensor], sample_size: Union[Tensor, int], sample: Values) -> Values:
        """Return the log of a batch; all its values can be summed.

        Args:
            losses: sums, under names that begin with ``loss``.
            sample_size: number of their summands.
            sample: batch of the task.
        """
        sizes = {"sample_size": sample_size, "nsentences": sample["nsentences"], "ntokens": sample["ntokens"]}
        return {**{name: loss.detach() for name, loss in losses.items()}, **sizes}

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Values]) -> None:
        """Log the means over all summands of all devices."""
        sample_size = sum(log["sample_size"] for log in logging_outputs)
        summands = torch.as_tensor(sample_size).clamp(min=1)
        for name in dict.fromkeys(name for log in logging_outputs for name in log if name.startswith("loss")):
            loss = sum(log.get(name, 0.0) for log in logging_outputs)
            metrics.log_scalar(name, loss / summands, sample_size, round=6)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: every logged value is a sum."""
        return True


class TrainedModel(BaseFairseqModel):
    """A plain model with fairseq's interface; its state dict is the plain model's.

    A registered model inherits from the plain model first and from this class second.

    Attributes:
        plain_config: config class of the plain model.
    """

    plain_config: Type[ModelConfig]

    @classmethod
    def build_model(cls, cfg: Any, task: FairseqTask) -> "TrainedModel":
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
