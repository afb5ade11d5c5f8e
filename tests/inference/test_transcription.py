"""Texts of clips of any length: the windows of a long clip join without a seam, and words have their places."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_systems import AST, ENCODERS, INPUT_SAMPLES

from amae_plugin import load_model
from amae_plugin.data.log_mel import fit_length
from amae_plugin.data.transcripts import SPECIAL, Units
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import LongClip, open_waveform
from amae_plugin.inference.transcription import TimedWord, Transcription, join_paths
from amae_plugin.inference.windows import Windows

UNITS = Units("ltr", (*SPECIAL, "|", "a", "b", "c"), "letter")
KINDS = {"patches": (ENCODERS["audio_mae"], 4), "frames": (ENCODERS["mae_ast_frames"], 1), "overlapping": (AST, 2)}


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory, write_recogniser):
    """Paths of checkpoints of recognisers."""
    folder = tmp_path_factory.mktemp("recognisers")
    return {
        name: write_recogniser(folder / f"{name}.pt", UNITS.symbols[4:], encoder, sub_steps)
        for name, (encoder, sub_steps) in KINDS.items()
    }


@pytest.fixture(params=KINDS)
def recogniser(request, recognisers):
    return load_model(recognisers[request.param], device="cpu", batch_size=3)


def hear_levels(recogniser):
    """Let a recogniser's network tell the loudness of each column alone, as a unit.

    Such a network hears the same in a window as in the whole clip, so it takes a clip of any length in one pass.
    """
    network = recogniser.model

    def forward(source, padding_mask=None):
        (patch, _), (stride, _) = network.encoder.patch_size, network.encoder.patch_stride
        levels = source.mean(2).unfold(1, patch, stride).mean(2).repeat_interleave(network.config.sub_steps, dim=1)
        units = (levels * 50).floor().long() % len(UNITS)
        return {"log_probs": torch.nn.functional.one_hot(units, len(UNITS)).float().log_softmax(2)}

    network.forward = forward
    return forward


@pytest.mark.parametrize("samples", [INPUT_SAMPLES, INPUT_SAMPLES + 1, 40_000, 71_234])
def test_a_long_clip_in_windows_has_the_text_of_one_pass(recogniser, sound, samples):
    clip, forward = sound(samples), hear_levels(recogniser)
    found = recogniser.transcribe(clip, 16_000)
    log_mel = recogniser.input.front_end(torch.from_numpy(clip))
    steps = int(recogniser.model.steps(torch.tensor(len(log_mel))))
    stride = recogniser.encoder.patch_stride[0]
    whole = recogniser.input.normalize(fit_length(log_mel, len(log_mel) + 2 * stride))  # padding fills the last column
    path = forward(whole[None])["log_probs"][0].argmax(1)[:steps].numpy()
    step_seconds = stride * 0.01 / recogniser.model.config.sub_steps
    one_pass = Transcription.of_path(path, UNITS, step_seconds, samples / 16_000)
    assert found.text == one_pass.text and len(found.text) > 1
    assert [word.word for word in found.words] == [word.word for word in one_pass.words]
    np.testing.assert_allclose([w[1:] for w in found.words], [w[1:] for w in one_pass.words])


def test_texts_do_not_depend_on_the_batch_or_on_the_form_of_the_clip(recogniser, sound, tmp_path):
    clips = [sound(samples, seed) for seed, samples in enumerate((4_000, 30_000, INPUT_SAMPLES, 700))]
    alone = [recogniser.transcribe(clip, 16_000) for clip in clips]
    assert recogniser.transcribe(clips, 16_000) == alone
    assert any(len(found.words) > 1 for found in alone)
    soundfile.write(tmp_path / "a.wav", clips[1], 16_000, subtype="FLOAT")
    assert recogniser.transcribe(tmp_path / "a.wav") == alone[1]
    assert recogniser.transcribe([]) == []


def test_a_file_that_is_decoded_in_pieces_has_the_text_of_the_whole(recogniser, sound, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", sound(80_000), 16_000, subtype="FLOAT")
    whole = recogniser.transcribe(tmp_path / "a.wav")
    monkeypatch.setattr("amae_plugin.inference.clips._LONG_SECONDS", 1)
    monkeypatch.setattr("amae_plugin.inference.clips._PIECE_SECONDS", 1)
    assert isinstance(open_waveform(tmp_path / "a.wav", features=recogniser.input.front_end), LongClip)
    assert recogniser.transcribe(tmp_path / "a.wav") == whole
    assert len(whole.text) > 5


def test_a_clip_no_longer_than_the_input_has_the_text_of_validation(recogniser, sound):
    for samples in (700, 5_000, INPUT_SAMPLES):
        clip = sound(samples)
        log_mel = recogniser.input.front_end(torch.from_numpy(clip))
        source = recogniser.input.normalize(fit_length(log_mel, 64))
        with torch.no_grad():
            output = recogniser.model(source[None], padding_mask=(torch.arange(64) >= len(log_mel))[None])
        path = output["log_probs"][0, : int((~output["padding"]).sum())].argmax(1)
        assert recogniser.transcribe(clip, 16_000).text == Transcription.of_path(path.numpy(), UNITS, 1, 1e9).text


def test_words_have_their_places():
    path = np.array(
        [UNITS.index[symbol] for symbol in ("a", "b", "<s>", "b", "|", "<s>", "c", "c", "|", "|", "<s>", "a")]
    )
    found = Transcription.of_path(path, UNITS, 0.02, 0.23)
    assert found.text == "abb c a"
    assert found.words == [
        TimedWord("abb", 0.0, pytest.approx(0.08)),
        TimedWord("c", pytest.approx(0.12), pytest.approx(0.16)),
        TimedWord("a", pytest.approx(0.22), 0.23),
    ]
    assert Transcription.of_path(path, UNITS, 0.02, 0.2).words[-1] == ("a", 0.2, 0.2)
    assert Transcription.of_path(np.zeros(5, int), UNITS, 0.02, 1) == ("", [])


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_windows_that_err_near_their_edges_join_to_what_is_there(steps, width, sub_steps, seed):
    rng = np.random.default_rng(seed)
    windows = Windows.cover(steps, width, max(1, width // 2))
    truth = rng.integers(4, size=steps * sub_steps)
    starts = [start * sub_steps for start in windows.starts]
    paths = [truth[start : start + width * sub_steps].copy() for start in starts]
    overlaps = [before + width * sub_steps - after for before, after in itertools.pairwise(starts)]
    for wrong, path, after in zip((overlap // 4 for overlap in overlaps), paths, paths[1:]):
        path[len(path) - wrong :] = rng.integers(4, size=wrong)
        after[:wrong] = rng.integers(4, size=wrong)
    padded = (np.pad(path, (0, width * sub_steps - len(path)), constant_values=9) for path in paths)
    np.testing.assert_array_equal(join_paths(padded, windows, sub_steps), truth)


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        # Each window has the b's on its own side of the middle: a seam there would lose them, or have them twice.
        ("a.|.c.|...b.b.|", "a.|.c.|.b.b...|", "a.|.c.|.b.b...|"),
        ("a.|.c.|.b.b...|", "a.|.c.|...b.b.|", "a.|.c.|...b.b.|"),
        ("cccccccc", "aaaaaaaa", "ccccaaaa"),  # no agreement
    ],
)
def test_a_seam_lies_where_the_windows_agree(before, after, joined):
    path = {name: np.array([ord(letter) for letter in text]) for name, text in (("b", before), ("a", after))}
    windows = Windows(len(before) + 2, len(before) + 1, (0, 1))
    found = join_paths([np.append(0, path["b"]), np.append(path["a"], 0)], windows)
    assert "".join(map(chr, found[1:-1])) == joined


def test_models_that_transcribe_nothing(pretrained, classifiers, recognisers, sound):
    for path, kind in (
        (pretrained["audio_mae"], "a pretraining checkpoint"),
        (classifiers["audio_mae"], "a classifier"),
    ):
        with pytest.raises(UserError, match=kind):
            load_model(path, device="cpu").transcribe(sound(4_000), 16_000)
    model = load_model(recognisers["frames"], device="cpu")
    with pytest.raises(UserError, match="a recogniser"):
        model.predict(sound(4_000), 16_000)
    assert model.embed(sound(40_000), 16_000).shape == (32,)


def test_a_diverged_recogniser_is_refused(recognisers, sound):
    model = load_model(recognisers["frames"], device="cpu")
    torch.nn.init.constant_(model.model.head.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        model.transcribe(sound(4_000), 16_000)
