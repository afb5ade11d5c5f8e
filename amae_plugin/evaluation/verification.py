"""Speaker verification: a model's features decide whether both clips of a pair are of one speaker."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.trials import Trials
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Options, require_directions, score_clips
from amae_plugin.files import is_file, is_folder
from amae_plugin.metrics.verification import cosine_scores, equal_error_rate


@dataclass(frozen=True)
class Verification:
    """Results on T trials, pairs of clips whose score is the cosine of their features.

    Attributes:
        checkpoint: checkpoint file.
        data: folder of ``trials.tsv`` and ``trials.txt``.
        crops: number of pieces of a longer clip, over which its features are averaged.
        clips: number of different clips in the trials.
        pairs: manifest paths of both clips of each trial.
        same: whether both clips of a trial are of one speaker, (T,) bool.
        scores: cosines in [-1, 1], (T,) float64.
        equal_error_rate: error rate in [0, 1] at the threshold where both kinds of error are equally frequent.
        skipped: paths of clips that could not be decoded, and the reasons.
        left_out: number of trials with such a clip, which no other attribute counts.
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
    checkpoint: Checkpoint | str | os.PathLike[str], data: str | os.PathLike[str], options: Options | None = None
) -> Verification:
    """Score all trials.

    The features are those of the sound alone: the input of a classifier's head, or the mean of a pretraining model's
    patch tokens.

    Args:
        checkpoint: checkpoint of any model of this plugin, or its file.
        data: folder of ``trials.tsv`` and ``trials.txt``.
        options: pieces, batches, device, and treatment of clips that cannot be decoded.

    Raises:
        UserError: a file is missing or malformed, the remaining trials are of one kind only, or a clip's features are
            all 0; see also :func:`score_clips`.
    """
    options = options or Options()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    data = Path(data)
    if is_folder(data) and not is_file(data / "trials.tsv"):
        raise UserError(f"{data}: has no trials.tsv; `amae manifest voxceleb1 --trials FILE` writes it")
    manifest = Manifest.read(data / "trials.tsv")
    trials = Trials.read(data / "trials.txt", manifest)
    options = replace(options, modalities=("audio",))
    clips = np.unique(trials.pairs)
    scored = score_clips(checkpoint, manifest, lambda model, inputs: model.features(**inputs), options, clips)
    kept = np.isin(trials.pairs, scored.clips).all(axis=1)
    trials = Trials(trials.same[kept], trials.pairs[kept]).require_both_kinds(data / "trials.txt")
    require_directions(checkpoint, manifest, scored.clips, scored.values)
    scores = cosine_scores(scored.values, np.searchsorted(scored.clips, trials.pairs))
    return Verification(
        checkpoint=checkpoint.path,
        data=data,
        crops=options.crops,
        clips=len(np.unique(trials.pairs)),
        pairs=tuple((manifest.name(one), manifest.name(other)) for one, other in trials.pairs),
        same=trials.same,
        scores=scores,
        equal_error_rate=equal_error_rate(scores, trials.same),
        skipped={manifest.name(clip): reason for clip, reason in scored.skipped.items()},
        left_out=int((~kept).sum()),
    )
