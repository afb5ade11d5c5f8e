"""How fairseq makes batches of clips of different lengths."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq.logging import metrics
from omegaconf import OmegaConf

from amae_plugin.data.augment import Augmentation, Magnitude, Mixup, Noise, Roll, SpecAugment
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.labels import write_labels, write_names
from amae_plugin.data.manifest import write_manifest
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask
from amae_plugin.fairseq_plugin.classification import AmaeClassificationTask, AmaeClassificationTaskConfig
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
    write_names(folder / "labels.txt", ["a", "b"])
    for split in ("train", "valid"):
        write_labels(folder / f"{split}.lbl", ["ab"[index % 2] for index in range(len(rows))])
    return folder


def task(folder: Path, split: str = "train", **settings: object) -> AmaePretraining:
    values = {"data": str(folder), "target_length": 128, "seed": 1, "valid_subset": "valid"}
    config = OmegaConf.structured(AmaePretrainingConfig)
    made = AmaePretraining(OmegaConf.merge(config, {**values, "tensorboard_logdir": None, **settings}))
    made.load_dataset(split)
    return made


def classification(folder: Path, **settings: object) -> AmaeClassificationTask:
    values = {"data": str(folder), "target_length": 128, "seed": 1, "best_checkpoint_metric": "loss"}
    config = OmegaConf.structured(AmaeClassificationTaskConfig)
    made = AmaeClassificationTask(OmegaConf.merge(config, {**values, **settings}))
    made.load_dataset("train")
    return made


def test_a_run_trains_on_what_its_settings_say_whatever_its_name(folder: Path) -> None:
    made = classification(folder, train_subset="valid", label_fraction=0.5)
    made.load_dataset("valid")
    trained, other = made.dataset("valid"), made.dataset("train")
    assert trained.dataset.train and not other.dataset.train
    assert len(trained.ordered_indices()) < len(other.ordered_indices()) == len(other.dataset.manifest)


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


def test_a_batch_without_padding_has_no_mask(folder: Path) -> None:
    padding = [
        batch["net_input"]["padding_mask"] for batch in batches(task(folder, batch_length="shortest"), max_tokens=200)
    ]
    assert padding and not any(mask is not None for mask in padding)


def test_validation_has_the_same_batches_in_each_epoch(folder: Path) -> None:
    made = task(folder, "valid", batch_length="shortest")
    first = clips(batches(made, split="valid", max_tokens=200))
    assert first == clips(batches(made, epoch=2, split="valid", max_tokens=200))
    assert first[0] == [0, 2]  # the longest first, for which memory must suffice


@pytest.mark.parametrize("options", [{"max_sentences": 4}, {"max_tokens": 600}, {}])
def test_the_last_batch_is_kept_whatever_its_size(options: dict[str, int], folder: Path) -> None:
    made = task(folder, "valid")
    found = clips(batches(made, split="valid", required_batch_size_multiple=4, **options))
    assert sorted(chain(*found)) == list(range(len(FRAMES)))
    assert all(len(batch) % 4 == 0 for batch in found[:-1])


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
    made = task(folder, modalities=["audio"])
    made.default_input = SYSTEMS[system].default_input
    made.load_dataset("valid")
    dataset = made.dataset("valid").dataset
    default = replace(SYSTEMS[system].default_input, image=None)
    statistics = {"mean": -4.2677393, "std": 4.5689974}
    assert dataset.input == replace(default, target_length=128, **statistics)
    own = {"amae_mae_ast": ("povey", "model"), "amae_m2d": ("hann", "one_std"), "amae_cav_mae": ("hanning", "one_std")}
    assert (default.front_end.window_type, default.normalization) == own.get(system, ("hanning", "two_std"))
    chosen = task(folder, window_type="povey", normalization="one_std").dataset("train").dataset.input
    assert (chosen.front_end.window_type, chosen.normalization) == ("povey", "one_std")


def augmentations(made: AudioTask) -> tuple[Augmentation, ...]:
    return made.dataset("train").dataset.augmentations


@pytest.mark.parametrize("kind", [task, classification])
def test_augmentations_are_chosen_alike_in_pretraining_and_fine_tuning(kind: Callable, folder: Path) -> None:
    chosen = {"roll": None, "mixup": {"share": 0.25}, "noise": {"frames": 3}}
    assert augmentations(kind(folder, augmentations=chosen)) == (Roll(), Mixup(0.25), Noise(frames=3))
    assert augmentations(kind(folder, augmentations=["magnitude"])) == (Magnitude(),)
    assert augmentations(kind(folder, augmentations=None)) == ()
    with pytest.raises(UserError, match=r"^task\.augmentations: no shuffle; there are roll, magnitude, mixup"):
        kind(folder, augmentations=["shuffle"])
    with pytest.raises(UserError, match=r"^task\.augmentations: mixup: share=2 must be a share of the clips"):
        kind(folder, augmentations={"mixup": {"share": 2}})


def test_augmentations_that_are_not_chosen(folder: Path) -> None:
    assert augmentations(task(folder)) == (Roll(), Magnitude())
    assert augmentations(classification(folder)) == (Roll(), Magnitude(), SpecAugment(48, 192))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mixup": 0.5}, (Roll(), Mixup(0.5))),
        ({"mixup": 0.0}, (Roll(),)),
        ({"noise": 0.2, "noise_roll": 5}, (Roll(), Noise(0.2, 5))),
        ({"noise": 0.0, "noise_roll": 5}, (Roll(),)),
        ({"noise_roll": 5}, (Roll(),)),
        ({"spec_augment_time": 96, "spec_augment_frequency": 24}, (Roll(), SpecAugment(24, 96))),
        ({"spec_augment_time": 0}, (Roll(), SpecAugment(48, 0))),
        ({"augmentations": ["roll", {"mixup": {"alpha": 5}}], "mixup": 0.1}, (Roll(), Mixup(0.1, 5))),
        ({"augmentations": {"mixup": {}, "noise": {}, "roll": {}}, "mixup": 0.0, "noise": 0.0}, (Roll(),)),
    ],
)
def test_settings_of_their_own_change_augmentations(
    settings: dict, expected: tuple[Augmentation, ...], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        made = classification(folder, **{"augmentations": ["roll"], **settings})
    assert augmentations(made) == expected
    for name, value in {"mixup": "mixup.share", "noise": "noise.amplitude"}.items():
        if name in settings:
            assert f"task.{name}={settings[name]} stands for task.augmentations.{value}={settings[name]}" in caplog.text


class Optimizer:
    def step(self) -> None:
        pass


def test_training_logs_the_time_that_it_waits_for_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_item = AudioDataset.__getitem__
    monkeypatch.setattr(AudioDataset, "__getitem__", lambda self, index: time.sleep(0.01) or make_item(self, index))
    made = classification(folder)
    for _ in range(2):  # fairseq asks for the iterator anew in each epoch, and gets the same one
        iterator = made.get_batch_iterator(made.dataset("train"), max_sentences=5)
        assert len(list(iterator.next_epoch_itr(shuffle=True))) == 2
    waited = made.data_wait.sum
    assert 2 * 10 * 0.01 < waited < 4 * 10 * 0.01 + 1
    made.load_dataset("valid")
    batches(made, split="valid", max_sentences=5)
    assert made.data_wait.sum == waited
    with metrics.aggregate(new_root=True) as log:
        made.optimizer_step(Optimizer(), torch.nn.Identity(), 1)
        assert log["data_wait"].val == waited
        made.optimizer_step(Optimizer(), torch.nn.Identity(), 2)
        assert log["data_wait"].val == 0


def epoch_begun(folder: Path) -> None:
    made = task(folder)
    iterator = made.get_batch_iterator(made.dataset("train"), max_sentences=1, num_workers=2, data_buffer_size=1)
    next(iterator.next_epoch_itr(shuffle=True))


def test_a_process_ends_in_the_middle_of_an_epoch(folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=epoch_begun, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
