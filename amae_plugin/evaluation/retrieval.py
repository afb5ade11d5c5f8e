"""Retrieval on a whole split: the picture that belongs to a sound, and the sound that belongs to a picture."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.scoring import Inputs, Options, require_directions, score_clips
from amae_plugin.evaluation.tables import Table
from amae_plugin.metrics.retrieval import DEPTHS, Ranking, rank
from amae_plugin.models.base import Model


@dataclass(frozen=True)
class Retrieval:
    """Results of a search among the M pairs of a split.

    A sound that comes with several pictures, or a picture that comes with several sounds, is one query and one
    candidate, and all that it comes with is right.

    Attributes:
        checkpoint: checkpoint file.
        data: folder of manifests.
        split: name of the split.
        clips: indices of the M pairs in the manifest.
        sounds: manifest paths of the different sounds.
        pictures: manifest paths of the different pictures.
        sound_of: index of a pair in the manifest that has each sound, (S,) int64.
        picture_of: index of one that has each picture, (P,) int64.
        pairs: sound and picture of each pair, (M, 2) int64.
        rankings: pictures by sound, and sounds by picture, under the names of the directions.
        skipped: paths of clips that could not be decoded, and the reasons.
    """

    checkpoint: Path
    data: Path
    split: str
    clips: np.ndarray
    sounds: tuple[str, ...]
    pictures: tuple[str, ...]
    sound_of: np.ndarray
    picture_of: np.ndarray
    pairs: np.ndarray
    rankings: Mapping[str, Ranking]
    skipped: Mapping[str, str]

    @property
    def table(self) -> Table:
        """Recall and median rank of both directions."""
        rows: list[tuple[str, ...]] = []
        for direction, ranking in self.rankings.items():
            recalls = (f"{ranking.recall(depth):.4f}" for depth in DEPTHS)
            median = f"{ranking.median_rank:g} of {ranking.candidates:,}"
            rows.append((direction, *recalls, median, f"{len(ranking.ranks):,}"))
            rows.append(("by chance", *(f"{ranking.chance(depth):.4f}" for depth in DEPTHS), "", ""))
        return Table(("recall", *(f"at {depth}" for depth in DEPTHS), "median rank", "queries"), rows)


SOUND_TO_PICTURE, PICTURE_TO_SOUND = "sound to picture", "picture to sound"
"""Directions of a search."""


def retrieve(
    checkpoint: Checkpoint | str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    options: Options | None = None,
) -> Retrieval:
    """Search among all pairs of a split by the cosine of the mean tokens of sound and picture.

    Args:
        checkpoint: pretraining checkpoint of a model of audio and image, or its file.
        data: folder of ``<split>.tsv``.
        split: name of the split.
        options: pieces, frames, batches, device, and treatment of clips that cannot be decoded.

    Raises:
        UserError: the model does not encode sound and picture each by itself, the manifest has no pictures, or features
            are all 0; see also :func:`score_clips`.
    """
    options = options or Options()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.read(checkpoint)
    if checkpoint.downstream is not None or set(checkpoint.modalities) != {"audio", "image"}:
        kind = "a pretraining checkpoint" if checkpoint.downstream is None else f"a {checkpoint.downstream.kind}"
        taken = " and ".join(checkpoint.modalities)
        remedy = "a search needs a model that was pretrained on pairs of sound and picture"
        raise UserError(f"{checkpoint.path}: {kind} that takes {taken}; {remedy}")
    manifest = Manifest.read(Path(data) / f"{split}.tsv")
    scored = score_clips(checkpoint, manifest, _embed, options)
    features = dict(zip(("sound", "picture"), np.split(scored.values, 2, axis=1)))
    for what, values in features.items():
        require_directions(checkpoint, manifest, scored.clips, values, f"the features of the {what} of")
    names = [[manifest.name(clip), manifest.picture_name(clip)] for clip in scored.clips]
    (sounds, first_sound, sound), (pictures, first_picture, picture) = (
        np.unique(np.array(column, object), return_index=True, return_inverse=True) for column in zip(*names)
    )
    pairs = np.stack([sound, picture], axis=1)
    of_sounds, of_pictures = features["sound"][first_sound], features["picture"][first_picture]
    return Retrieval(
        checkpoint=checkpoint.path,
        data=Path(data),
        split=split,
        clips=scored.clips,
        sounds=tuple(sounds),
        pictures=tuple(pictures),
        sound_of=scored.clips[first_sound],
        picture_of=scored.clips[first_picture],
        pairs=pairs,
        rankings={
            SOUND_TO_PICTURE: rank(of_sounds, of_pictures, pairs),
            PICTURE_TO_SOUND: rank(of_pictures, of_sounds, pairs[:, ::-1]),
        },
        skipped={manifest.name(clip): reason for clip, reason in scored.skipped.items()},
    )


def _embed(model: Model, inputs: Inputs) -> Tensor:
    """Return the mean tokens (B, 2 D) of sounds and of pictures, each modality alone."""
    sounds = model.features(inputs["source"], inputs["padding_mask"])
    return torch.cat([sounds, model.image_features(inputs["image"])], dim=1)
