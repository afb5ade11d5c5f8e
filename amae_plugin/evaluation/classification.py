"""A classifier on a whole split."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from torch import Tensor, nn

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME, Labels, read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Options, score_clips
from amae_plugin.metrics.classification import MultiLabelMetrics, SingleLabelMetrics, multi_label, single_label

DISPLAY_NAMES = "class_labels_indices.csv"
"""AudioSet's table of classes, beside the manifests, whose names are shown in place of the mids."""
_SHOWN = 5


@dataclass(frozen=True)
class Evaluation:
    """What a classifier of C classes made of M clips of a split.

    Attributes:
        checkpoint: the file of the classifier.
        data: the folder of manifests.
        split: whose clips they are.
        crops: pieces of a clip that is longer than the model's input.
        classes: as in ``labels.txt``.
        display_names: of the classes; the classes themselves where there are no others.
        clips: the paths of the M clips, as the manifest has them.
        pieces: (M,) int64, into how many pieces each clip was cut.
        probabilities: (M, C) float64, means over the pieces of each clip.
        targets: (M, C) bool, the classes of each clip.
        measures: of the whole split; its type says whether a clip has one label or several.
        skipped: paths of the clips that could not be decoded, which are in no other attribute, and the reasons.
    """

    checkpoint: Path
    data: Path
    split: str
    crops: int
    classes: tuple[str, ...]
    display_names: tuple[str, ...]
    clips: tuple[str, ...]
    pieces: np.ndarray
    probabilities: np.ndarray
    targets: np.ndarray
    measures: Union[SingleLabelMetrics, MultiLabelMetrics]
    skipped: Mapping[str, str]

    @property
    def headline(self) -> dict[str, float]:
        """The measures that are one number, under the names that a training logs them by."""
        return self.measures.headline

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, clips of each class."""
        return self.targets.sum(axis=0)


def evaluate(
    checkpoint: Checkpoint | str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    options: Options | None = None,
) -> Evaluation:
    """Score all clips of a split, each once, and measure the scores.

    Scores are probabilities: the softmax of a model that was trained with cross-entropy, else the sigmoid.

    Args:
        checkpoint: of a classifier, or its file.
        data: folder of ``<split>.tsv``, ``<split>.lbl`` and ``labels.txt``.
        split: which.
        options: pieces, batches, device, and what to do with clips that cannot be decoded.

    Raises:
        UserError: the checkpoint is none of a classifier, ``labels.txt`` is not the list of classes that it was trained
            with, a file is missing or malformed, or as :func:`score_clips` has it.
    """
    options = options or Options()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    data = Path(data)
    classes = _classes_of(checkpoint, data)
    multi = bool((checkpoint.config.get("task") or {}).get("multi_label"))
    manifest = Manifest.read(data / f"{split}.tsv")
    labels = Labels.read(data / f"{split}.lbl", data / LABELS_NAME, len(manifest), multi=multi)
    probabilities = checkpoint.probabilities

    def function(model: nn.Module, source: Tensor, padding_mask: Tensor) -> Tensor:
        # In float64, confident scores stay apart for longer before they are rounded to 1.
        return probabilities(model(source, padding_mask=padding_mask)["logits"].double())

    scored = score_clips(checkpoint, manifest, function, options)
    targets = np.zeros((len(manifest), len(classes)), bool)
    targets[np.repeat(np.arange(len(labels)), np.diff(labels.offsets)), labels.ids] = True
    targets = targets[scored.clips]
    return Evaluation(
        checkpoint=checkpoint.path,
        data=data,
        split=split,
        crops=options.crops,
        classes=classes,
        display_names=_display_names(data, classes),
        clips=tuple(manifest.name(clip) for clip in scored.clips),
        pieces=scored.pieces,
        probabilities=scored.values,
        targets=targets,
        measures=multi_label(scored.values, targets) if multi else single_label(scored.values, targets.argmax(axis=1)),
        skipped={manifest.name(clip): reason for clip, reason in scored.skipped.items()},
    )


def _classes_of(checkpoint: Checkpoint, data: Path) -> tuple[str, ...]:
    """The classes of the checkpoint, which must be those of the data."""
    known = checkpoint.classes
    path = data / LABELS_NAME
    found = read_names(path)
    if known == found:
        return found
    parts = [
        f"{word} {_first(names)}"
        for word, names in (
            ("it lacks", [name for name in known if name not in set(found)]),
            ("only it has", [name for name in found if name not in set(known)]),
        )
        if names
    ]
    number = next((number for number, (one, other) in enumerate(zip(found, known), 1) if one != other), 0)
    difference = "; ".join(parts) or f"the order differs, first on line {number}: {found[number - 1]}"
    raise UserError(
        f"{path}: not the {len(known)} classes that {checkpoint.path} was trained with, in their order: {difference}; "
        "evaluate with manifests of the same corpus as those of the training"
    )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _display_names(data: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What people call the classes: those in AudioSet's table, if that is there, else the classes themselves."""
    path = data / DISPLAY_NAMES
    if not path.exists():
        return tuple(classes)
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = {row.get("mid"): row.get("display_name") for row in csv.DictReader(file)}
    return tuple(names.get(name) or name for name in classes)
