"""Measures of retrieval: how high the right candidates stand in each query's list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats

DEPTHS = (1, 5, 10)
"""Lengths of the lists in which recall counts the queries that find a right candidate."""
_ROWS = 1024  # queries at a time, whose similarities to all candidates take memory


@dataclass(frozen=True)
class Ranking:
    """Candidates of Q queries, sorted by their similarity.

    Attributes:
        ranks: place of each query's first right candidate, (Q,) int64, from 1 on. Wrong candidates of equal similarity
            stand before it, so equal features find nothing.
        right: number of right candidates of each query, (Q,) int64.
        candidates: number of all candidates.
        best: the most similar candidates of each query, (Q, K) int64, the most similar first.
        similarities: their similarities, (Q, K) float64.
    """

    ranks: np.ndarray
    right: np.ndarray
    candidates: int
    best: np.ndarray
    similarities: np.ndarray

    def recall(self, depth: int) -> float:
        """Return the share of the queries with a right candidate among the first *depth*."""
        return float((self.ranks <= depth).mean())

    def chance(self, depth: int) -> float:
        """Return the recall that lists in random order have on average."""
        drawn = min(depth, self.candidates)
        return float(scipy.stats.hypergeom.sf(0, self.candidates, self.right, drawn).mean())

    @property
    def median_rank(self) -> float:
        """Median of :attr:`ranks`."""
        return float(np.median(self.ranks))


def rank(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, shown: int = max(DEPTHS)) -> Ranking:
    """Sort the candidates of each query by the cosine of their features.

    Args:
        queries: (Q, D) features, none of them all 0.
        candidates: (N, D) features, likewise.
        pairs: (P, 2) indices of queries and of candidates that are right for them; every query has one.
        shown: number K of candidates to keep of each query.
    """
    queries, candidates = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (queries, candidates))
    shown = min(shown, len(candidates))
    ranks = np.zeros(len(queries), np.int64)
    best, similarities = np.zeros((len(queries), shown), np.int64), np.zeros((len(queries), shown))
    for start in range(0, len(queries), _ROWS):
        rows = slice(start, start + _ROWS)
        values = queries[rows] @ candidates.T
        right = np.zeros(values.shape, bool)
        within = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(values))]
        right[within[:, 0] - start, within[:, 1]] = True
        first = np.where(right, values, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + (~right & (values >= first)).sum(axis=1)
        best[rows] = np.argsort(-values, axis=1, kind="stable")[:, :shown]
        similarities[rows] = np.take_along_axis(values, best[rows], axis=1)
    counts = np.bincount(np.unique(pairs, axis=0)[:, 0], minlength=len(queries))
    return Ranking(ranks, counts, len(candidates), best, similarities)
