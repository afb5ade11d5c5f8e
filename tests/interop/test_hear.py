"""HEAR's interface gives what the model gives, in HEAR's types and units."""

from __future__ import annotations

import pytest
import torch

from amae_plugin import load_model
from amae_plugin.errors import UserError
from amae_plugin.interop import hear


@pytest.fixture(scope="module", params=["pretraining", "classifier"])
def path(request, tmp_path_factory, write_checkpoint):
    classes = None if request.param == "pretraining" else ["a", "b", "c"]
    return str(write_checkpoint(tmp_path_factory.mktemp("hear") / "x.pt", classes))


def test_embeddings(path):
    model = hear.load_model(path)
    assert isinstance(model, torch.nn.Module)
    assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (16_000, 32, 32)
    audio = torch.rand(3, 24_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scenes = hear.get_scene_embeddings(audio, model)
    steps, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert scenes.dtype == steps.dtype == timestamps.dtype == torch.float32
    assert scenes.shape == (3, 32)
    assert steps.shape == (3, 10, 32)
    assert timestamps.shape == (3, 10)
    ours = load_model(path, device="cpu")
    for clip, scene, of_clip, times in zip(audio, scenes, steps, timestamps):
        torch.testing.assert_close(scene, ours.embed(clip, 16_000))
        expected, seconds = ours.embed_timestamps(clip, 16_000)
        torch.testing.assert_close(of_clip, expected)
        torch.testing.assert_close(times, seconds.float() * 1000)
    assert times[:2].tolist() == pytest.approx([87.5, 247.5])


def test_silence_in_a_data_set_is_embedded(path):
    assert hear.get_scene_embeddings(torch.zeros(2, 16_000), hear.load_model(path)).isfinite().all()


def test_integers_are_scaled_and_other_scales_refused(path):
    model, audio = hear.load_model(path), torch.rand(2, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    integers = (audio * 32768).short()
    expected = hear.get_scene_embeddings(integers / 32768, model)
    torch.testing.assert_close(hear.get_scene_embeddings(integers, model), expected)
    for samples in (integers.long(), integers.float()):
        for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
            with pytest.raises(UserError, match=r"audio\[0\]: its samples .* full scale"):
                function(samples, model)
