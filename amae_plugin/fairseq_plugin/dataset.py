"""The data set and its batches as fairseq knows them."""

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset
from fairseq.data.iterators import CountingIterator
from fairseq.logging.meters import StopwatchMeter
from torch.utils.data import get_worker_info

from amae_plugin.data.dataset import AudioDataset, Item


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
            _end_with_parent_only()
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: Sequence[Item | None]) -> dict[str, Any]:
        """Make a batch in fairseq's form; empty, which fairseq skips, if no clip of it could be decoded."""
        batch: dict[str, Any] = dict(self.dataset.collate(samples))
        if batch:
            batch["net_input"] = {name: batch.pop(name) for name in ("source", "seed", "padding_mask")}
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


class TimedBatches(CountingIterator):
    """The batches of an epoch, with a stopwatch that runs while training waits for one."""

    def __init__(self, batches: CountingIterator, stopwatch: StopwatchMeter):
        super().__init__(batches, total=batches.total)
        self.stopwatch = stopwatch

    def __next__(self) -> dict[str, Any]:
        self.stopwatch.start()
        batch = super().__next__()
        self.stopwatch.stop()
        return batch


def _end_with_parent_only() -> None:
    """Have this worker end at a SIGTERM of its parent, and at nobody else's.

    SLURM sends the SIGTERM before a preemption to all processes of a job, and the training process has an update to
    finish. A worker that ignored the signal altogether would be waited for in vain at the end of a run.
    """
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}):
        threading.Thread(target=_await_parents_signal, daemon=True).start()


def _await_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
