"""Frozen features, layer by layer: which layer of an encoder tells clips apart best, and how well all do together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from amae_plugin.data.labels import LABELS_NAME, Labels
from amae_plugin.data.manifest import Clip, Manifest
from amae_plugin.data.sampling import class_subset
from amae_plugin.data.trials import Trials
from amae_plugin.evaluation.frozen import NEIGHBOURS, STRENGTHS, Examples, linear_probe, nearest_neighbours
from amae_plugin.evaluation.scoring import require_directions
from amae_plugin.evaluation.tables import Table
from amae_plugin.inference.clips import SizedItems, load_all
from amae_plugin.inference.model import AudioModel
from amae_plugin.metrics.classification import multi_label
from amae_plugin.metrics.verification import cosine_scores, equal_error_rate
from amae_plugin.progress import tqdm

_SPLITS = ("train", "valid", "test")
_MAX_ITERATIONS = 300
_SEED = 1
"""Of the clips that a k-NN during training takes: runs that differ in their own seed are measured alike."""


@dataclass(frozen=True)
class Probing:
    """Results of the probes of L layers on a split.

    Attributes:
        checkpoint: checkpoint file.
        data: folder of manifests.
        clips: number of clips of ``test``.
        measure: what the values are: ``accuracy``, or ``mAP`` if clips have several labels.
        values: values in [0, 1] of each layer, (L,) float64, by probe: ``k-NN``, ``linear probe``.
        weighted: value of the probe that weighs the layers.
        weights: its weights, (L,) float64, which add up to 1.
        equal_error_rates: equal error rate of each layer on the folder's trials, (L,) float64; None without trials.
        features: features of each layer for the N clips of ``test``, (N, L, D) float32.
        labels: class of each of these clips; None if clips have several.
    """

    checkpoint: Path
    data: Path
    clips: int
    measure: str
    values: dict[str, np.ndarray]
    weighted: float
    weights: np.ndarray
    equal_error_rates: np.ndarray | None
    features: np.ndarray
    labels: tuple[str, ...] | None

    @property
    def table(self) -> Table:
        """A row for each layer."""
        columns = {f"{name}, {self.measure}": values for name, values in self.values.items()}
        columns["weight"] = self.weights
        if self.equal_error_rates is not None:
            columns["equal error rate"] = self.equal_error_rates
        rows = [(str(layer), *(f"{value:.4f}" for value in row)) for layer, row in enumerate(zip(*columns.values()))]
        blanks = [""] * (len(columns) - len(self.values) - 1)
        all_layers = [("all, weighted", "", f"{self.weighted:.4f}", "1.0000", *blanks)]
        return Table(("layer", *columns), [*rows, *all_layers])

    @property
    def as_json(self) -> dict[str, object]:
        """Everything, in JSON's types."""
        rates = self.equal_error_rates
        return {
            "checkpoint": str(self.checkpoint.absolute()),
            "data": str(self.data.absolute()),
            "clips": self.clips,
            "measure": self.measure,
            "layers": {name: values.tolist() for name, values in self.values.items()},
            "weighted": {"value": self.weighted, "weights": self.weights.tolist()},
            "equal_error_rates": None if rates is None else rates.tolist(),
        }


