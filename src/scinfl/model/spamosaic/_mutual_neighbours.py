"""Pairs of spots in different sections that are each other's nearest neighbours."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from scinfl.model.spamosaic._spatial_graph import rows_by_name

_NEIGHBOURS = 10
# pynndescent compiles for half a minute in every process, in which exact search compares 50,000 with 50,000 spots
_EXACT_BELOW = 50_000
_CANDIDATES, _EPSILON = 30, 0.4  # finds 97 % of the pairs of 20,000 and 20,000 spots; an epsilon of 0.1 finds 92 %


def mutual_neighbours(x: np.ndarray, y: np.ndarray, n_neighbours: int = _NEIGHBOURS) -> np.ndarray:
    """Pairs of spots that list each other among their nearest in the other section, by the cosine.

    As in Haghverdi et al. (2018); pairs × 2 (int64), rows of ``x`` and of ``y``, sorted.
    """
    x, y = _directions(x), _directions(y)
    exact = np.sqrt(len(x) * len(y)) < _EXACT_BELOW
    listing = _lists(y, x, n_neighbours, exact=exact)
    mutual = _lists(x, y, n_neighbours, exact=exact).multiply(listing.T).tocsr()
    mutual.sort_indices()
    return np.stack(mutual.nonzero(), axis=1).astype(np.int64)


def section_pairs(x: np.ndarray, section: np.ndarray, site: np.ndarray, n_neighbours: int = _NEIGHBOURS) -> np.ndarray:
    """Mutual nearest neighbours between all sections of a site; spots of two sites are never compared.

    Pairs × 2 (int64) of rows of ``x``. Each two sections come once, the one whose name sorts first to the left.
    """
    found = [np.empty((0, 2), np.int64)]
    for _, rows in rows_by_name(site):
        own = [rows[at] for _, at in rows_by_name(section[rows])]
        for one, other in combinations(own, 2):
            pairs = mutual_neighbours(x[one], x[other], n_neighbours)
            found.append(np.c_[one[pairs[:, 0]], other[pairs[:, 1]]])
    return np.concatenate(found)


def _lists(queries: np.ndarray, points: np.ndarray, n_neighbours: int, *, exact: bool) -> sparse.csr_matrix:
    """Which points each query lists as its nearest (queries × points, ones)."""
    n, k = len(queries), min(n_neighbours, len(points))
    if exact:
        search = NearestNeighbors(n_neighbors=k, metric="euclidean", algorithm="brute").fit(points)
        at = search.kneighbors(queries, return_distance=False)
    else:
        from pynndescent import NNDescent

        index = NNDescent(points, metric="euclidean", n_neighbors=max(_CANDIDATES, k), random_state=0)
        at, _ = index.query(queries, k=k, epsilon=_EPSILON)
    rows, found = np.repeat(np.arange(n), k), at.ravel() >= 0  # a descent that finds too few fills with -1
    ones = np.ones(int(found.sum()), np.int8)
    return sparse.csr_matrix((ones, (rows[found], at.ravel()[found])), shape=(n, len(points)))


def _directions(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, among which the nearest by distance are those by the cosine."""
    x = np.asarray(x)
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64, copy=False)
    if not np.isfinite(x).all():
        n = int((~np.isfinite(x)).any(1).sum())
        msg = f"Expected finite features of every spot, found {n} of {len(x)} spots without. Impute or drop them."
        raise ValueError(msg)
    if n := int((~x.any(1)).sum()):
        msg = f"Expected features with a direction, found {n} of {len(x)} spots that are 0 throughout. Drop them."
        raise ValueError(msg)
    return normalize(x)
