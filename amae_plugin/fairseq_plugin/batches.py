"""Batches of an epoch: their order, the place in it that a checkpoint keeps, and stand-ins for empty batches.

fairseq keeps the place as a number of batches of one process, which means other clips with another batch size or number
of devices. Its own stand-ins for empty batches lose the size of an update's other batches, and count in validation.
"""

# No `from __future__ import annotations`: the other modules of this room have none either, for fairseq's sake.
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Dict, Optional

import numpy as np
from fairseq.data.iterators import CountingIterator, EpochBatchIterator
from fairseq.logging.meters import StopwatchMeter

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.bases import FairseqAudioDataset, Values
from amae_plugin.processes import losing_workers

logger = logging.getLogger(__name__)

STAND_IN = "stand_in"
"""Key of a batch that takes an empty batch's place, and counts nowhere."""


@contextmanager
def _workers_may_start() -> Iterator[None]:
    """Hold SIGTERM back, here and in workers that start meanwhile: those heed only their parent's once they load."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class LoadedBatches(CountingIterator):
    """Batches as they are loaded, with stand-ins for empty ones.

    Args:
        batches: fairseq's iterator.
        stand_in: function that returns the stand-in.
        stopwatch: stopwatch that runs while training waits for a batch.
        ahead: batches to count as passed that there are not.
    """

    total: int

    def __init__(
        self, batches: CountingIterator, stand_in: Callable[[], Values], stopwatch: StopwatchMeter, ahead: int
    ):
        super().__init__(batches, start=batches.n + ahead, total=batches.total + ahead)
        self.stand_in = stand_in
        self.stopwatch = stopwatch

    def __next__(self) -> Values:
        self.stopwatch.start()
        with _workers_may_start(), losing_workers():
            batch = super().__next__()
        self.stopwatch.stop()
        return batch or {**self.stand_in(), STAND_IN: True}

    def take(self, n: int) -> "LoadedBatches":
        """Stop after *n* batches of the epoch; fairseq would count those before a resumption twice."""
        self.total = min(self.total, n)
        return self


class EpochBatches(EpochBatchIterator):
    """fairseq's batches of an epoch, of which each process loads its share.

    Batches of clips of one length are shuffled, since they come in the order of the length. Otherwise they stay in the
    order that the data set gives, so an update's clips are a run of it, the same for every batch size, number of
    devices and number of accumulation steps that make up its global batch.

    Args:
        dataset: clips.
        make_batches: function from the data set and an epoch to the batches of all processes.
        stopwatch: stopwatch of the waiting time.
        update_freq: batches of each process in an update, by epoch; the last one stays.
        options: options of fairseq's class.
    """

    dataset: FairseqAudioDataset
    _frozen_batches: Optional[Sequence[np.ndarray]]

    def __init__(
        self,
        dataset: FairseqAudioDataset,
        make_batches: Callable[[FairseqAudioDataset, int], Sequence[np.ndarray]],
        stopwatch: StopwatchMeter,
        update_freq: Sequence[int],
        **options: Any,
    ):
        super().__init__(dataset, dataset.collater, make_batches, disable_shuffling=not dataset.by_length, **options)
        self.stopwatch = stopwatch
        self.update_freq = update_freq
        self._ahead = 0  # batches by which fairseq counts on to the next update, from a place between two of them
        self._left_out = 0  # clips of this epoch that its batches lack, since they were seen before a resumption
        self._stand_in: Optional[Values] = None

    @property
    def first_batch(self) -> Values:
        """The stand-in for empty batches: a batch of one clip, the first that can be decoded.

        Raises:
            UserError: there is none.
        """
        if self._stand_in is None:
            clips = (clip for batch in self.frozen_batches for clip in batch)
            self._stand_in = next(filter(None, (self.collate_fn([self.dataset[clip]]) for clip in clips)), None)
        if self._stand_in is None:
            raise UserError(f"{self.dataset.dataset.manifest.path}: not one of its clips can be decoded")
        return self._stand_in

    @property
    def iterations_in_epoch(self) -> int:
        """Batches of this epoch that this process has passed."""
        return super().iterations_in_epoch - self._ahead

    def state_dict(self) -> Dict[str, Any]:
        """Add the place in clips and batches of all processes, and what it is a place in."""
        state = super().state_dict()
        batches, manifest = state["iterations_in_epoch"] * self.num_shards, self.dataset.dataset.manifest
        place = {"batches": batches, "of_batches": len(self.frozen_batches), "shards": self.num_shards}
        if self.disable_shuffling:
            place["clips"] = self._left_out + sum(map(len, self.frozen_batches[:batches])) if batches else 0
        return {**state, "place": place, "manifest": {"clips": len(manifest), "checksum": manifest.checksum}}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Go to the place of a checkpoint, however its run cut the global batch.

        Raises:
            UserError: the place lies within an epoch of a manifest with another number of clips.
        """
        state = dict(state_dict)
        self._compare_manifest(state.get("manifest"), within_epoch=state["iterations_in_epoch"] > 0)
        if state["iterations_in_epoch"]:
            self.epoch = state["epoch"]
            unknown = {"batches": state["iterations_in_epoch"] * self.num_shards}
            iterations = state["iterations_in_epoch"] = self._iterations_before(state.get("place", unknown))
            if not any(map(len, self.frozen_batches[iterations * self.num_shards :])):
                logger.warning(
                    f"the checkpoint was written later in epoch {self.epoch} than the epoch lasts, with this run's "
                    "task.balanced_samples and task.label_fraction; the next one begins"
                )
                state.update(epoch=self.epoch + 1, iterations_in_epoch=0)
                self.dataset.set_epoch(self.epoch + 1)
                self._frozen_batches, self._left_out = None, 0
        super().load_state_dict(state)

    def _iterations_before(self, place: Dict[str, Any]) -> int:
        """Convert a place to the number of batches that this process has passed."""
        batches, shards = self.frozen_batches, self.num_shards
        if self.disable_shuffling and "clips" in place:
            passed = place["clips"]
            ends = np.cumsum([len(batch) for batch in batches])
            iterations = int(np.searchsorted(ends, passed, side="right")) // shards
            # With another global batch, the place may lie between the next batches, which lose the clips before it.
            begun = slice(iterations * shards, (iterations + 1) * shards)
            rests = [
                batch[max(0, len(batch) - max(0, end - passed)) :] for batch, end in zip(batches[begun], ends[begun])
            ]
            self._left_out = sum(map(len, batches[begun])) - sum(map(len, rests))
            self._frozen_batches = (*batches[: begun.start], *rests, *batches[begun.stop :])
            return iterations
        of_batches = place.get("of_batches", len(batches))
        iterations, rest = divmod(place["batches"] * len(batches) // of_batches, shards)
        regrouped = self.grouped_shuffling and place["shards"] != shards
        if rest or of_batches != len(batches) or regrouped:
            logger.warning(
                "the batches, of clips of about one length, are others than when the checkpoint was written: "
                "dataset.batch_size, dataset.max_tokens or the number of devices changed. In the rest of this epoch, "
                "some clips come once more and some not at all"
            )
        return iterations

    def _compare_manifest(self, stored: Optional[Dict[str, int]], within_epoch: bool) -> None:
        manifest = self.dataset.dataset.manifest
        if stored is None or stored["checksum"] == manifest.checksum:
            return
        if stored["clips"] == len(manifest):
            logger.warning(f"{manifest.path} lists other clips, or in another order, than for the checkpoint")
            return
        lists = f"{manifest.path} lists {len(manifest):,} clips, and listed {stored['clips']:,} for the checkpoint"
        if within_epoch:
            remedy = (
                "restore it, train in another folder (hydra.run.dir=...), or begin epochs of the new list once by "
                "checkpoint.reset_dataloader=true"
            )
            raise UserError(f"{lists}, which was written within an epoch; {remedy}")
        logger.warning(f"{lists}; the next epoch has the new ones")

    def _get_iterator_for_epoch(self, epoch: int, *arguments: Any, **options: Any) -> LoadedBatches:
        with _workers_may_start(), losing_workers():
            batches = super()._get_iterator_for_epoch(epoch, *arguments, **options)
        # fairseq counts updates by rounding the place up. From one between two of them it would end the epoch early.
        self._ahead = -batches.n % self.update_freq[min(epoch, len(self.update_freq)) - 1]
        return LoadedBatches(batches, lambda: self.first_batch, self.stopwatch, self._ahead)
