"""Queries of a search with their best hits, to look at and to listen to."""

from collections.abc import Callable

import numpy as np

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.audio import Crop, load_clip
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import printable
from amae_plugin.evaluation.retrieval import PICTURE_TO_SOUND, SOUND_TO_PICTURE, Retrieval
from amae_plugin.evaluation.scoring import validation_dataset
from amae_plugin.metrics.retrieval import Ranking
from amae_plugin.visual.hits import Hit, Medium, Search, picture, sound

_HITS = 5  # of a query


def prepare_searches(checkpoint: Checkpoint, result: Retrieval, queries: int) -> tuple[list[Search], list[Search]]:
    """Prepare queries of both directions for the page: pictures by sound, and sounds by picture."""
    manifest = Manifest.read(result.data / f"{result.split}.tsv")
    dataset = validation_dataset(checkpoint, manifest)
    image, crop = dataset.input.image, Crop(dataset.input.samples, dataset.crop_position)

    def sound_of(index: int) -> Medium:
        waveform = load_clip(manifest[int(result.sound_of[index])], dataset.input.sample_rate, crop)
        return sound(printable(result.sounds[index]), waveform, dataset.input.sample_rate)

    def picture_of(index: int) -> Medium:
        item = dataset[int(result.picture_of[index])]
        assert item is not None and image is not None
        return picture(printable(result.pictures[index]), image.denormalize(item["image"]))

    return (
        _search(result.rankings[SOUND_TO_PICTURE], result.pairs, queries, sound_of, picture_of),
        _search(result.rankings[PICTURE_TO_SOUND], result.pairs[:, ::-1], queries, picture_of, sound_of),
    )


def _search(
    ranking: Ranking,
    pairs: np.ndarray,
    queries: int,
    query_of: Callable[[int], Medium],
    hit_of: Callable[[int], Medium],
) -> list[Search]:
    """Prepare queries that are spread evenly over all, with their best hits."""
    right = set(map(tuple, pairs.tolist()))
    shown = np.unique(np.linspace(0, len(ranking.ranks) - 1, queries).round().astype(int)).tolist()
    return [
        Search(
            query_of(query),
            int(ranking.ranks[query]),
            ranking.candidates,
            [
                Hit(hit_of(hit), float(cosine), (query, hit) in right)
                for hit, cosine in zip(ranking.best[query][:_HITS].tolist(), ranking.similarities[query])
            ],
        )
        for query in shown
    ]
