"""Small models of every system, as checkpoints on disk."""

from __future__ import annotations

import numpy as np
import pytest
from small_systems import AST, ENCODERS


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, write_checkpoint):
    """Paths of pretraining checkpoints, by system."""
    folder = tmp_path_factory.mktemp("pretrained")
    return {name: write_checkpoint(folder / f"{name}.pt", None, encoder=encoder) for name, encoder in ENCODERS.items()}


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory, write_checkpoint):
    """Paths of checkpoints of classifiers of three classes, by system; ``ast`` has overlapping patches."""
    folder = tmp_path_factory.mktemp("classifiers")
    kinds = {name: (encoder, "mean") for name, encoder in ENCODERS.items()}
    kinds |= {"ast": (AST, "avgcls"), "audio_mae_cls": (ENCODERS["audio_mae"], "cls")}
    return {
        name: write_checkpoint(
            folder / f"{name}.pt", ["bark", "meow", "moo"], loss="cross_entropy", encoder=encoder, pooling=pooling
        )
        for name, (encoder, pooling) in kinds.items()
    }


@pytest.fixture(scope="session")
def sound():
    """Makes clips whose pitch and loudness change all the time; no two parts of one are alike."""

    def make(samples, seed=0):
        rng = np.random.default_rng(seed)
        time = np.arange(samples) / 16_000
        pitch = np.cumsum(np.interp(time, np.arange(0, 20, 0.1), rng.uniform(100, 5000, 200))) / 16_000
        loudness = np.interp(time, np.arange(0, 20, 0.1), rng.uniform(0.02, 0.5, 200))
        return (loudness * np.sin(2 * np.pi * pitch) + rng.normal(0, 0.005, samples)).astype(np.float32)

    return make
