import logging
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

import amae_plugin.data.dataset as dataset_module
from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.augment import Augmentation, Magnitude, Mixup, Noise, ResizedCrop, Roll, SpecAugment
from amae_plugin.data.dataset import AudioDataset, Sampling, clip_seed
from amae_plugin.data.images import ImageInput
from amae_plugin.data.labels import Labels
from amae_plugin.data.log_mel import LogMel, ModelInput, SlaneyLogMel, fit_length
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.errors import UserError

INPUT = ModelInput(target_length=64, mean=-5.0, std=4.0)
mix = Mixup().mix


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


def training(manifest, model_input=INPUT, **settings):
    return AudioDataset(manifest, model_input, train=True, **{"augmentations": (Roll(), Magnitude()), **settings})


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Six clips that are shorter than 64 frames, so that none is cropped; their means are far from 0."""
    folder = tmp_path_factory.mktemp("short")
    rng = np.random.default_rng(1)
    lengths = [9600, 3200, 8000, 4800, 6400, 1600]
    for index, length in enumerate(lengths):
        soundfile.write(folder / f"{index}.flac", rng.normal(0.3, 0.1, length), 16_000)
    write_manifest(folder / "short.tsv", folder, [(f"{index}.flac", length) for index, length in enumerate(lengths)])
    return Manifest.read(folder / "short.tsv")


def one_class_each(clips):
    """Labels of clips of which each is a class of its own, so that a target tells which clips are in an item."""
    return Labels(
        tuple(f"class {i}" for i in range(clips)),
        np.arange(clips, dtype=np.int32),
        np.arange(clips + 1, dtype=np.int64),
    )


def mixing(manifest, share=1.0, **settings):
    """Training on mixed clips, without any other augmentation."""
    settings = {"labels": one_class_each(len(manifest)), "augmentations": (Mixup(share),), **settings}
    return training(manifest, **settings)


def partner(item, clip):
    """The clip that was mixed into an item of one_class_each, itself if none was, and the share of the item's own."""
    share = float(item["target"][clip])
    assert item["target"].sum() == pytest.approx(1)
    others = item["target"].nonzero()[:, 0].tolist()
    others.remove(clip)
    assert len(others) <= 1
    return (others[0] if others else clip), share


def all_augmentations(share):
    return Roll(), Magnitude(), Mixup(share), SpecAugment(8, 16), Noise()


def load(dataset, workers, **options):
    """All batches of two clips."""
    try:
        return list(DataLoader(dataset, 2, num_workers=workers, collate_fn=dataset.collate, **options))
    except AudioError as error:
        # The traceback would keep the DataLoader's iterator alive, and its clean-up in a later test's workers is slow.
        raise error.with_traceback(None) from None


def assert_same_items(first, second):
    assert [item.keys() for item in first] == [item.keys() for item in second]
    for one, other in zip(first, second):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


def test_validation_is_the_normalised_centre_of_the_clip(good):
    dataset = AudioDataset(good, INPUT, augmentations=(Roll(),))
    assert len(dataset) == 6
    samples = LogMel().samples_for(64)
    start = (64_000 - samples) // 2
    waveform = load_clip(good[3])[start : start + samples]
    item = dataset[3]
    assert torch.equal(item["source"], INPUT.normalize(LogMel()(waveform)))
    assert item["source"].shape == (64, 128)
    assert (item["id"], item["length"]) == (3, 64)
    assert item["seed"] == clip_seed(1, 0, 3)


def test_short_clips_are_padded_before_they_are_normalised(good):
    item = AudioDataset(good, INPUT)[1]
    log_mel = LogMel()(load_clip(good[1]))
    assert item["length"] == len(log_mel) == 28
    assert torch.equal(item["source"], INPUT.normalize(fit_length(log_mel, 64)))
    assert (item["source"][28:] == 5.0 / 8.0).all()
    assert AudioDataset(good, INPUT)[4]["length"] == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("batch_length", ["fixed", "longest", "shortest"])
