"""Products of every two features, summed over sites, and their leading eigenvectors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh

from scinfl.federation import State
from scinfl.pp.federated._site_sums import Matrix, column_sums

_DENSE = 0.05  # above this share of non-zero values a dense product is faster
_FULL = 1000  # up to so many features all eigenvectors are found at once


class Gram:
    """Sum of the products of features over the rows of a site, in blocks (cells × features, float64)."""

    def __init__(self, n_features: int, parts: Iterable[Matrix]) -> None:
        self._products = np.zeros((n_features, n_features))
        self._total = np.zeros(n_features)
        for block in parts:
            self._add(block)

    def _add(self, block: Matrix) -> None:
        if sparse.issparse(block) and block.nnz < _DENSE * np.prod(block.shape):
            products = (block.T @ block).tocoo()
            self._products[products.row, products.col] += products.data
        else:
            dense = block.toarray() if sparse.issparse(block) else block
            self._products += dense.T @ dense
        self._total += column_sums(block)

    def around(self, point: np.ndarray, n: int) -> State:
        """Sums around a point over the n rows so far; products as the upper triangle, row by row."""
        total = self._total - n * point
        self._products -= np.outer(self._total, point)
        self._products -= np.outer(point, total)
        return {"sum_around_mean": total, "products_around_mean": self.products()}

    def products(self) -> np.ndarray:
        """Sums of products as the upper triangle, row by row."""
        return np.concatenate([self._products[row, row:] for row in range(len(self._products))])


def full(products: np.ndarray, n_features: int) -> np.ndarray:
    """Symmetric matrix of an upper triangle."""
    square = np.empty((n_features, n_features))
    start = 0
    for row in range(n_features):
        own = products[start : start + n_features - row]
        square[row, row:] = own
        square[row:, row] = own
        start += n_features - row
    return square


def leading_eigenvectors(symmetric: np.ndarray, n_comps: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues in falling order, and their vectors as columns (features × components).

    The largest entry of each vector by absolute value is positive, so that all sites and runs agree on signs.
    """
    n = len(symmetric)
    if n <= _FULL or n_comps > n // 10:
        values, vectors = linalg.eigh(symmetric, subset_by_index=[n - n_comps, n - 1])
    else:
        # a fixed start makes the result that of the matrix alone
        start = np.random.default_rng(0).normal(size=n)
        values, vectors = eigsh(symmetric, k=n_comps, v0=start, tol=1e-10)
    order = np.argsort(-values, kind="stable")
    values, vectors = values[order], vectors[:, order]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(n_comps)]
    return values, vectors * np.where(largest < 0, -1.0, 1.0)
