"""Co-expression graph from sums, so that sites can share it without sharing cells."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scinfl.federation import State
from scinfl.model.base._cells import Matrix

_ROWS = 4096
_DENSE = 0.05  # above this share of non-zero values a dense product is faster
_ROUNDING = 1e-5  # what is left of the variance of a constant gene, as a share of its mean square


def second_moments(matrix: Matrix, rows: np.ndarray) -> State:
    """Mean of the products of every two genes (upper triangle), and of every gene, over some cells."""
    n_genes = matrix.shape[1]
    total, square = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    for start in range(0, len(rows), _ROWS):
        block = matrix[rows[start : start + _ROWS]]
        if sparse.issparse(block) and block.nnz < _DENSE * np.prod(block.shape):
            square += (block.T @ block).toarray()
        else:
            block = np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float32)
            square += block.T @ block
        total += np.asarray(block.sum(0, dtype=np.float64)).ravel()
    upper = np.triu_indices(n_genes)
    n = max(len(rows), 1)
    return {"products": square[upper] / n, "mean": total / n}


def strongest_edges(moments: State, *, n_neighbours: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges (2 × n, sources and targets) and weights of the co-expression graph.

    Every gene gets edges from the ``n_neighbours`` genes, and itself, whose Pearson correlation with it is largest in
    size and above the threshold (both as published); the weight is the size.
    """
    mean = moments["mean"]
    n_genes = len(mean)
    covariance = np.empty((n_genes, n_genes))
    covariance[np.triu_indices(n_genes)] = moments["products"]
    covariance = np.triu(covariance) + np.triu(covariance, 1).T
    square = np.diag(covariance).copy()
    covariance -= np.outer(mean, mean)
    known = np.diag(covariance) > _ROUNDING * square
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.abs(covariance / np.outer(deviation, deviation))
    strength[~known] = 0
    strength[:, ~known] = 0
    k = min(n_neighbours + 1, n_genes)
    sources = np.argpartition(-strength, k - 1, axis=0)[:k]
    targets = np.broadcast_to(np.arange(n_genes), sources.shape)
    weights = strength[sources, targets]
    chosen = weights > threshold
    return np.stack([sources[chosen], targets[chosen]]), np.minimum(weights[chosen], 1.0)
