"""Data set, criterion and registered models as fairseq knows them: the bases of every kind of task."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Dict, List, Type, TypeVar, Union, cast

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import FairseqDataset
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.hydra import in_words
from amae_plugin.fairseq_plugin.optim import set_overrides
from amae_plugin.processes import end_when_a_batch_is_lost

Values = Dict[str, Any]
"""A batch of a task, or the log of a step."""
Kind = TypeVar("Kind", bound=nn.Module)
FINE_TUNED = (
    "model.w2v_path is the checkpoint of a {kind}, which is fine-tuned already: give the pretraining checkpoint that "
    "it began from (to train the same model on, give it as checkpoint.finetune_from_model instead)"
)
"""Message for a fine-tuned model in place of a pretrained one."""


class FairseqAudioDataset(FairseqDataset):
    """An :class:`AudioDataset` with fairseq's data set interface.

    In training, the order of the clips is new in each epoch: fairseq seeds NumPy by seed and epoch before it asks for
    it.

    Attributes:
        dataset: the clips.
        sizes: (N,) int64, frames of each item of this epoch in a batch.
    """

    def __init__(self, dataset: AudioDataset):
        self.dataset = dataset
        self.sizes = dataset.frames

    def __getitem__(self, index: int) -> Item | None:
        if get_worker_info() is not None:
            _prepare_worker()
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: Sequence[Item | None]) -> Values:
        """Make a batch in fairseq's form; empty, which fairseq skips, if no clip of it could be decoded."""
        batch: Values = dict(self.dataset.collate(samples))
        if batch:
            inputs = ("source", "seed", "padding_mask", "image")
            batch["net_input"] = {name: batch.pop(name) for name in inputs if name in batch}
            if not batch["net_input"]["padding_mask"].any():  # which a GPU would have to be asked
                batch["net_input"]["padding_mask"] = None
            batch["nsentences"] = len(batch["id"])
            batch["ntokens"] = int(batch.pop("lengths").sum())
        return batch

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames of several clips in a batch."""
        return self.sizes[indices]

    @property
    def by_length(self) -> bool:
        """Whether batches are made of clips of about the same length."""
        return self.dataset.batch_length != "fixed"

    def ordered_indices(self) -> np.ndarray:
        """Order the clips of this epoch; the longest come first where batches are made by length."""
        order = np.random.permutation(len(self)) if self.dataset.train else np.arange(len(self))
        return order[np.argsort(-self.sizes[order], kind="stable")] if self.by_length else order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's clips, crops and augmentations."""
        self.dataset.set_epoch(epoch)
        self.sizes = self.dataset.frames


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
        kind: noun for a downstream model in messages.
    """

    plain_config: Type[Any]
    kind: str

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

    def remove_pretraining_modules(self) -> None:
        """Refuse to be the pretrained encoder of a speech recipe, which only a pretraining model is.

        Raises:
            UserError: always.
        """
        with in_words():
            raise UserError(FINE_TUNED.format(kind=self.kind))


def plain_module(model: nn.Module, kind: Type[Kind]) -> Kind:
    """Return the model of that kind inside fairseq's wrappers for distributed training."""
    while not isinstance(model, kind):
        model = cast(nn.Module, model.module)
    return model


@cache
def _prepare_worker() -> None:
    """Have this worker end at a SIGTERM of its parent, at nobody else's, and at no interrupt; or if it loses a batch.

    SLURM sends the SIGTERM before a preemption to all processes of a job, a terminal its interrupt, and the training
    process has an update to finish. A worker that ignored SIGTERM altogether would be waited for in vain at the end of
    a run.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    end_when_a_batch_is_lost()
    threading.Thread(target=_await_parents_signal, daemon=True).start()


def _await_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
