"""Shares of several devices in an epoch, also when a signal comes to their workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.utils.data import get_worker_info

from amae_plugin.cluster import signals
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin import bases
from amae_plugin.fairseq_plugin.classification import AmaeClassificationTask, AmaeClassificationTaskConfig

CLASSES = ["rare", "common"]


@pytest.fixture(scope="module")
def folder(write_split: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [(["rare" if index % 8 == 0 else "common"], 0.3, 16000) for index in range(32)]
    return write_split(tmp_path_factory.mktemp("clips"), clips, CLASSES, split="train")


def task(folder: Path, **settings: object) -> AmaeClassificationTask:
    values = {"data": str(folder), "target_length": 32, "seed": 1, "best_checkpoint_metric": "accuracy"}
    config = OmegaConf.merge(OmegaConf.structured(AmaeClassificationTaskConfig), {**values, **settings})
    made = AmaeClassificationTask(config)
    made.load_dataset("train")
    return made


def epoch(
    made: AmaeClassificationTask, number: int, shard: int = 0, shards: int = 1, workers: int = 0, **options: int
) -> Iterator[list]:
    """Places in the epoch and clips of each batch of a device."""
    iterator = made.get_batch_iterator(
        made.dataset("train"),
        max_sentences=2,
        epoch=number,
        num_shards=shards,
        shard_id=shard,
        num_workers=workers,
        disable_iterator_cache=True,
        **options,
    )
    for batch in iterator.next_epoch_itr():
        yield batch["id"].tolist() if batch else []


@pytest.mark.parametrize("balanced", [None, 24])
def test_devices_share_an_epoch_without_overlap(folder: Path, balanced: int | None) -> None:
    made = task(folder, balanced_samples=balanced)
    alone = list(epoch(made, 3))
    shared = [list(epoch(made, 3, shard, shards=4)) for shard in range(4)]
    # In turns, batch by batch: what the devices hear together is what one hears, in the same order.
    together = [batch for turn in zip(*shared) for batch in turn]
    assert together == alone
    assert sum(map(len, together)) == (balanced or 32)
    if balanced is None:
        assert sorted(clip for batch in together for clip in batch) == list(range(32))


def test_an_epoch_without_repetition_has_clips_enough(folder: Path) -> None:
    made = task(folder, balanced_samples=32, balanced_repeats=False)
    assert sorted(clip for batch in epoch(made, 3) for clip in batch) == list(range(32))
    with pytest.raises(UserError, match=r"balanced_samples=33: .*train\.tsv has 32 clips to draw; .*_repeats=true"):
        task(folder, balanced_samples=33, balanced_repeats=False)


@pytest.fixture
def watching() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.install_handlers()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._received = None


def test_epoch_goes_on_after_a_signal_to_all_processes(folder: Path, watching: None) -> None:
    made = task(folder)
    whole = list(epoch(made, 2))
    batches = epoch(made, 2, workers=2)
    heard = [next(batches) for _ in range(3)]
    processes = [*multiprocessing.active_children(), multiprocessing.current_process()]
    assert len(processes) == 3
    # From another process, as SLURM's comes: a worker ends at its parent's.
    subprocess.run(["sh", "-c", f"kill -TERM {' '.join(str(process.pid) for process in processes)}"], check=True)
    assert [*heard, *batches] == whole
    assert signals.first_received() == signal.SIGTERM


@pytest.mark.parametrize("buffer", [0, 4])
def test_epoch_goes_on_after_a_signal_to_a_worker_that_has_just_begun(
    folder: Path, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated() -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return get_worker_info()

    made = task(folder)
    whole = list(epoch(made, 2))
    monkeypatch.setattr(bases, "get_worker_info", terminated)  # what a worker asks first of all
    assert list(epoch(made, 2, workers=2, data_buffer_size=buffer)) == whole


def epoch_with_a_dead_worker(folder: Path) -> None:
    """Exit with code 3 at the advice: the worker died while it was idle, or while it handed over a batch."""
    try:
        batches = epoch(task(folder), 2, workers=2)
        next(batches)
        multiprocessing.active_children()[0].kill()
        list(batches)
    except UserError as error:
        os._exit(3 if "a process that loads clips has ended early" in str(error) else 4)
    os._exit(0)


def test_worker_that_dies_for_another_reason_is_an_error(folder: Path) -> None:
    # In a process of its own, where PyTorch would raise the error again whenever another process ends.
    process = multiprocessing.get_context("fork").Process(target=epoch_with_a_dead_worker, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 3
