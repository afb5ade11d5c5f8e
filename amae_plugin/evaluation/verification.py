"""Verification: are both clips of a pair of the same speaker, judged by a model's features."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.trials import Trials
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Options, score_clips
from amae_plugin.metrics.verification import cosine_scores, equal_error_rate
from amae_plugin.models.classifier import Classifier


@dataclass(frozen=True)
class Verification:
    """How well a model tells pairs of clips of one speaker from others, by the cosine of their features.

    Attributes:
        checkpoint: the file of the model.
        data: the folder of ``trials.tsv`` and ``trials.txt``.
        crops: pieces of a clip that is longer than the model's input, over which its features are averaged.
        clips: how many different ones the trials are of.
        pairs: the paths of both clips of the T trials, as the manifest has them.
        same: (T,) bool, whether they are of one speaker.
        scores: (T,) float64 in [-1, 1].
        equal_error_rate: in [0, 1].
        skipped: paths of the clips that could not be decoded, and the reasons.
        left_out: how many trials have such a clip, which are in no other attribute.
    """

    checkpoint: Path
    data: Path
    crops: int
    clips: int
    pairs: tuple[tuple[str, str], ...]
    same: np.ndarray
    scores: np.ndarray
    equal_error_rate: float
    skipped: Mapping[str, str]
    left_out: int


def verify(
    checkpoint: Checkpoint | str | os.PathLike[str],
    data: str | os.PathLike[str],
    options: Options | None = None,
) -> Verification:
    """Score all trials.

    The features of a classifier are what its head sees; those of a pretraining model are the mean of its patch tokens.

    Args:
        checkpoint: of any model of this plugin, or its file.
        data: folder of ``trials.tsv`` and ``trials.txt``.
        options: pieces, batches, device, and what to do with clips that cannot be decoded.

    Raises:
        UserError: a file is missing or malformed, the trials that are left are of one kind only, a clip's features have
            no direction, or as :func:`score_clips` has it.
    """
    options = options or Options()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    data = Path(data)
    manifest = Manifest.read(data / "trials.tsv")
    trials = Trials.read(data / "trials.txt", manifest)
    scored = score_clips(checkpoint, manifest, _features, options, clips=np.unique(trials.pairs))
    kept = np.isin(trials.pairs, scored.clips).all(axis=1)
    pairs, same = trials.pairs[kept], trials.same[kept]
    if len(np.unique(same)) < 2:
        raise UserError(
            f"{data / 'trials.txt'}: needs trials of both kinds, 1 and 0, and there are {int(same.sum()):,} and "
            f"{int((~same).sum()):,}"
        )
    directionless = ~scored.values.any(axis=1)
    if directionless.any():
        clip = manifest.name(int(scored.clips[directionless.argmax()]))
        raise UserError(f"{checkpoint.path}: the features of {clip} are all 0, which have no direction to compare")
    scores = cosine_scores(scored.values, np.searchsorted(scored.clips, pairs))
    return Verification(
        checkpoint=checkpoint.path,
        data=data,
        crops=options.crops,
        clips=len(np.unique(pairs)),
        pairs=tuple((manifest.name(one), manifest.name(other)) for one, other in pairs),
        same=same,
        scores=scores,
        equal_error_rate=equal_error_rate(scores, same),
        skipped={manifest.name(clip): reason for clip, reason in scored.skipped.items()},
        left_out=int((~kept).sum()),
    )


def _features(model: Any, source: Tensor, padding_mask: Tensor) -> Tensor:
    """(B, D) of spectrograms (B, T, F), by a classifier or the pretraining model of any system."""
    if isinstance(model, Classifier):
        return model(source, padding_mask=padding_mask)["features"]
    heeded = model.encoder.heeded(padding_mask)
    tokens, _ = model.extract_features(source, heeded)
    return model.encoder.mean_of_patches(tokens, None if heeded is None else model.patch_padding(heeded))
