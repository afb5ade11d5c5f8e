"""Sounds and pictures that find each other, of the clips of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.evaluation.report import summary, write
from amae_plugin.evaluation.retrieval import PICTURE_TO_SOUND, SOUND_TO_PICTURE, retrieve
from amae_plugin.evaluation.scoring import Options, validation_dataset

OPTIONS = Options(batch_size=2, device="cpu", progress=False)
CLIPS = [((), seconds, 16_000) for seconds in (0.4, 0.9, 0.6, 0.7, 0.5)]
# Two sounds have the same picture.
PICTURES = ["b.png", "a.png", "c.png", "a.png", "d.png"]


@pytest.fixture(scope="module")
def folder(write_split: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("pairs"), CLIPS, pictures=PICTURES)


@pytest.fixture(scope="module")
def checkpoint(
    write_checkpoint: Callable[..., Path], seeing: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return Checkpoint.read(write_checkpoint(tmp_path_factory.mktemp("model") / "last.pt", None, encoder=seeing))


def test_candidates_stand_in_the_order_of_the_cosine_of_the_mean_tokens(checkpoint: Checkpoint, folder: Path) -> None:
    result = retrieve(checkpoint, folder, options=OPTIONS)
    assert result.pictures == ("a.png", "b.png", "c.png", "d.png")
    assert result.sounds == tuple(f"{index}.flac" for index in range(5))
    assert result.pairs.tolist() == [[0, 1], [1, 0], [2, 2], [3, 0], [4, 3]]
    model, dataset = checkpoint.model(), validation_dataset(checkpoint, Manifest.read(folder / "test.tsv"))
    items = [dataset[index] for index in range(5)]
    with torch.no_grad():
        sounds = [model.extract_features(item["source"][None])[0].mean(dim=1)[0] for item in items]
        pictures = [model.extract_image_features(items[index]["image"][None]).mean(dim=1)[0] for index in (1, 0, 2, 4)]
    cosines = torch.cosine_similarity(torch.stack(sounds)[:, None], torch.stack(pictures)[None], dim=2).numpy()
    by_sound, by_picture = (result.rankings[direction] for direction in (SOUND_TO_PICTURE, PICTURE_TO_SOUND))
    assert by_sound.best.tolist() == np.argsort(-cosines, axis=1).tolist()
    assert by_picture.best.tolist() == np.argsort(-cosines.T, axis=1).tolist()
    np.testing.assert_allclose(by_sound.similarities, -np.sort(-cosines, axis=1), atol=1e-5)
    assert by_picture.right.tolist() == [2, 1, 1, 1]  # of either sound of a.png
    assert by_picture.ranks[0] == min(by_picture.best[0].tolist().index(sound) for sound in (1, 3)) + 1


def test_the_report_has_recall_and_chance_of_both_directions(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    result = retrieve(checkpoint, folder, options=OPTIONS)
    assert "test: 5 pairs of 5 sounds and 4 pictures" in summary(result)
    metrics, ranks, *tables = (path.read_text() for path in write(result, tmp_path))
    assert len(tables) == 3 and all("sound to picture" in table for table in tables)
    assert all(name in metrics for name in ('"sound_to_picture"', '"recall_at_10": 1.0', '"chance_at_1": 0.25'))
    assert len(ranks.splitlines()) == 1 + 5 + 4


def test_pictures_that_are_shown_in_other_frames_are_averaged(checkpoint: Checkpoint, folder: Path) -> None:
    one, two = (retrieve(checkpoint, folder, options=Options(device="cpu", progress=False, frames=n)) for n in (1, 2))
    for direction, ranking in one.rankings.items():  # stills are the same in every frame
        np.testing.assert_allclose(ranking.similarities, two.rankings[direction].similarities, atol=1e-6)


def test_models_and_manifests_that_cannot_be_searched(
    write_checkpoint: Callable[..., Path], write_split: Callable[..., Path], seeing: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_split(tmp_path / "sounds", CLIPS[:1])
    both = {**seeing, "modalities": ["audio", "image"]}
    models = {
        "a pretraining checkpoint that takes audio; a search needs": (None, {**seeing, "modalities": ["audio"]}),
        "a classifier that takes audio and image; a search needs": (["a", "b"], both),
        "lists no pictures; [^,]* with pictures$": (None, seeing),
    }
    for message, (classes, encoder) in models.items():
        path = write_checkpoint(tmp_path / "model.pt", classes, encoder=encoder, pooling="avgtok")
        with pytest.raises(UserError, match=message):
            retrieve(path, folder, options=OPTIONS)
