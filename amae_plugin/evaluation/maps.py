"""Maps of clips: features in a plane, to look at what is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from amae_plugin.files import writing
from amae_plugin.visual import plot_map
from amae_plugin.visual.style import Width, save

NAME = "map"
"""Beginning of the names of the files."""
LEAST_CLIPS = 5
"""Clips of which a map shows something."""
_PERPLEXITY = 30.0
_MOST_CLIPS = 5000  # some minutes on one core


def lay_out(features: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Place clips in a plane so that those with similar features are neighbours (t-SNE, van der Maaten et al. 2008).

    As in the k-NN, similarity is the cosine of standardised features. Of more than 5,000 clips, as many are drawn.

    Args:
        features: (N, D), N at least :data:`LEAST_CLIPS`.
        seed: random seed.

    Returns:
        Ascending indices (M,) of the clips, and their places (M, 2).
    """
    drawn = np.random.default_rng(seed).choice(len(features), min(len(features), _MOST_CLIPS), replace=False)
    clips = np.sort(drawn)
    perplexity = min(_PERPLEXITY, (len(clips) - 1) / 3)
    method = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return clips, method.fit_transform(StandardScaler().fit_transform(features[clips]))


def write_maps(
    features: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    folder: Path,
    title: str,
    formats: Sequence[str] = ("png",),
    width: Width = None,
) -> list[Path]:
    """Draw the same map once for each grouping of the clips, as ``map_<grouping>.png``.

    The first grouping's names are written among its points, those of the others in a legend.

    Args:
        features: (N, D), N at least :data:`LEAST_CLIPS`.
        groups: group of each of the N clips, by the name of the grouping, such as ``class`` or ``speaker``.
        folder: folder to write to, which is made if it does not exist.
        title: what the features are.
        formats: formats of the pictures, of those that matplotlib writes.
        width: width of the pictures.

    Returns:
        Paths of the files.

    Raises:
        UserError: a file cannot be written.
    """
    clips, places = lay_out(features)
    paths = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, group) in enumerate(groups.items()):
            heading = f"{title}, {len(clips):,} clips by {name}"
            of_clips = [group[clip] for clip in clips]
            figure = plot_map(places, of_clips, in_place=number == 0, title=heading, width=width)
            paths += save(figure, folder / f"{NAME}_{name}", formats)
    return paths
