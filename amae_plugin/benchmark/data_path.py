"""The data path: clips per second that one worker decodes, transforms and collates, and that all workers deliver."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from amae_plugin.data.audio import AudioError, Crop, load_clip
from amae_plugin.data.augment import Magnitude, Roll
from amae_plugin.data.dataset import AudioDataset, Item
from amae_plugin.data.features import FEATURES
from amae_plugin.data.pictures import load_picture
from amae_plugin.errors import UserError
from amae_plugin.processes import killed_with_parent
from amae_plugin.progress import tqdm


def measure_stages(dataset: AudioDataset, indices: Sequence[int], batch: int) -> dict[str, float | int]:
    """Measure decoding, features and collation, one after the other in this process, in one thread like a worker.

    Returns:
        Clips per second of each stage (``decode``, ``features``, ``collate``, and ``pictures`` if the input has an
        image) and of all in turn (``together``), and the number of clips that could not be decoded (``skipped``).

    Raises:
        UserError: no clip could be decoded.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds, clips = _time_stages(dataset, indices, batch)
    finally:
        torch.set_num_threads(threads)
    if not clips:
        raise UserError(f"{dataset.manifest.path}: none of the {len(indices)} clips drawn can be decoded")
    rates: dict[str, float | int] = {stage: clips / elapsed for stage, elapsed in seconds.items()}
    return {**rates, "together": clips / sum(seconds.values()), "skipped": len(indices) - clips}


def measure_worker(dataset: AudioDataset, indices: Sequence[int], batch: int) -> dict[str, float]:
    """Measure the batches of augmented clips that one worker makes, with either place of the spectrograms in turn.

    Returns:
        Clips per second of processor time, by the value of ``task.features``.
    """
    augmentations = (Roll(), Magnitude())
    datasets = {place: replace(dataset, features=place, train=True, augmentations=augmentations) for place in FEATURES}
    seconds = dict.fromkeys(datasets, 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for first in tqdm(range(0, len(indices), batch), desc="one worker", unit="batch"):
            for place, each in datasets.items():
                start = time.process_time()
                each.collate([each[index] for index in indices[first : first + batch]])
                seconds[place] += time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    return {place: len(indices) / elapsed for place, elapsed in seconds.items()}


def measure_loader(dataset: AudioDataset, indices: Sequence[int], batch: int, workers: int) -> float:
    """Measure the clips per second of a DataLoader, after an untimed pass that starts its workers."""
    clips = Subset(dataset, indices)
    options: dict[str, Any] = {"persistent_workers": workers > 0, "worker_init_fn": killed_with_parent}
    loader = DataLoader(clips, batch, num_workers=workers, collate_fn=dataset.collate, **options)
    for description in ("data loader: warm-up", "data loader: timed"):
        start = time.perf_counter()
        count = sum(len(batch.get("id", ())) for batch in tqdm(loader, desc=description, unit="batch"))
        elapsed = time.perf_counter() - start
    return count / elapsed


def _time_stages(dataset: AudioDataset, indices: Sequence[int], batch: int) -> tuple[dict[str, float], int]:
    expected = dataset.input
    crop, image = Crop(expected.samples, position=0.5), expected.image
    reads = {"decode": lambda index: load_clip(dataset.manifest[index], expected.sample_rate, crop)}
    if image is not None:
        reads["pictures"] = lambda index: image(load_picture(dataset.manifest.picture(index)))
    seconds = dict.fromkeys((*reads, "features", "collate"), 0.0)
    clips = 0
    for first in tqdm(range(0, len(indices), batch), desc="stages of one worker", unit="batch"):
        times = [time.perf_counter()]
        read: dict[int, list[Tensor]] = {index: [] for index in indices[first : first + batch]}
        for function in reads.values():
            read = _read(function, read)
            times.append(time.perf_counter())
        sources = [expected.spectrogram(waveform) for waveform, *_ in read.values()]
        times.append(time.perf_counter())
        items = [Item(id=0, source=source, length=expected.target_length, seed=0) for source in sources]
        for item, (_, *images) in zip(items, read.values()):
            if images:
                item["image"] = images[0]
        dataset.collate(items)
        times.append(time.perf_counter())
        seconds = {stage: seconds[stage] + end - start for stage, start, end in zip(seconds, times, times[1:])}
        clips += len(read)
    return seconds, clips


def _read(function: Callable[[int], Tensor], read: Mapping[int, list[Tensor]]) -> dict[int, list[Tensor]]:
    """Add what a function reads of each clip to what was read before; leave out clips that cannot be decoded."""
    found = {}
    for index, before in read.items():
        with suppress(AudioError):
            found[index] = [*before, function(index)]
    return found
