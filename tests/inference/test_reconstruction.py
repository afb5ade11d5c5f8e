"""Clips of any length with a part hidden, for every system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_systems import ENCODERS

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import FLOOR, LogMel
from amae_plugin.errors import UserError
from amae_plugin.inference.reconstruction import Reconstruction, Reconstructor, make_audible

WINDOW = 64  # frames of the checkpoints' input
SYSTEMS: dict[str, dict[str, Any]] = {
    **{name: settings for name, settings in ENCODERS.items() if name != "eat"},  # which draws nothing
    "audio_mae_raw_targets": {**ENCODERS["audio_mae"], "norm_pix_loss": False},
    "mae_ast_spans": {**ENCODERS["mae_ast_frames"], "masking": "span", "mask_length": 5},
}


@pytest.fixture(params=SYSTEMS)
def checkpoint(request: pytest.FixtureRequest, write_checkpoint: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    return Checkpoint.read(write_checkpoint(tmp_path / "model.pt", None, encoder=SYSTEMS[request.param]))


@pytest.fixture
def audio_mae(write_checkpoint: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    return Checkpoint.read(write_checkpoint(tmp_path / "model.pt", None))


def noise(frames: int) -> torch.Tensor:
    """A waveform of so many frames, and a few samples that are in none."""
    return 0.1 * torch.randn(LogMel().samples_for(frames) + 77, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", [1, 30, WINDOW, WINDOW + 1, 3 * WINDOW + 20])
def test_clips_of_any_length(checkpoint: Checkpoint, frames: int) -> None:
    reconstructor = Reconstructor(checkpoint)
    waveform = noise(frames)
    shown = reconstructor(waveform)
    assert torch.equal(shown.original, reconstructor.input.front_end(waveform)) and len(shown.original) == frames
    assert shown.hidden.shape == shown.reconstructed.shape == shown.original.shape
    assert torch.equal(shown.reconstructed[~shown.hidden], shown.original[~shown.hidden])
    changed = shown.reconstructed[shown.hidden] - shown.original[shown.hidden]
    assert (changed.abs() > 1e-6).float().mean() > 0.99 or not len(changed)
    assert torch.equal(shown.masked, torch.where(shown.hidden, FLOOR, shown.original))
    assert shown.windows == -(-frames // WINDOW)


def test_a_window_is_what_the_model_itself_gives(checkpoint: Checkpoint) -> None:
    reconstructor = Reconstructor(checkpoint, strategy="time", mask_ratio=0.5)
    shown = reconstructor(noise(WINDOW))
    steps = shown.hidden.all(dim=1)
    assert torch.equal(shown.hidden, steps[:, None].expand_as(shown.hidden)) and steps.float().mean() == 0.5
    model = checkpoint.model()
    patch_time, patch_bands = model.encoder.patch_size
    grid = (WINDOW // patch_time, 64 // patch_bands)
    mask = steps[::patch_time].repeat_interleave(grid[1])[None]
    source = checkpoint.input.normalize(shown.original)[None]
    with torch.no_grad():
        drawn = model.reconstruct(source, model(source, mask)["prediction"], mask)[0]
    expected = checkpoint.input.denormalize(drawn)
    torch.testing.assert_close(shown.reconstructed, expected, atol=1e-4, rtol=1e-4)


def test_bands_are_hidden_at_all_times(checkpoint: Checkpoint) -> None:
    shown = Reconstructor(checkpoint, strategy="frequency", mask_ratio=0.5)(noise(2 * WINDOW))
    for window in shown.hidden.split(WINDOW):
        bands = window.all(dim=0)
        assert torch.equal(window, bands.expand_as(window))
        whole_bands = checkpoint.model_settings.get("patch_size", (16, 16))[1] == 64
        assert bands.float().mean() == (0.0 if whole_bands else 0.5)


@pytest.mark.parametrize(("ratio", "share"), [(None, 0.8125), (0.5, 0.5), (0.25, 0.25)])
def test_share_that_is_hidden(audio_mae: Checkpoint, ratio: float | None, share: float) -> None:
    shown = Reconstructor(audio_mae, mask_ratio=ratio)(noise(2 * WINDOW))
    assert [float(window.float().mean()) for window in shown.hidden.split(WINDOW)] == [share, share]


def test_masks_depend_on_seed_and_window_alone(audio_mae: Checkpoint) -> None:
    long = Reconstructor(audio_mae, seed=3)(noise(3 * WINDOW)).hidden
    assert torch.equal(long[:WINDOW], Reconstructor(audio_mae, seed=3)(noise(WINDOW)).hidden)
    assert torch.equal(long, Reconstructor(audio_mae, seed=3, batch_size=1)(noise(3 * WINDOW)).hidden)
    assert not torch.equal(long[:WINDOW], long[WINDOW : 2 * WINDOW])
    assert not torch.equal(long, Reconstructor(audio_mae, seed=4)(noise(3 * WINDOW)).hidden)


def test_nothing_of_what_is_hidden_is_used(checkpoint: Checkpoint) -> None:
    one, other = noise(WINDOW), noise(WINDOW)
    other[LogMel().samples_for(48) :] *= 30  # in frames from the 48th on
    reconstructor = Reconstructor(checkpoint, strategy="time", mask_ratio=0.9)
    # else all frames have part in the mean
    while not (before := reconstructor(one)).hidden[48:].all():
        reconstructor.seed += 1
    after = reconstructor(other)
    assert (after.original[48:] - before.original[48:]).mean() > 6
    torch.testing.assert_close(after.reconstructed[after.hidden], before.reconstructed[before.hidden])


def test_sounds_share_one_gain_and_the_hidden_part_is_silent() -> None:
    features = LogMel()
    waveform = noise(200)
    original = features(waveform)
    hidden = torch.zeros_like(original, dtype=torch.bool)
    hidden[100:] = True
    shown = Reconstruction(original, hidden, original + 2.0 * hidden, 1)
    sounds = [sound[5:] for sound in make_audible(shown, features, len(waveform))]
    assert max(float(sound.abs().max()) for sound in sounds) == pytest.approx(0.9)
    first, last = slice(1600, 14_000), slice(18_000, 31_000)
    rms = [[float(sound[part].square().mean().sqrt()) for part in (first, last)] for sound in sounds]
    assert rms[1][0] == pytest.approx(rms[0][0], rel=0.1) and rms[2][0] == pytest.approx(rms[0][0], rel=0.1)
    assert rms[1][1] < 1e-3 * rms[0][1]
    assert rms[2][1] == pytest.approx(2.718 * rms[0][1], rel=0.1)  # 2 nepers of power


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "stripes"}, "--strategy stripes: no masking strategy is called 'stripes'; there are: random,"),
        ({"strategy": ""}, "--strategy : no masking strategy is called ''"),
        ({"mask_ratio": 0.0}, "--mask-ratio 0: the hidden share must be above 0 and below 1"),
        ({"mask_ratio": 1.0}, "--mask-ratio 1: the hidden share must be above 0 and below 1"),
        ({"mask_ratio": float("nan")}, "--mask-ratio nan: the hidden share"),
    ],
)
def test_masks_that_there_are_not(audio_mae: Checkpoint, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Reconstructor(audio_mae, **options)


def test_models_that_cannot_reconstruct(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    classifier = Checkpoint.read(write_checkpoint(tmp_path / "classifier.pt", ["a", "b"]))
    with pytest.raises(UserError, match=r"classifier\.pt: a classifier, so it has no decoder to reconstruct with"):
        Reconstructor(classifier)
    settings = {**ENCODERS["mae_ast"], "reconstruction_weight": 0.0}
    blind = Checkpoint.read(write_checkpoint(tmp_path / "blind.pt", None, encoder=settings))
    with pytest.raises(UserError, match=r"blind\.pt: the model was trained without reconstruction"):
        Reconstructor(blind)
    whole = Checkpoint.read(write_checkpoint(tmp_path / "encoder.pt", None))
    lacking = {"conversion": {"initialised": [name for name in whole.state if name.startswith("decoder.")]}}
    with pytest.raises(
        UserError, match=r"encoder\.pt: would draw noise, .* lacks decoder\.mask_token and \d+ more tensors"
    ):
        Reconstructor(replace(whole, extra_state=lacking))


def test_a_model_that_diverged(audio_mae: Checkpoint) -> None:
    reconstructor = Reconstructor(audio_mae)
    with torch.no_grad():
        next(reconstructor.model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite numbers.*; its training diverged"):
        reconstructor(noise(WINDOW))
