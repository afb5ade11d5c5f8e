"""Frozen features: how well simple classifiers tell clips apart by what a pretrained encoder gives, untouched."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from amae_plugin.data.labels import LABELS_NAME, Labels
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import load_all
from amae_plugin.inference.model import AudioModel
from amae_plugin.progress import tqdm

POOLING = "time_concat"
"""Of features by which systems are compared: what a mean over bands still tells depends on how much of its own band the
encoder has written into each token, so it would measure that instead."""
NEIGHBOURS = 10
"""Clips that vote in a k-NN, each with the inverse of its distance."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C, the inverse weight of a linear probe's L2 penalty, among which ``valid`` chooses."""
_MAX_ITERATIONS = 1000


class Examples(NamedTuple):
    """Features of the N clips of a split.

    Attributes:
        features: (N, D) float32.
        targets: classes of the clips, (N,) int32.
    """

    features: np.ndarray
    targets: np.ndarray


def embed_split(model: AudioModel, data: Path, split: str, workers: int = 0) -> Examples:
    """Embed each clip of a split as a whole, as :meth:`AudioModel.embed` does, in batches of the model's size.

    Args:
        model: model in whose features the clips are described.
        data: folder of ``<split>.tsv``, ``<split>.lbl`` and ``labels.txt``; a clip has one label.
        split: name of the split.
        workers: number of processes that decode; with 0, this one does.

    Raises:
        UserError: a file is missing or malformed, there are no clips, a clip cannot be decoded, or a value of the model
            is not finite.
    """
    manifest = Manifest.read(data / f"{split}.tsv").require_clips()
    labels = Labels.read(data / f"{split}.lbl", data / LABELS_NAME, len(manifest))
    embeddings = model.embeddings(load_all(manifest, model.sample_rate, workers), timestamps=False)
    bar = tqdm(embeddings, desc=f"features of {split}", total=len(manifest), unit="clip")
    return Examples(np.stack([embedding.clip.numpy() for embedding in bar]), labels.ids)


def nearest_neighbours(train: Examples) -> Pipeline:
    """Fit a k-NN by the cosine of standardised features."""
    votes = KNeighborsClassifier(min(NEIGHBOURS, len(train.targets)), weights="distance", metric="cosine")
    return make_pipeline(StandardScaler(), votes).fit(*train)


def linear_probe(train: Examples, valid: Examples) -> Pipeline:
    """Fit a logistic regression on standardised features, with the best of :data:`STRENGTHS` on *valid*.

    Of equal strengths, the strongest penalty is taken.

    Raises:
        UserError: all clips of *train* have the same label.
    """
    if len(np.unique(train.targets)) < 2:
        raise UserError("a linear probe needs training clips of two classes or more, and there is one")
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)).fit(*train)
        for strength in STRENGTHS
    ]
    return max(probes, key=lambda probe: probe.score(*valid))


def frozen_accuracies(train: Examples, valid: Examples, test: Examples) -> dict[str, float]:
    """Measure the accuracy of each probe on *test*, in [0, 1].

    Raises:
        UserError: see :func:`linear_probe`.
    """
    probes = {"k-NN": nearest_neighbours(train), "linear probe": linear_probe(train, valid)}
    return {name: float(probe.score(*test)) for name, probe in probes.items()}
