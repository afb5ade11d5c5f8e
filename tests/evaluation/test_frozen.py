"""Probes of frozen features, whose right answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from amae_plugin.errors import UserError
from amae_plugin.evaluation.frozen import (
    STRENGTHS,
    Examples,
    embed_split,
    frozen_accuracies,
    linear_probe,
    nearest_neighbours,
)
from amae_plugin.inference.model import load_model

CLASSES = ("a", "b", "c")


def clusters(clips: int, seed: int, noise: float = 0.1, shuffled: bool = False) -> Examples:
    """Three directions; one feature is a million times as large as the others and says nothing, another is constant."""
    rng = np.random.default_rng(seed)
    targets = np.arange(clips, dtype=np.int32) % 3
    features = np.eye(3)[targets] + noise * rng.standard_normal((clips, 3))
    loud, constant = 1e6 * rng.standard_normal((clips, 1)), np.full((clips, 1), 7.0)
    features = np.concatenate([features, loud, constant], axis=1).astype(np.float32)
    return Examples(features, rng.permutation(targets) if shuffled else targets)


def test_classes_that_lie_apart_are_told_apart_whatever_the_scale_of_the_features() -> None:
    splits = [clusters(clips, seed) for seed, clips in enumerate((90, 30, 30))]
    assert frozen_accuracies(*splits) == {"k-NN": 1.0, "linear probe": 1.0}


def test_features_that_say_nothing_give_chance() -> None:
    train, valid, test = (clusters(clips, seed, shuffled=True) for seed, clips in enumerate((300, 300, 600)))
    for accuracy in frozen_accuracies(train, valid, test).values():
        assert accuracy == pytest.approx(1 / 3, abs=0.1)


def test_a_linear_probe_draws_straight_lines_and_neighbours_any() -> None:
    rng = np.random.default_rng(0)

    def exclusive_or(clips: int) -> Examples:
        features = rng.choice([-1.0, 1.0], (clips, 2)) + 0.1 * rng.standard_normal((clips, 2))
        return Examples(features.astype(np.float32), (features[:, 0] * features[:, 1] > 0).astype(np.int32))

    train, valid, test = (exclusive_or(clips) for clips in (200, 200, 400))
    accuracies = frozen_accuracies(train, valid, test)
    assert accuracies["k-NN"] == 1.0
    assert accuracies["linear probe"] < 0.8


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_validation_split_chooses_the_penalty(strength: float) -> None:
    rng = np.random.default_rng(0)
    train = Examples(rng.standard_normal((60, 20), np.float32), rng.integers(0, 3, 60, np.int32))
    features = rng.standard_normal((2000, 20), np.float32)
    penalised = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(*train)
    probe = linear_probe(train, Examples(features, penalised.predict(features)))
    np.testing.assert_array_equal(probe.predict(features), penalised.predict(features))
    assert strength == probe[-1].C


def test_neighbours_of_fewer_clips_than_vote() -> None:
    few = Examples(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32))
    assert nearest_neighbours(few).predict(few.features).tolist() == [0, 1, 2]


def test_one_class_is_nothing_to_tell_apart() -> None:
    one = Examples(np.eye(3, dtype=np.float32), np.zeros(3, np.int32))
    with pytest.raises(UserError, match="two classes or more, and there is one"):
        linear_probe(one, one)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_features_are_the_embeddings_of_whole_clips(tmp_path, write_checkpoint, write_split, workers) -> None:
    model = load_model(write_checkpoint(tmp_path / "last.pt", None), "cpu", batch_size=4)
    clips = [(["b"], 0.4, 16_000), (["a"], 2.0, 8_000), (["c"], 0.655, 16_000)]
    data = write_split(tmp_path / "clips", clips, CLASSES)
    examples = embed_split(model, data, "test", workers)
    assert examples.targets.tolist() == [1, 0, 2]
    assert examples.features.shape == (3, model.embed_dim)
    expected = model.embed([data / f"{index}.flac" for index in range(3)])
    torch.testing.assert_close(torch.from_numpy(examples.features), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_decoded_is_named(tmp_path, write_checkpoint, write_split, workers) -> None:
    model = load_model(write_checkpoint(tmp_path / "last.pt", None), "cpu")
    data = write_split(tmp_path / "clips", [(["a"], 0.4, 16_000), (["b"], 0.4, 16_000)], CLASSES)
    (data / "1.flac").write_bytes(b"fLaC" + b"broken" * 100)
    with pytest.raises(UserError, match=r"1\.flac"):
        embed_split(model, data, "test", workers)
