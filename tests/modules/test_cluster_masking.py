"""SSAST's name for chunks, with its number of hidden tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from amae_plugin.modules.masking import ChunkMasking, ClipNoise, build_masking, visible_ids


def masks(ratio: float, grid: tuple[int, int], clips: list[int]) -> Tensor:
    return build_masking("cluster", {"mask_ratio": ratio})(ClipNoise(torch.tensor(clips)), grid)


def test_clusters_are_chunks() -> None:
    assert isinstance(build_masking("cluster", {"mask_ratio": 0.5}), ChunkMasking)
    assert build_masking("cluster", {"mask_ratio": 0.5}).num_visible((8, 8)) == 32


def test_published_number_of_hidden_tokens_in_clusters() -> None:
    assert masks(0.78125, (64, 8), list(range(20))).sum(1).tolist() == [400] * 20


def test_clusters_of_known_seeds_never_change() -> None:
    assert visible_ids(masks(0.7, (8, 4), [0, 1, 2**63 - 1])).tolist() == [
        [1, 2, 3, 5, 6, 7, 28, 29, 30],
        [0, 1, 2, 4, 5, 6, 8, 27, 31],
        [1, 2, 3, 5, 6, 7, 8, 9, 10],
    ]
