"""Evaluation of classifiers on a whole split."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import DISPLAY_NAMES, LABELS_NAME, Labels, read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError, first_of
from amae_plugin.evaluation.scoring import Inputs, Options, given_modalities, score_clips
from amae_plugin.files import reading
from amae_plugin.metrics.bootstrap import Interval, multi_label_intervals, single_label_intervals
from amae_plugin.metrics.classification import MultiLabelMetrics, SingleLabelMetrics, multi_label, single_label
from amae_plugin.models.base import Model


@dataclass(frozen=True)
class Evaluation:
    """Results of a classifier of C classes on M clips of a split.

    Attributes:
        checkpoint: checkpoint file.
        data: folder of manifests.
        split: name of the split.
        crops: number of pieces of a clip that is longer than the model's input.
        frames: number of frames of a clip's video.
        modalities: what the model was given of a clip.
        takes: what it can be given.
        classes: names from ``labels.txt``.
        display_names: names of the classes for people; by default the classes.
        clips: manifest paths of the M clips.
        longer: whether each clip fills the model's input, so that it has other pieces than the centre, (M,) bool.
        probabilities: means over pieces and frames, (M, C) float64.
        targets: classes of each clip, (M, C) bool.
        measures: measures of the whole split; their type depends on whether a clip has one label or several.
        skipped: paths of clips that could not be decoded, which no other attribute counts, and the reasons.
        intervals: confidence intervals of the headline's measures; empty if none were asked for.
    """

    checkpoint: Path
    data: Path
    split: str
    crops: int
    frames: int
    modalities: tuple[str, ...]
    takes: tuple[str, ...]
    classes: tuple[str, ...]
    display_names: tuple[str, ...]
    clips: tuple[str, ...]
    longer: np.ndarray
    probabilities: np.ndarray
    targets: np.ndarray
    measures: SingleLabelMetrics | MultiLabelMetrics
    skipped: Mapping[str, str]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def headline(self) -> dict[str, float]:
        """Measures that are one number, under the names that training logs."""
        return self.measures.headline

    @property
    def counts(self) -> np.ndarray:
        """Number of clips of each class, (C,) int64."""
        return self.targets.sum(axis=0)


def evaluate(
    checkpoint: Checkpoint | str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    options: Options | None = None,
) -> Evaluation:
    """Score all clips of a split and measure the scores.

    Scores are probabilities: a softmax after training with cross-entropy, else sigmoids.

    Args:
        checkpoint: checkpoint of a classifier, or its file.
        data: folder of ``<split>.tsv``, ``<split>.lbl`` and ``labels.txt``.
        split: name of the split.
        options: pieces, batches, device, and treatment of clips that cannot be decoded.

    Raises:
        UserError: the model is not a classifier, ``labels.txt`` is not the list of classes of its training, or a file
            is missing or malformed; see also :func:`score_clips`.
    """
    options = options or Options()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    data = Path(data)
    classes = _check_classes(checkpoint, data)
    multi = bool((checkpoint.config.get("task") or {}).get("multi_label"))
    manifest = Manifest.read(data / f"{split}.tsv")
    labels = Labels.read(data / f"{split}.lbl", data / LABELS_NAME, len(manifest), multi=multi)
    probabilities = checkpoint.probabilities

    def function(model: Model, inputs: Inputs) -> Tensor:
        # In float64, confident scores stay apart for longer before they are rounded to 1.
        return probabilities(model(**inputs)["logits"].double())

    scored = score_clips(checkpoint, manifest, function, options)
    targets = np.zeros((len(manifest), len(classes)), bool)
    targets[np.repeat(np.arange(len(labels)), np.diff(labels.offsets)), labels.ids] = True
    targets = targets[scored.clips]
    measure, resample = (multi_label, multi_label_intervals) if multi else (single_label, single_label_intervals)
    classes_of_clips = targets if multi else targets.argmax(axis=1)
    resamples = options.seeds_of_resamples()
    return Evaluation(
        checkpoint=checkpoint.path,
        data=data,
        split=split,
        crops=options.crops,
        frames=options.frames,
        modalities=given_modalities(checkpoint, options.modalities),
        takes=checkpoint.modalities,
        classes=classes,
        display_names=_display_names(data, classes),
        clips=tuple(manifest.name(clip) for clip in scored.clips),
        longer=scored.longer,
        probabilities=scored.values,
        targets=targets,
        measures=measure(scored.values, classes_of_clips),
        skipped={manifest.name(clip): reason for clip, reason in scored.skipped.items()},
        intervals=resample(scored.values, classes_of_clips, resamples) if options.resamples else {},
    )


def _check_classes(checkpoint: Checkpoint, data: Path) -> tuple[str, ...]:
    """Return the classes of the checkpoint, unless those of the data differ.

    Raises:
        UserError: the classes differ.
    """
    path = data / LABELS_NAME
    known, found = checkpoint.classes, read_names(path)
    if known == found:
        return found
    differences = {
        "it lacks": [name for name in known if name not in found],
        "only it has": [name for name in found if name not in known],
    }
    parts = [f"{what} {first_of(names)}" for what, names in differences.items() if names]
    if not parts:
        number = next(number for number, (one, other) in enumerate(zip(found, known), 1) if one != other)
        parts = [f"the order differs, first on line {number}: {found[number - 1]}"]
    raise UserError(
        f"{path}: not the {len(known)} classes that {checkpoint.path} was trained with, in their order: "
        f"{'; '.join(parts)}; evaluate with manifests of the corpus that it was trained on"
    )


def _display_names(data: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Read names for people from AudioSet's table if it exists, else return the classes."""
    path = data / DISPLAY_NAMES
    if not path.exists():
        return tuple(classes)
    with reading(path, "the table"), path.open(encoding="utf-8-sig", newline="") as file:
        names = {row.get("mid"): row.get("display_name") for row in csv.DictReader(file)}
    return tuple(names.get(name) or name for name in classes)