def probe(model: AudioModel, data: Path, workers: int = 0) -> Probing:
    """Fit probes of each layer's features, means over whole clips, on ``train``, and measure them on ``test``.

    The strength of a linear probe's penalty is the best of :data:`STRENGTHS` on ``valid``. The weighted probe is a
    linear one of a weighted mean of all layers, whose weights are trained with it (SUPERB, Yang et al. 2021, section
    2.2). Layer 0 is the input of the first block, layer i the output of block i, and the last one the encoder's output.

    Args:
        model: model whose features are probed.
        data: folder of ``train``, ``valid`` and ``test``, with labels; and of ``trials.tsv`` and ``trials.txt``, if
            there are trials to verify.
        workers: number of processes that decode; with 0, this one does.

    Raises:
        UserError: a file is missing or malformed, all clips of ``train`` have the same label, a clip cannot be decoded,
            the trials are of one kind only, or the features of a clip of theirs are all 0, or a value of the model is
            not finite.
    """
    manifests, labels, several = _read(data, _SPLITS)
    trials = data / "trials.txt"
    pairs = None
    if trials.exists():
        pairs = Trials.read(trials, trial_clips := Manifest.read(data / "trials.tsv")).require_both_kinds(trials)
    splits = [
        Examples(_layers(model, manifest, split, workers), _targets(each, several, np.arange(len(each))))
        for manifest, each, split in zip(manifests, labels, _SPLITS)
    ]
    rates = None
    if pairs is not None:
        features = _layers(model, trial_clips, "trials", workers).swapaxes(0, 1)
        for each in features:
            require_directions(model.checkpoint, trial_clips, np.arange(len(trial_clips)), each)
        rates = np.array([equal_error_rate(cosine_scores(each, pairs.pairs), pairs.same) for each in features])
    layers = tqdm(range(model.num_layers), desc="probes", unit="layer")
    by_layer = np.array([_one_layer([_of_layer(split, layer) for split in splits], several) for layer in layers])
    weighted, weights = _weighted(splits, several)
    return Probing(
        checkpoint=model.checkpoint.path,
        data=data,
        clips=len(splits[-1].targets),
        measure=_measure(several),
        values={"k-NN": by_layer[:, 0], "linear probe": by_layer[:, 1]},
        weighted=weighted,
        weights=weights,
        equal_error_rates=rates,
        features=splits[-1].features,
        labels=None if several else tuple(labels[-1].names[index] for index in labels[-1].ids),
    )


@dataclass(frozen=True)
class NeighbourProbe:
    """k-NN of an encoder's output, quick enough to be repeated while the encoder trains. Made by :meth:`read`.

    With all clips, its value is the one that :func:`probe` finds for the last layer, with ``valid`` in place of
    ``test``.

    Attributes:
        train: clips that vote, and their targets.
        valid: clips that are told apart, and their targets.
        several: whether clips have several labels.
    """

    train: tuple[SizedItems[Clip], np.ndarray]
    valid: tuple[SizedItems[Clip], np.ndarray]
    several: bool

    @classmethod
    def read(cls, data: Path, train_clips: int, valid_clips: int) -> NeighbourProbe:
        """Choose clips of ``train`` and ``valid``, always the same ones, of each class the same share.

        Args:
            data: folder of ``train`` and ``valid``, with labels.
            train_clips: number of clips that vote; as each class keeps one, a few more if there are many classes.
            valid_clips: number of clips that are told apart, likewise.

        Raises:
            UserError: a file is missing or malformed.
        """
        manifests, labels, several = _read(data, ("train", "valid"))
        parts = []
        for manifest, each, most in zip(manifests, labels, (train_clips, valid_clips)):
            chosen = class_subset(each, min(1.0, most / len(each)), _SEED)
            parts.append(([manifest[clip] for clip in chosen], _targets(each, several, chosen)))
        return cls(parts[0], parts[1], several)

    @property
    def measure(self) -> str:
        """What the values are: ``accuracy``, or ``mAP`` if clips have several labels."""
        return _measure(self.several)

    def __call__(self, model: AudioModel) -> float:
        """Measure a model, in [0, 1]; this process decodes.

        Raises:
            UserError: a clip cannot be decoded, or a value of the model is not finite.
        """
        train, valid = (
            Examples(_layers(model, clips, all_layers=False)[:, -1], targets)
            for clips, targets in (self.train, self.valid)
        )
        return _near(train, valid, self.several)


def _read(data: Path, splits: Sequence[str]) -> tuple[list[Manifest], list[Labels], bool]:
    """Read manifests and their labels, and tell whether a clip has several."""
    manifests = [Manifest.read(data / f"{split}.tsv").require_clips() for split in splits]
    labels = [
        Labels.read(data / f"{split}.lbl", data / LABELS_NAME, len(manifest), multi=True)
        for split, manifest in zip(splits, manifests)
    ]
    return manifests, labels, any(len(each.ids) > len(each) for each in labels)


def _measure(several: bool) -> str:
    return "mAP" if several else "accuracy"


