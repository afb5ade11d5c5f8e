import logging

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.augment import Augmentations, Magnitude, Roll
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.features import LogMel, fit_length, normalize
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.data.seeding import clip_seed

SETTINGS = {"target_length": 64, "mean": -5.0, "std": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six clips; 1 and 4 are shorter than 64 frames, 2 is silent, 3 is long and loud only in its middle."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for index, seconds in enumerate([1.0, 0.3, 1.0, 4.0, 0.01, 1.5]):
        samples = rng.normal(0, 0.1, int(16_000 * seconds))
        if index == 2:
            samples[:] = 0
        if index == 3:
            samples[:24_000] = samples[40_000:] = 0
        soundfile.write(folder / f"{index}.flac", samples, 16_000)
        rows.append((f"{index}.flac", len(samples)))
    write_manifest(folder / "good.tsv", folder, rows)
    (folder / "broken.wav").write_bytes(b"broken" * 100)
    bad = [("broken.wav", 1000), ("missing.wav", 1000)]
    write_manifest(folder / "bad.tsv", folder, [rows[0], bad[0], rows[1], bad[1], *([bad[0]] * 4)])
    return folder


@pytest.fixture(scope="module")
def good(folder):
    return Manifest.read(folder / "good.tsv")


@pytest.fixture(scope="module")
def bad(folder):
    return Manifest.read(folder / "bad.tsv")


def training(manifest, **settings):
    return AudioDataset(
        manifest, train=True, augmentations=Augmentations((Roll(), Magnitude())), **{**SETTINGS, **settings}
    )


def load(dataset, workers, **options):
    """All batches of two clips."""
    try:
        return list(DataLoader(dataset, 2, num_workers=workers, collate_fn=AudioDataset.collate, **options))
    except AudioError as error:
        # The traceback would keep the DataLoader's iterator alive, and its clean-up in a later test's workers is slow.
        raise error.with_traceback(None) from None


def assert_same_items(first, second):
    assert [item.keys() for item in first] == [item.keys() for item in second]
    for one, other in zip(first, second):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


def test_validation_is_the_normalised_centre_of_the_clip(good):
    dataset = AudioDataset(good, **SETTINGS, augmentations=Augmentations((Roll(),)))
    assert len(dataset) == 6
    samples = LogMel().samples_for(64)
    start = (64_000 - samples) // 2
    waveform = load_clip(good[3])[start : start + samples]
    item = dataset[3]
    assert torch.equal(item["source"], normalize(LogMel()(waveform), -5.0, 4.0))
    assert item["source"].shape == (64, 128)
    assert (item["id"], item["length"]) == (3, 64)
    assert item["seed"] == clip_seed(1, 0, 3)


def test_short_clips_are_padded_before_they_are_normalised(good):
    item = AudioDataset(good, **SETTINGS)[1]
    log_mel = LogMel()(load_clip(good[1]))
    assert item["length"] == len(log_mel) == 28
    assert torch.equal(item["source"], normalize(fit_length(log_mel, 64), -5.0, 4.0))
    assert (item["source"][28:] == 5.0 / 8.0).all()
    assert AudioDataset(good, **SETTINGS)[4]["length"] == 1


def test_silence_is_a_clip_like_any_other(good):
    source = training(good)[2]["source"]
    assert source.isfinite().all()
    assert len(source.unique()) == 1


def test_training_changes_with_the_epoch_and_the_seed_and_validation_does_not(good):
    train, valid = training(good), AudioDataset(good, **SETTINGS)
    first, held_out = train[3], valid[3]
    assert_same_items([first], [train[3]])
    train.set_epoch(2)
    valid.set_epoch(2)
    assert train[3]["seed"] != first["seed"]
    assert not torch.equal(train[3]["source"], first["source"])
    assert_same_items([valid[3]], [held_out])
    assert training(good, seed=2)[3]["seed"] != first["seed"]


def test_training_crops_come_from_the_whole_clip(good):
    dataset = AudioDataset(good, train=True, **SETTINGS)
    silent = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        loud = dataset[3]["source"].mean(dim=1) > 0
        silent.add("all" if not loud.any() else "none" if loud.all() else "some")
    assert silent == {"all", "none", "some"}


def test_the_number_of_workers_does_not_matter(good):
    dataset = training(good)
    dataset.set_epoch(3)
    here = load(dataset, workers=0)
    assert_same_items(here, load(dataset, workers=2))
    assert here[0]["source"].shape == (2, 64, 128)


def test_spawned_workers_read_the_manifest_again_and_share_the_count(bad):
    dataset = training(bad, on_bad_audio="skip")
    assert_same_items(load(dataset, workers=0), load(dataset, workers=2, multiprocessing_context="spawn"))
    assert dataset.bad_audio == 12


def test_a_batch(good):
    dataset = training(good)
    batch = AudioDataset.collate([dataset[0], None, dataset[1]])
    assert batch["id"].tolist() == [0, 1]
    assert batch["source"].shape == (2, 64, 128)
    assert batch["source"].dtype == torch.float32
    assert batch["lengths"].tolist() == [64, 28]
    assert batch["seed"].tolist() == [clip_seed(1, 0, 0), clip_seed(1, 0, 1)]
    assert batch["seed"].dtype == batch["id"].dtype == batch["lengths"].dtype == torch.int64
    assert batch["skipped"] == 1
    assert AudioDataset.collate([None, None]) == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_stops_training_with_its_path_and_reason(bad, workers):
    with pytest.raises(AudioError, match=r"broken\.wav: not a format that soundfile"):
        load(training(bad), workers)


def test_skipped_clips_are_logged_and_counted(bad, caplog):
    dataset = training(bad, on_bad_audio="skip", max_bad_audio=6)
    with caplog.at_level(logging.WARNING):
        batches = load(dataset, workers=0)
    assert batches[0]["id"].tolist() == [0]
    assert batches[1]["id"].tolist() == [2]
    assert [batch.get("skipped") for batch in batches] == [1, 1, None, None]
    assert batches[2] == {}
    assert dataset.bad_audio == 6
    assert len(caplog.messages) == 6
    assert "missing.wav" in caplog.text
    assert "No such file" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_counts_the_clips_of_all_workers(bad, workers):
    # Each of two workers meets fewer than 5 bad clips; together they meet 6.
    with pytest.raises(AudioError, match=r"task\.max_bad_audio=5 .*(broken|missing)\.wav"):
        load(training(bad, on_bad_audio="skip", max_bad_audio=5), workers)
    dataset = training(bad, on_bad_audio="skip", max_bad_audio=6)
    load(dataset, workers)
    assert dataset.bad_audio == 6


def test_an_unknown_answer_to_bad_audio_is_refused(good):
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        training(good, on_bad_audio="ignore")
