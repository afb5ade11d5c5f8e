"""Each clip goes through the model once, or in as many pieces as were asked for."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.log_mel import LogMel, ModelInput
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Options, score_clips
from amae_plugin.inference.windows import piece_positions

# Seconds and rate: 0.655 s are what the model takes. Clip 1 has fewer samples than that and is longer, clip 2 has more
# and is shorter.
CLIPS = [((), 0.4, 16_000), ((), 0.9, 8_000), ((), 0.6, 44_100), ((), 1.5, 16_000), ((), 1.0, 16_000)]
LONGER = [1, 3, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, write_checkpoint):
    return Checkpoint.read(write_checkpoint(tmp_path_factory.mktemp("run") / "last.pt", ["a", "b", "c"]))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, write_split):
    return Manifest.read(write_split(tmp_path_factory.mktemp("clips"), CLIPS) / "test.tsv")


def options(**values):
    return Options(**{"batch_size": 2, "device": "cpu", "progress": False, **values})


class Counting:
    """Logits, with the sizes of the batches that they were asked for."""

    def __init__(self):
        self.batches = []

    def __call__(self, model, inputs):
        assert not model.training
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(inputs["source"]))
        return model(inputs["source"])["logits"]


def directly(checkpoint, manifest, clip, position):
    """The logits of one piece of a clip."""
    model_input = ModelInput(LogMel(num_mel_bins=64), target_length=64, mean=-6.0, std=4.0)
    dataset = AudioDataset(manifest, model_input, crop_position=position)
    with torch.no_grad():
        return checkpoint.model()(dataset[clip]["source"][None])["logits"][0].double().numpy()


def test_each_clip_is_scored_once_at_its_centre(checkpoint, manifest):
    logits = Counting()
    scored = score_clips(checkpoint, manifest, logits, options())
    assert logits.batches == [2, 2, 1]
    assert scored.clips.tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(scored.longer).tolist() == LONGER
    expected = [directly(checkpoint, manifest, clip, 0.5) for clip in range(5)]
    np.testing.assert_allclose(scored.values, expected, atol=1e-5)
    assert np.ptp(scored.values, axis=0).min() > 0.01  # the clips do not sound alike to this model


@pytest.mark.parametrize("workers", [0, 1])
def test_longer_clips_are_averaged_over_pieces_and_others_are_not_computed_again(checkpoint, manifest, workers):
    logits = Counting()
    scored = score_clips(checkpoint, manifest, logits, options(crops=3, workers=workers))
    assert sum(logits.batches) == 5 + 2 * len(LONGER)
    assert np.flatnonzero(scored.longer).tolist() == LONGER
    for clip in range(5):
        positions = (0.0, 0.5, 1.0) if clip in LONGER else (0.5,)
        expected = np.mean([directly(checkpoint, manifest, clip, position) for position in positions], axis=0)
        np.testing.assert_allclose(scored.values[clip], expected, atol=1e-5)
    centre = score_clips(checkpoint, manifest, logits, options()).values
    assert (np.abs(scored.values - centre).max(axis=1) > 1e-3).tolist() == [False, True, False, True, True]


def test_a_clip_that_just_fits_has_the_same_values_in_pieces(checkpoint, tmp_path, write_split):
    manifest = Manifest.read(write_split(tmp_path, [((), 10_480 / 16_000, 16_000)]) / "test.tsv")
    assert manifest.sizes.tolist() == [LogMel().samples_for(64)]
    one, three = (score_clips(checkpoint, manifest, Counting(), options(crops=crops)) for crops in (1, 3))
    np.testing.assert_allclose(one.values, three.values, rtol=1e-12)


def test_two_pieces_are_the_beginning_and_the_end():
    assert piece_positions(2) == [0.0, 1.0]
    assert piece_positions(5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_some_of_the_clips(checkpoint, manifest):
    logits = Counting()
    scored = score_clips(checkpoint, manifest, logits, options(crops=2), clips=np.array([2, 3]))
    assert scored.clips.tolist() == [2, 3]
    assert scored.longer.tolist() == [False, True]
    assert sum(logits.batches) == 3
    np.testing.assert_allclose(scored.values[0], directly(checkpoint, manifest, 2, 0.5), atol=1e-5)


@pytest.fixture
def damaged(tmp_path, write_split):
    """Clip 1 cannot be decoded, and the last sample of clip 2 is not a number."""
    write_split(tmp_path, [((), 0.4, 16_000), ((), 0.4, 16_000), ((), 4.0, 16_000), ((), 1.0, 16_000)])
    (tmp_path / "1.flac").write_bytes(b"fLaC" + b"broken" * 100)
    samples, rate = soundfile.read(tmp_path / "2.flac", dtype="float32")
    samples[-1] = np.nan
    soundfile.write(tmp_path / "2.flac", samples, rate, format="WAV", subtype="FLOAT")
    return Manifest.read(tmp_path / "test.tsv")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_decoded_stops_with_its_name(checkpoint, damaged, workers):
    with pytest.raises(UserError) as caught:
        score_clips(checkpoint, damaged, Counting(), options(workers=workers))
    message = str(caught.value)
    assert "1.flac: " in message
    assert "--skip-bad-audio" in message
    assert "Traceback" not in message


def test_bad_clips_are_left_out_even_if_only_one_piece_is_bad(checkpoint, damaged):
    one = score_clips(checkpoint, damaged, Counting(), options(skip_bad_audio=True))
    assert (one.clips.tolist(), list(one.skipped)) == ([0, 2, 3], [1])
    two = score_clips(checkpoint, damaged, Counting(), options(skip_bad_audio=True, crops=2))
    assert (two.clips.tolist(), sorted(two.skipped)) == ([0, 3], [1, 2])
    assert two.longer.tolist() == [False, True]
    assert all(reason and "cannot use" not in reason for reason in two.skipped.values())


def test_nothing_is_left_of_bad_clips_alone(checkpoint, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"broken" * 100)
    write_manifest(tmp_path / "test.tsv", ".", [("bad.wav", 100)] * 3)
    manifest = Manifest.read(tmp_path / "test.tsv")
    with pytest.raises(UserError, match=r"test.tsv: no clip can be decoded; the first one, bad.wav: "):
        score_clips(checkpoint, manifest, Counting(), options(skip_bad_audio=True))


def test_an_empty_manifest_is_refused(checkpoint, tmp_path):
    write_manifest(tmp_path / "test.tsv", ".", [])
    with pytest.raises(UserError, match=r"test\.tsv: holds no clips"):
        score_clips(checkpoint, Manifest.read(tmp_path / "test.tsv"), Counting(), options())


def test_values_that_are_not_finite_are_refused(tmp_path, manifest, write_checkpoint):
    path = write_checkpoint(tmp_path / "last.pt", ["a", "b"])
    content = torch.load(path)
    content["model"]["head.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"last\.pt: .* not finite numbers for 5 of 5 inputs; its training diverged"):
        score_clips(Checkpoint.read(path), manifest, Counting(), options())


def test_a_missing_setting_is_named(tmp_path, manifest, write_checkpoint):
    path = write_checkpoint(tmp_path / "last.pt", ["a", "b"])
    content = torch.load(path)
    del content["cfg"]["task"]["std"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"last\.pt: its settings lack task\.std"):
        score_clips(Checkpoint.read(path), manifest, Counting(), options())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_an_error_only_if_asked_for(checkpoint, manifest):
    score_clips(checkpoint, manifest, Counting(), options(device="auto"))
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"device {name}: PyTorch finds no such GPU"):
            score_clips(checkpoint, manifest, Counting(), options(device=name))
    with pytest.raises(UserError, match="device tpu: must be auto, cpu, cuda or cuda:N"):
        score_clips(checkpoint, manifest, Counting(), options(device="tpu"))


@pytest.mark.parametrize("values", [{"crops": 0}, {"batch_size": 0}, {"workers": -1}])
def test_impossible_options_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        Options(**values)


def test_scores_are_averaged_over_frames_of_videos(tmp_path, write_split, write_checkpoint, seeing):
    write_split(tmp_path, [((), 0.5, 16_000), ((), 0.9, 16_000)], pictures=["video.mkv"] * 2)
    with av.open(str(tmp_path / "video.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for brightness in (0, 80, 160, 240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), brightness, np.uint8))))
        container.mux(stream.encode(None))
    encoder = {**seeing, "modalities": ["audio", "image"]}
    path = write_checkpoint(tmp_path / "last.pt", ["a", "b"], encoder=encoder, pooling="avgtok")
    checkpoint, manifest = Checkpoint.read(path), Manifest.read(tmp_path / "test.tsv")

    def logits(model, inputs):
        return model(**inputs)["logits"]

    two = score_clips(checkpoint, manifest, logits, options(frames=2))
    first, middle = (
        AudioDataset(manifest, checkpoint.input, image_position=position)[0]["image"] for position in (0.0, 0.5)
    )
    assert middle.mean() > first.mean() + 1
    item, model = AudioDataset(manifest, checkpoint.input)[0], checkpoint.model()
    with torch.no_grad():
        expected = [model(item["source"][None], image=image[None])["logits"][0] for image in (first, middle)]
        alone = model(item["source"][None])["logits"][0], model(image=item["image"][None])["logits"][0]
    np.testing.assert_allclose(two.values[0], torch.stack(expected).mean(dim=0), atol=1e-5)
    assert score_clips(checkpoint, manifest, logits, options(frames=2, crops=3)).longer.tolist() == [False, True]
    for modality, values in zip(("audio", "image"), alone):
        given = score_clips(checkpoint, manifest, logits, options(modalities=[modality]))
        np.testing.assert_allclose(given.values[0], values, atol=1e-5)
        assert given.longer.tolist() == [False, modality == "audio"]
    with pytest.raises(UserError, match=r"--frames 2: .* is given no pictures"):
        score_clips(checkpoint, manifest, logits, options(frames=2, modalities=["audio"]))


def test_a_model_of_sounds_is_not_given_pictures(checkpoint, manifest):
    with pytest.raises(UserError, match="takes audio of a clip, not image"):
        score_clips(checkpoint, manifest, Counting(), options(modalities=["image"]))
    with pytest.raises(UserError, match="--frames 3"):
        score_clips(checkpoint, manifest, Counting(), options(frames=3))
