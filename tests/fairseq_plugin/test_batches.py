"""How fairseq makes batches of clips of different lengths."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from amae_plugin.data.manifest import write_manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.pretraining import AmaePretraining, AmaePretrainingConfig
from amae_plugin.models.registry import SYSTEMS

FRAMES = [98, 20, 97, 21, 60, 61, 62, 19, 96, 22]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of these many frames, for training and validation."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index, frames in enumerate(FRAMES):
        samples = 400 + 160 * (frames - 1)
        soundfile.write(folder / f"{index}.wav", np.random.default_rng(index).normal(0, 0.1, samples), 16_000)
        rows.append((f"{index}.wav", samples))
    for split in ("train", "valid"):
        write_manifest(folder / f"{split}.tsv", folder, rows)
    return folder


def task(folder: Path, split: str = "train", **settings: object) -> AmaePretraining:
    values = {"data": str(folder), "target_length": 128, "seed": 1, "valid_subset": "valid"}
    config = OmegaConf.structured(AmaePretrainingConfig)
    made = AmaePretraining(OmegaConf.merge(config, {**values, "tensorboard_logdir": None, **settings}))
    made.load_dataset(split)
    return made


def batches(made: AmaePretraining, epoch: int = 1, split: str = "train", **options: object) -> list[dict]:
    iterator = made.get_batch_iterator(made.dataset(split), epoch=epoch, disable_iterator_cache=True, **options)
    return list(iterator.next_epoch_itr(shuffle=split == "train"))


def clips(made: list[dict]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in made]


def test_batches_hold_clips_of_one_length_and_so_many_frames(folder: Path) -> None:
    made = task(folder, batch_length="longest")
    first = batches(made, max_tokens=200)
    assert sorted(chain.from_iterable(clips(first))) == list(range(10))
    for batch in first:
        source, padding = batch["net_input"]["source"], batch["net_input"]["padding_mask"]
        frames = [FRAMES[index] for index in batch["id"]]
        assert max(frames) * len(frames) <= 200
        assert source.shape[1] == -(-max(frames) // 16) * 16
        assert padding.sum(1).tolist() == [source.shape[1] - length for length in frames]
    by_length = sorted(([FRAMES[index] for index in batch] for batch in clips(first)), reverse=True)
    assert list(chain.from_iterable(by_length)) == sorted(FRAMES, reverse=True)
    assert clips(batches(made, epoch=1, max_tokens=200)) == clips(first)
    # They come in another order in each epoch, not always the longest first.
    assert len({clips(batches(made, epoch=epoch, max_tokens=200))[0][0] for epoch in range(1, 7)}) > 2


def test_validation_has_the_same_batches_in_each_epoch(folder: Path) -> None:
    made = task(folder, "valid", batch_length="shortest")
    first = clips(batches(made, split="valid", max_tokens=200))
    assert first == clips(batches(made, epoch=2, split="valid", max_tokens=200))
    assert first[0] == [0, 2]  # the longest first, for which memory must suffice


def test_a_batch_too_small_for_the_longest_clip_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="max_tokens=90: the longest clip has 98 frames"):
        batches(task(folder, batch_length="longest"), max_tokens=90)
    with pytest.raises(UserError, match="max_tokens=90: the longest clip has 128 frames"):
        batches(task(folder), max_tokens=90)


def test_settings_that_make_no_sense_name_the_task(folder: Path) -> None:
    with pytest.raises(UserError, match="task: batch_length is 'long'"):
        task(folder, batch_length="long")
    with pytest.raises(UserError, match="task: window_type is 'hamming'"):
        task(folder, window_type="hamming")


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_front_end_is_the_systems_unless_it_is_set(system: str, folder: Path) -> None:
    made = task(folder)
    made.encoder_settings = {"_name": system}
    made.load_dataset("valid")
    dataset = made.dataset("valid").dataset
    own = system == "amae_mae_ast"
    assert (dataset.features.window_type, dataset.features.remove_mean) == (
        ("povey", False) if own else ("hanning", True)
    )
    assert (dataset.mean, dataset.std) == ((0.0, 0.5) if own else (-4.2677393, 4.5689974))
    chosen = task(folder, window_type="povey", remove_mean=False)
    assert chosen.dataset("train").dataset.features.window_type == "povey"