def _targets(labels: Labels, several: bool, clips: np.ndarray) -> np.ndarray:
    """Return the classes (N,) of some clips, or with several labels multi-hot targets (N, C)."""
    return torch.stack([labels.multi_hot(clip) for clip in clips]).numpy() if several else labels.ids[clips]


def _layers(
    model: AudioModel, clips: SizedItems[Clip], split: str | None = None, workers: int = 0, all_layers: bool = True
) -> np.ndarray:
    """Compute the features (N, L, D) of each layer, or of the last one, for clips; a split's name shows a bar."""
    waveforms = load_all(clips, model.sample_rate, workers)

    def means() -> Iterator[Tensor]:
        for states, _ in model.encode(waveforms, all_layers):
            yield states.mean(dim=1).cpu()

    with torch.inference_mode():
        bar = tqdm(means(), f"features of {split}", len(clips), unit="clip", disable=split is None)
        return torch.stack(list(bar)).numpy()


def _of_layer(split: Examples, layer: int) -> Examples:
    return Examples(split.features[:, layer], split.targets)


def _one_layer(splits: Sequence[Examples], several: bool) -> tuple[float, float]:
    train, valid, test = splits
    if several:
        linear, _ = _weighted([Examples(split.features[:, None], split.targets) for split in splits], several)
    else:
        linear = float(linear_probe(train, valid).score(*test))
    return _near(train, test, several), linear


def _near(train: Examples, test: Examples, several: bool) -> float:
    """Measure a k-NN by the cosine of standardised features."""
    if not several:
        return float(nearest_neighbours(train).score(*test))
    votes = KNeighborsRegressor(min(NEIGHBOURS, len(train.targets)), weights="distance", metric="cosine")
    scores = make_pipeline(StandardScaler(), votes).fit(*train).predict(test.features)
    return _mean_average_precision(scores, test.targets)


def _mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    return multi_label(scores, targets).mean_average_precision


def _weighted(splits: Sequence[Examples], several: bool) -> tuple[float, np.ndarray]:
    """Fit the weighted probe with each strength, and return the value and the weights of the best on ``valid``."""
    mean, std = splits[0].features.mean(axis=0), splits[0].features.std(axis=0)
    train, valid, test = (
        Examples(((split.features - mean) / np.where(std > 0, std, 1)).astype(np.float32), split.targets)
        for split in splits
    )
    strengths = tqdm(STRENGTHS, "weighted probe", leave=False)
    found = [_WeightedProbe(train, several, strength) for strength in strengths]
    best = max(found, key=lambda each: each.score(valid))
    return best.score(test), best.weights


class _WeightedProbe(nn.Module):
    """Linear classifier of the weighted mean of standardised layers, with the loss and penalty of scikit-learn's.

    The penalty is also one of the weights' logarithms, or else the layer that fits the training clips takes everything.
    """

    def __init__(self, train: Examples, several: bool, strength: float):
        super().__init__()
        features, targets = torch.from_numpy(train.features), torch.from_numpy(train.targets)
        self.several = several
        classes = targets.shape[1] if several else int(targets.max()) + 1
        self.layers = nn.Parameter(torch.zeros(features.shape[1]))
        self.head = nn.Linear(features.shape[2], classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        loss = F.binary_cross_entropy_with_logits if several else F.cross_entropy
        solver = torch.optim.LBFGS(self.parameters(), max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            squares = self.head.weight.square().sum() + self.layers.square().sum()
            penalty = squares / (2 * strength * len(features))
            fitted = loss(self(features), targets if several else targets.long(), reduction="sum") / len(features)
            (total := fitted + penalty).backward()
            return total

        solver.step(closure)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores (N, C) of features (N, L, D)."""
        return self.head(torch.einsum("nld,l->nd", features, self.layers.softmax(dim=0)))

    @property
    def weights(self) -> np.ndarray:
        """Weights of the layers."""
        return self.layers.detach().double().softmax(dim=0).numpy()

    @torch.no_grad()
    def score(self, examples: Examples) -> float:
        """Measure the accuracy; mAP if clips have several labels."""
        scores = self(torch.from_numpy(examples.features)).numpy()
        if self.several:
            return _mean_average_precision(scores, examples.targets)
        return float((scores.argmax(axis=1) == examples.targets).mean())
