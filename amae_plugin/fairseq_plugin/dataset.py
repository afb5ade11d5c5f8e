"""The data set and its iterator as fairseq knows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset
from fairseq.data.iterators import CountingIterator, EpochBatchIterator

from amae_plugin.cluster import signals
from amae_plugin.data.dataset import AudioDataset


class FairseqAudioDataset(FairseqDataset):
    """An :class:`AudioDataset` with fairseq's data set interface.

    Args:
        dataset: the clips.
        shuffle: a new order in each epoch; fairseq seeds NumPy by seed and epoch before it asks for the order.
    """

    def __init__(self, dataset: AudioDataset, shuffle: bool):
        self.dataset = dataset
        self.shuffle = shuffle
        self._frames = dataset.frames

    @property
    def sizes(self) -> np.ndarray:
        """Frames of all items, which may be others in each epoch."""
        return self._frames

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """A batch in fairseq's form; empty if no clip of it could be decoded, which fairseq knows to skip."""
        batch = self.dataset.collate(samples)
        if not batch:
            return {}
        labels = {"target": batch["target"]} if "target" in batch else {}
        return {
            **labels,
            "id": batch["id"],
            "nsentences": len(batch["id"]),
            "ntokens": int(batch["lengths"].sum()),
            "net_input": {name: batch[name] for name in ("source", "seed", "padding_mask")},
        }

    def num_tokens(self, index: int) -> int:
        """Frames of a clip in a batch."""
        return int(self._frames[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Frames of several clips in a batch."""
        return self.sizes[indices]

    def size(self, index: int) -> int:
        """Frames of a clip in a batch."""
        return int(self._frames[index])

    @property
    def by_length(self) -> bool:
        """Whether batches are made of clips of about the same length."""
        return self.dataset.batch_length != "fixed"

    def ordered_indices(self) -> np.ndarray:
        """Order of the clips in this epoch; the longest first where batches are made by length."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return order[np.argsort(-self._frames[order], kind="stable")] if self.by_length else order

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`AudioDataset.set_epoch`."""
        self.dataset.set_epoch(epoch)
        self._frames = self.dataset.frames


class Stopwatch:
    """Adds up the seconds that a training loop spends waiting for batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def watch(iterator: EpochBatchIterator, stopwatch: Stopwatch | None) -> None:
    """Have all coming epochs of an iterator outlive its workers, timed if there is a stopwatch; once is enough."""
    make = iterator._get_iterator_for_epoch
    if not isinstance(make, _Watched):
        iterator._get_iterator_for_epoch = _Watched(make, stopwatch)


class _Watched:
    """An iterator's ``_get_iterator_for_epoch`` that returns the same batches, watched."""

    def __init__(self, make: Callable[..., CountingIterator | None], stopwatch: Stopwatch | None):
        self.make = make
        self.stopwatch = stopwatch

    def __call__(self, *args: Any, **kwargs: Any) -> CountingIterator | None:
        batches = self.make(*args, **kwargs)
        if batches is None:
            return None

        def rest(position: int) -> CountingIterator | None:
            return self.make(*args, **{**kwargs, "offset": position})

        return CountingIterator(self._watch(batches, rest), start=batches.n, total=batches.total)

    def _watch(self, batches: CountingIterator | None, rest: Callable[[int], CountingIterator | None]) -> Iterator[Any]:
        restarted = False
        while batches is not None and batches.has_next():
            start = time.perf_counter()
            try:
                batch = next(batches)
            except (RuntimeError, EOFError, OSError):
                # SLURM sends the SIGTERM before a preemption to all processes of a job, and the workers end at it,
                # some of them while they hand over a batch, though this process has an update to finish: others start
                # where they stopped.
                if restarted or signals.first_received() is None:
                    raise
                restarted, batches = True, rest(batches.n)
                continue
            if self.stopwatch is not None:
                self.stopwatch.seconds += time.perf_counter() - start
            yield batch
