from __future__ import annotations

import itertools

import numpy as np
import pytest

from amae_plugin.metrics.retrieval import rank


def test_ranks_and_recall_by_hand() -> None:
    candidates = np.eye(3)
    queries = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 9.0]])
    ranking = rank(queries, candidates, np.array([[0, 0], [1, 2], [2, 2]]))
    assert ranking.ranks.tolist() == [1, 3, 1]
    assert ranking.best.tolist() == [[0, 1, 2], [0, 1, 2], [2, 0, 1]]
    assert ranking.similarities[0].tolist() == pytest.approx(np.array([3, 2, 1]) / np.sqrt(14))
    assert (ranking.recall(1), ranking.recall(5), ranking.median_rank) == (pytest.approx(2 / 3), 1.0, 1.0)


def test_the_first_of_several_right_candidates_counts() -> None:
    candidates = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    ranking = rank(np.array([[1.0, 0.0]]), candidates, np.array([[0, 2], [0, 1]]))
    assert ranking.ranks.tolist() == [2] and ranking.right.tolist() == [2]


def test_equal_features_find_nothing() -> None:
    ranking = rank(np.ones((20, 2)), np.ones((20, 2)), np.stack([np.arange(20)] * 2, axis=1))
    assert set(ranking.ranks) == {20} and ranking.recall(10) == 0


@pytest.mark.parametrize("right", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_chance_is_that_of_all_orders(right: int, depth: int) -> None:
    pairs = np.array([[0, candidate] for candidate in range(right)])
    ranking = rank(np.ones((1, 2)), np.ones((5, 2)), pairs)
    orders = list(itertools.permutations(range(5)))
    assert ranking.chance(depth) == pytest.approx(np.mean([min(order[:depth]) < right for order in orders]))


def test_queries_are_ranked_alike_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(50, 4)), rng.normal(size=(30, 4))
    pairs = np.stack([np.arange(50), np.arange(50) % 30], axis=1)
    whole = rank(queries, candidates, pairs)
    monkeypatch.setattr("amae_plugin.metrics.retrieval._ROWS", 7)
    parts = rank(queries, candidates, pairs)
    assert whole.ranks.tolist() == parts.ranks.tolist() and whole.best.tolist() == parts.best.tolist()