@pytest.mark.parametrize("front_end", [LogMel(), LogMel(window_type="povey"), SlaneyLogMel()], ids=["", "povey", "m2d"])
def test_spectrograms_of_a_batch_on_a_device_are_those_of_the_workers(good, short, front_end, batch_length, train):
    everything = (
        Roll(),
        Magnitude(),
        Mixup(0.5),
        SpecAugment(8, 16),
        Noise(),
        ResizedCrop(),
        SpecAugment(8, 0.2, True),
    )
    settings = {"augmentations": everything, "train": train, "batch_length": batch_length, "seed": 3}
    for manifest in (good, short):
        workers, device = (
            AudioDataset(manifest, ModelInput(front_end, 64, -5.0, 4.0), features=place, **settings)
            for place in ("workers", "device")
        )
        one, other = (each.collate([each[index] for index in range(6)]) for each in (workers, device))
        computed = device.chain.batch(*(other.pop(key) for key in ("waveforms", "samples", "pending")))
        torch.testing.assert_close(computed, one.pop("source"), rtol=0, atol=1e-4)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_draws_are_those_of_numpys_choice():
    weights = np.random.default_rng(1).random(500).astype(np.float32)
    weights[::7] = 0
    sampling = Sampling(np.arange(500) * 2, weights, samples=3000, seed=3)
    shares = weights.astype(np.float64)
    rng = np.random.default_rng(clip_seed(3, 5, 0, stream=2))
    expected = sampling.pool[rng.choice(500, 3000, p=shares / shares.sum())]
    assert np.array_equal(sampling.draw(5), expected)


def test_silence_is_a_clip_like_any_other(good):
    source = training(good)[2]["source"]
    assert source.isfinite().all()
    assert len(source.unique()) == 1


def test_training_changes_with_the_epoch_and_the_seed_and_validation_does_not(good):
    train, valid = training(good), AudioDataset(good, INPUT)
    first, held_out = train[3], valid[3]
    assert_same_items([first], [train[3]])
    train.set_epoch(2)
    valid.set_epoch(2)
    assert train[3]["seed"] != first["seed"]
    assert not torch.equal(train[3]["source"], first["source"])
    assert_same_items([valid[3]], [held_out])
    assert training(good, seed=2)[3]["seed"] != first["seed"]


def test_training_crops_come_from_the_whole_clip(good):
    dataset = AudioDataset(good, INPUT, train=True)
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


def test_spawned_workers_read_the_manifest_again_and_share_the_skipped_clips(bad, caplog):
    settings = {
        "on_bad_audio": "skip",
        "labels": one_class_each(8),
        "augmentations": all_augmentations(0.5),
        "sampling": Sampling(np.array([0, 1, 2]), np.array([3, 1, 3]), 8),
    }
    here = load(training(bad, **settings), workers=0)
    assert len(caplog.messages) == 1
    dataset = training(bad, **settings)
    assert_same_items(here, load(dataset, workers=2, multiprocessing_context="spawn"))
    load(dataset, workers=0)
    assert len(caplog.messages) == 1


def test_a_batch(good):
    dataset = training(good)
    batch = dataset.collate([dataset[0], None, dataset[1]])
    assert batch["id"].tolist() == [0, 1]
    assert batch["source"].shape == (2, 64, 128)
    assert batch["source"].dtype == torch.float32
    assert batch["lengths"].tolist() == [64, 28]
    assert batch["seed"].tolist() == [clip_seed(1, 0, 0), clip_seed(1, 0, 1)]
    assert batch["seed"].dtype == batch["id"].dtype == batch["lengths"].dtype == torch.int64
    assert dataset.collate([None, None]) == {}


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
    assert batches[2] == batches[3] == {}
    assert [message.split(":")[0] for message in caplog.messages] == [f"skipped clip {count}" for count in range(1, 7)]
    assert "missing.wav" in caplog.text
    assert "No such file" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_counts_the_clips_of_all_workers(bad, workers):
    # Each of two workers meets fewer than 5 bad clips; together they meet 6.
    with pytest.raises(AudioError, match=r"task\.max_bad_audio=5 .*(broken|missing)\.wav"):
        load(training(bad, on_bad_audio="skip", max_bad_audio=5), workers)
    load(training(bad, on_bad_audio="skip", max_bad_audio=6), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_counts_a_clip_once_in_all_epochs(bad, workers, caplog):
    dataset = training(bad, on_bad_audio="skip", max_bad_audio=6)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        assert [batch["id"].tolist() for batch in load(dataset, workers) if batch] == [[0], [2]]
    assert workers or len(caplog.messages) == 6


def test_an_unknown_answer_to_bad_audio_is_refused(good):
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        training(good, on_bad_audio="ignore")


def test_targets_are_the_classes_of_the_clip(short):
    labels = Labels(tuple("abcd"), np.array([1, 0, 2, 3, 0, 1, 2, 0], np.int32), np.array([0, 1, 2, 4, 5, 7, 8]))
    for train in (True, False):
        dataset = AudioDataset(short, INPUT, labels=labels, train=train)
        assert dataset[0]["target"].tolist() == [0, 1, 0, 0]
        assert dataset[2]["target"].tolist() == [0, 0, 1, 1]
        assert dataset[2]["target"].dtype == torch.float32
    assert "target" not in AudioDataset(short, INPUT)[0]


def test_a_batch_with_targets(short):
    dataset = mixing(short)
    batch = dataset.collate([dataset[0], None, dataset[3]])
    assert torch.equal(batch["target"], torch.stack([dataset[0]["target"], dataset[3]["target"]]))
    assert batch["target"].shape == (2, 6) and batch["target"].dtype == torch.float32
    assert "target" not in training(short).collate([training(short)[0]])


def test_labels_of_another_manifest_are_refused(short):
    with pytest.raises(ValueError, match="5 labels do not fit 6 clips"):
        AudioDataset(short, INPUT, labels=one_class_each(5))


def test_clips_without_labels_are_mixed_as_well(short):
    labelled, unlabelled = mixing(short), mixing(short, labels=None)
    for clip in range(6):
        assert torch.equal(unlabelled[clip]["source"], labelled[clip]["source"])
        assert "target" not in unlabelled[clip]


def test_mixed_clips_are_mixed_in_the_share_that_their_target_says(short):
    dataset = mixing(short)
    waveforms = [load_clip(clip) for clip in short]
    shorter = longer = 0
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for clip in range(6):
            item = dataset[clip]
            other, share = partner(item, clip)
            log_mel = LogMel()(mix(waveforms[clip], waveforms[other], share))
            # The share is known from a float32 only.
            torch.testing.assert_close(item["source"], INPUT.normalize(fit_length(log_mel, 64)), rtol=0, atol=1e-3)
            assert item["length"] == len(log_mel)
            assert item["source"].dtype == item["target"].dtype == torch.float32
            shorter += len(waveforms[other]) < len(waveforms[clip])
            longer += len(waveforms[other]) > len(waveforms[clip])
    assert shorter and longer


def test_targets_of_several_classes_are_mixed_as_well(short):
    labels = Labels(tuple("abc"), np.array([0, 0, 0, 0, 0, 0, 1, 2], np.int32), np.array([0, 1, 2, 3, 4, 5, 8]))
    targets = torch.stack([mixing(short, labels=labels, seed=seed)[0]["target"] for seed in range(30)])
    # All clips are of class a; only the last one is of b and c too.
    assert targets[:, 0] == pytest.approx(1)
    assert torch.equal(targets[:, 1], targets[:, 2])
    mixed = targets[:, 1] > 0
    assert 0 < mixed.sum() < 30
    assert (targets[mixed, 1] < 1).all()


def test_shares_are_beta_distributed_and_partners_uniform(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).normal(0, 0.1, 500), 16_000)
    write_manifest(tmp_path / "train.tsv", tmp_path, [("clip.wav", 500)] * 400)
    dataset = mixing(Manifest.read(tmp_path / "train.tsv"), model_input=ModelInput(target_length=2))
    mixed = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        mixed += [partner(dataset[clip], clip) for clip in range(400)]
    others = np.array([other for other, _ in mixed])
    shares = np.array([share for _, share in mixed if share < 1])
    # Beta(10, 10) has mean 1/2 and variance 1/84; limits are five standard deviations.
    assert abs(shares.mean() - 1 / 2) < 5 * np.sqrt(1 / 84 / len(shares))
    assert abs(shares.var() - 1 / 84) < 5 * np.sqrt(2 / len(shares)) / 84
    quarters = np.bincount(others // 100)
    assert np.abs(quarters - 300).max() < 5 * np.sqrt(1200 * 3 / 16)


def test_mixup_is_the_share_of_clips_that_are_mixed(short):
    dataset = mixing(short, 0.3)
    mixed = []
    for epoch in range(50):
        dataset.set_epoch(epoch)
        mixed += [dataset[clip]["target"].max() < 1 for clip in range(6)]
    # One in six of the mixed ones is its own partner.
    expected = 0.3 * 5 / 6
    assert abs(np.mean(mixed) - expected) < 5 * np.sqrt(expected * (1 - expected) / 300)


def test_partners_come_from_the_pool_of_the_sampling(short):
    pool = np.array([1, 4, 5])
    dataset = mixing(short, sampling=Sampling(pool, np.array([0, 1, 0]), 40))
    assert {partner(dataset[index], 4)[0] for index in range(40)} == {1, 4, 5}


def test_without_mixup_nothing_is_drawn_for_it(good):
    plain = training(good)
    labelled = training(good, labels=one_class_each(6))
    for clip in range(6):
        assert torch.equal(plain[clip]["source"], labelled[clip]["source"])


def test_a_clip_whose_partner_cannot_be_decoded_is_not_mixed(bad, caplog):
    dataset = mixing(bad, on_bad_audio="skip", sampling=Sampling(np.arange(4)))
    items = []
    for epoch in range(20):
        dataset.set_epoch(epoch)
        items.append(dataset[0])
    assert {partner(item, 0)[0] for item in items} == {0, 2}
    assert len(caplog.messages) == 2
    assert "broken.wav" in caplog.text and "missing.wav" in caplog.text
    strict = mixing(bad, sampling=Sampling(np.arange(4)))
    with pytest.raises(AudioError, match="cannot use"):
        for epoch in range(20):
            strict.set_epoch(epoch)
            strict[0]


def test_no_augmentation_touches_validation(good):
    labels = one_class_each(6)
    plain = AudioDataset(good, INPUT, labels=labels)
    augmented = AudioDataset(good, INPUT, labels=labels, augmentations=all_augmentations(1.0))
    assert_same_items(list(map(plain.__getitem__, range(6))), list(map(augmented.__getitem__, range(6))))


@dataclass(frozen=True)
class Affine(Augmentation):
    """Multiplies and shifts what one stage works on."""

    stage: str
    factor: float = 1.0
    shift: float = 0.0

    def apply(self, stage, tensor):
        return tensor * self.factor + self.shift if stage == self.stage else tensor

    def waveform(self, samples, rng):
        return self.apply("waveform", samples)

    def log_mel(self, spectrogram, rng):
        return self.apply("log_mel", spectrogram)

    def normalized(self, spectrogram, rng):
        return self.apply("normalized", spectrogram)


def test_augmentations_follow_one_another(short):
    augmentations = (
        *(Affine("normalized", shift=3), Affine("log_mel", shift=1), Affine("waveform", shift=-0.2), Mixup(1.0)),
        *(Affine("waveform", factor=4), Affine("log_mel", factor=0.5), Affine("normalized", factor=2)),
    )
    dataset = training(short, augmentations=augmentations, labels=one_class_each(6))
    waveforms = [(load_clip(clip) - 0.2) * 4 for clip in short]
    partners = set()
    for clip in range(6):
        item = dataset[clip]
        other, share = partner(item, clip)
        partners.add(other)
        # Both waveforms are augmented, then mixed; then the padded log-mel values, then the normalised ones.
        log_mel = (fit_length(LogMel()(mix(waveforms[clip], waveforms[other], share)), 64) + 1) / 2
        torch.testing.assert_close(item["source"], ((log_mel + 5) / 8 + 3) * 2, rtol=0, atol=1e-3)
    assert len(partners) > 1


def test_the_partner_has_augmentations_of_its_own(short):
    def item(*augmentations):
        return mixing(short, augmentations=augmentations, sampling=Sampling(np.array([0])))[0]["source"]

    # Mixed with itself, a clip is the same as alone, unless the two are rolled differently.
    torch.testing.assert_close(item(), item(Mixup(1.0)), rtol=0, atol=1e-3)
    assert (item(Roll()) - item(Roll(), Mixup(1.0))).abs().mean() > 0.05


@pytest.mark.parametrize("position", [0.0, 1.0])
def test_validation_can_take_the_beginning_or_the_end(good, position):
    dataset = AudioDataset(good, INPUT, crop_position=position)
    samples = LogMel().samples_for(64)
    waveform = load_clip(good[5])
    waveform = waveform[-samples:] if position else waveform[:samples]
    assert torch.equal(dataset[5]["source"], INPUT.normalize(LogMel()(waveform)))
    assert torch.equal(dataset[1]["source"], AudioDataset(good, INPUT)[1]["source"])


def test_items_are_the_clips_of_the_pool(short):
    dataset = AudioDataset(short, INPUT, labels=one_class_each(6), sampling=Sampling(np.array([1, 4, 5])))
    items = [dataset[index] for index in range(len(dataset))]
    assert [item["id"] for item in items] == [0, 1, 2]
    assert [int(item["target"].argmax()) for item in items] == [1, 4, 5]
    whole = AudioDataset(short, INPUT)
    assert all(torch.equal(item["source"], whole[clip]["source"]) for item, clip in zip(items, [1, 4, 5]))


def test_drawn_items_are_others_in_each_epoch(short):
    sampling = Sampling(np.array([0, 2, 3]), np.array([1.0, 2.0, 3.0]), 9)
    dataset = AudioDataset(short, INPUT, labels=one_class_each(6), sampling=sampling, train=True)
    for epoch in (0, 1, 2, 1):
        dataset.set_epoch(epoch)
        assert len(dataset) == 9
        assert [int(dataset[index]["target"].argmax()) for index in range(9)] == sampling.draw(epoch).tolist()
    assert sampling.draw(1).tolist() != sampling.draw(2).tolist()


def test_a_clip_drawn_twice_is_cropped_and_augmented_twice(good):
    sampling = Sampling(np.array([5]), np.ones(1), 4)
    cropped = AudioDataset(good, INPUT, sampling=sampling, train=True)
    masked = AudioDataset(good, INPUT, sampling=sampling, train=True, augmentations=(SpecAugment(),))
    for items in ([dataset[index] for index in range(4)] for dataset in (cropped, masked)):
        assert len({item["seed"] for item in items}) == 4
        for index in range(4):
            assert not any(torch.equal(items[index]["source"], items[other]["source"]) for other in range(index))


def test_the_number_of_workers_does_not_matter_to_drawn_and_mixed_clips(good):
    dataset = training(
        good,
        labels=one_class_each(6),
        augmentations=all_augmentations(0.5),
        sampling=Sampling(np.array([0, 1, 3, 5]), np.array([1.0, 2.0, 3.0, 1.0]), 8),
    )
    dataset.set_epoch(3)
    here = load(dataset, workers=0)
    assert sum(len(batch["id"]) for batch in here) == 8
    assert 0 < sum(int((batch["target"].max(dim=1).values < 1).sum()) for batch in here) < 8
    assert_same_items(here, load(dataset, workers=2))


LENGTHS = [58, 18, 48, 28, 38, 8]  # frames of the clips of `short`


def by_length(manifest, batch_length, train=False, **settings):
    return AudioDataset(manifest, INPUT, batch_length=batch_length, train=train, **settings)


def test_items_of_batches_by_length_are_not_padded(good, short):
    dataset = by_length(short, "longest")
    assert [dataset[index]["source"].shape for index in range(6)] == [(length, 128) for length in LENGTHS]
    assert by_length(good, "longest")[3]["source"].shape == (64, 128)  # a longer clip is cropped as ever


def test_a_batch_of_the_longest_clip_is_padded_as_a_fixed_one_is(short):
    fixed, dataset = by_length(short, "fixed"), by_length(short, "longest")
    batch = dataset.collate([dataset[1], dataset[3]])  # 18 and 28 frames: 32 is the next multiple of 16
    assert batch["source"].shape == (2, 32, 128)
    assert batch["lengths"].tolist() == [18, 28]
    expected = fixed.collate([fixed[1], fixed[3]])
    torch.testing.assert_close(batch["source"], expected["source"][:, :32])
    assert torch.equal(batch["padding_mask"], expected["padding_mask"][:, :32])
    assert batch["padding_mask"].sum(1).tolist() == [14, 4]


def test_a_batch_of_the_shortest_clip_is_cropped(short):
    dataset = by_length(short, "shortest")
    batch = dataset.collate([dataset[0], dataset[2]])  # 58 and 48 frames
    assert batch["source"].shape == (2, 48, 128)
    assert not batch["padding_mask"].any()
    assert torch.equal(batch["source"][0], dataset[0]["source"][5:53])  # its centre
    cropping = by_length(short, "shortest", train=True)
    starts = set()
    for epoch in range(8):
        cropping.set_epoch(epoch)
        item = cropping[0]
        cropped = cropping.collate([item, cropping[2]])["source"][0]
        assert torch.equal(cropped, cropping.collate([cropping[0], cropping[2]])["source"][0])
        (start,) = [at for at in range(11) if torch.equal(item["source"][at : at + 48], cropped)]
        starts.add(start)
    assert len(starts) > 3


def test_a_batch_is_at_least_one_patch_long(short):
    dataset = by_length(short, "shortest")
    batch = dataset.collate([dataset[5], dataset[0]])  # 8 and 58 frames
    assert batch["source"].shape == (2, 16, 128)
    assert batch["lengths"].tolist() == [8, 16]


def test_frames_are_told_from_the_manifest(good, short, monkeypatch):
    assert by_length(short, "longest").frames.tolist() == LENGTHS
    assert by_length(short, "fixed").frames.tolist() == [64] * 6
    assert by_length(good, "longest").frames.tolist() == [64, 28, 64, 64, 1, 64]
    with monkeypatch.context() as patch:  # headers are not read where all files have one rate
        patch.setattr(dataset_module, "read_rates", None)
        twice = by_length(short, "longest", manifest_rate=32_000)
        assert twice.frames.tolist() == [28, 8, 23, 13, 18, 3]
    drawn = training(short, batch_length="longest", sampling=Sampling(np.array([1, 4]), np.ones(2), 5, 1))
    for epoch in (1, 2):
        drawn.set_epoch(epoch)
        assert drawn.frames.tolist() == [len(drawn[index]["source"]) for index in range(5)]


@pytest.mark.parametrize("multiple", [1, 16])
def test_the_frames_told_are_those_of_the_items_at_any_sample_rate(tmp_path, multiple):
    rng = np.random.default_rng(0)
    rows = []
    for index, rate in enumerate([8_000, 11_025, 16_000, 22_050, 22_051, 44_100, 48_000, 96_000, 384_000]):
        for seconds in (0.2, 0.3137, 1.0):
            name = f"{index}-{seconds}.wav"
            soundfile.write(tmp_path / name, rng.normal(0, 0.1, int(rate * seconds)), rate)
            rows += [(name, int(rate * seconds)), (f"{name}:{rate // 10}:{rate // 15}", rate // 15)]
    content = (tmp_path / "6-0.2.wav").read_bytes()
    (tmp_path / "all.zip").write_bytes(b"head" + content)
    rows += [(f"all.zip:4:{len(content)}", 9_600), ("missing.wav", 8_000)]
    write_manifest(tmp_path / "train.tsv", tmp_path, rows)
    for batch_length in ("longest", "shortest"):
        manifest = Manifest.read(tmp_path / "train.tsv")
        dataset = by_length(manifest, batch_length, train=True, length_multiple=multiple, on_bad_audio="skip")
        items = [dataset[index] for index in range(len(dataset))]
        assert items[-1] is None and dataset.frames[-1] == 48  # the rate of a file that is not there is the model's
        assert dataset.frames[:-1].tolist() == [item["length"] for item in items[:-1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_length": "long"}, "batch_length is 'long', must be one of fixed, longest, shortest"),
        (
            {"batch_length": "longest", "length_multiple": 48},
            "target_length=64 is not a multiple of length_multiple=48",
        ),
        ({"batch_length": "shortest", "length_multiple": 0}, "length_multiple=0"),
    ],
)
def test_batch_lengths_that_make_no_sense(short, settings, message):
    with pytest.raises(ValueError, match=message):
        AudioDataset(short, INPUT, **settings)


WITH_IMAGE = replace(INPUT, image=ImageInput(size=16, training_crop="random", training_flip=True))


@pytest.fixture(scope="module")
def pairs(folder):
    """The six clips with pictures, each of its own grey, and a manifest in which the second picture is missing."""
    for index in range(6):
        Image.fromarray(np.full((20, 30), 40 * index, np.uint8)).save(folder / f"{index}.png")
    rows = [(f"{index}.flac", 16_000, f"{index}.png") for index in range(6)]
    write_manifest(folder / "pairs.tsv", folder, rows)
    write_manifest(folder / "bad_pairs.tsv", folder, [rows[0], (*rows[1][:2], "none.png"), *rows[2:]])
    return Manifest.read(folder / "pairs.tsv")


def grey(image):
    """The brightness of a picture by its normalised image."""
    return float(image[0].mean() * 0.229 + 0.485) * 255


@pytest.mark.parametrize("train", [False, True])
def test_pictures_come_with_the_sound_and_leave_it_as_it_is(pairs, train):
    settings = {"augmentations": all_augmentations(0.7), "train": train, "labels": one_class_each(6)}
    alone, both = (AudioDataset(pairs, model_input, **settings) for model_input in (INPUT, WITH_IMAGE))
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        both.set_epoch(epoch)
        items = [both[index] for index in range(6)]
        assert_same_items(
            [alone[index] for index in range(6)],
            [{key: value for key, value in item.items() if key != "image"} for item in items],
        )
        # A mixture has the picture of both clips, by the weights of the target.
        shares = torch.stack([item["target"] for item in items])
        expected = shares @ (40.0 * torch.arange(6))
        assert [grey(item["image"]) for item in items] == pytest.approx(expected.tolist(), abs=0.5)
        assert (shares.max(1).values < 1).any() == train
    batch = both.collate(items)
    assert batch["image"].shape == (6, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert "image" not in alone.collate([alone[0]])


def test_images_depend_on_seed_epoch_and_clip_alone(pairs, folder):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    write_manifest(folder / "noise.tsv", folder, [(f"{index}.flac", 16_000, "noise.png") for index in range(6)])
    manifest = Manifest.read(folder / "noise.tsv")
    runs = [
        torch.cat([batch["image"] for batch in load(training(manifest, WITH_IMAGE, seed=seed), workers)])
        for seed, workers in ((1, 0), (1, 2), (2, 0))
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert len({image.numpy().tobytes() for image in runs[0]}) == 6


def test_a_bad_picture_counts_as_a_bad_clip(pairs, folder, caplog):
    manifest = Manifest.read(folder / "bad_pairs.tsv")
    with pytest.raises(AudioError, match=r"cannot use .*none\.png: No such file"):
        load(AudioDataset(manifest, WITH_IMAGE), 0)
    dataset = AudioDataset(manifest, WITH_IMAGE, on_bad_audio="skip")
    with caplog.at_level(logging.WARNING):
        assert dataset[1] is None
    assert "skipped clip 1: cannot use" in caplog.text and "none.png" in caplog.text
    assert dataset.collate([dataset[index] for index in range(6)])["id"].tolist() == [0, 2, 3, 4, 5]
    mixed = mixing(manifest, model_input=WITH_IMAGE, on_bad_audio="skip")
    assert sum(mixed[index] is None for index in range(6)) > 0
    assert len(load(AudioDataset(manifest, INPUT), 0)) == 3  # whoever takes no picture does not read it


def test_a_model_that_takes_pictures_needs_them(good, pairs, monkeypatch):
    with pytest.raises(UserError, match=r"good\.tsv: lists no pictures; .*task.modalities"):
        AudioDataset(good, WITH_IMAGE)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"torchvision.*is not installed: pip install av pillow torchvision"):
        AudioDataset(pairs, WITH_IMAGE)


def test_the_frame_of_a_video_is_one_of_the_piece_that_is_heard(pairs, monkeypatch):
    asked = []

    def load_picture(picture, position, window):
        asked.append((position, window))
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(dataset_module, "load_picture", load_picture)
    seconds = WITH_IMAGE.samples / 16_000
    AudioDataset(pairs, WITH_IMAGE, crop_position=0.2, image_position=0.7)[3]
    assert asked == [(0.7, (seconds, 0.2))]
    asked.clear()
    dataset = training(pairs, WITH_IMAGE)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for index in range(6):
            dataset[index]
            assert asked[-1][1] == (seconds, np.random.default_rng(clip_seed(1, epoch, index)).random())
    assert {position for position, _ in asked} == {each / 10 for each in range(10)}
