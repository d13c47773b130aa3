"""How well batches are mixed among the nearest neighbours in an embedding."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

_TOLERANCE = 1e-5
_STEPS = 50


def nearest(points: np.ndarray, n_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices (rows × neighbours) of the nearest other rows, as many as there are."""
    k = min(n_neighbours, len(points) - 1)
    distances, indices = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    return distances, indices


def knn_mixing(neighbours: np.ndarray, batch: np.ndarray) -> float:
    """Share of neighbours from other batches, over the share in a full mix; mean over batches.

    A cell of batch b has n − n_b of the n − 1 other cells in other batches, so a full mix scores 1 whatever the sizes
    of the batches, and batches apart score 0.
    """
    n, sizes = len(batch), np.bincount(batch)
    foreign = (batch[neighbours] != batch[:, None]).mean(1)
    by_batch = np.bincount(batch, foreign) / sizes
    return float(np.mean(by_batch * (n - 1) / (n - sizes)))


def ilisi(distances: np.ndarray, neighbours: np.ndarray, batch: np.ndarray) -> float:
    """Local inverse Simpson index of the batches (Korsunsky et al. 2019), median over cells, scaled to 0…1.

    A third of the neighbours is the perplexity of their weights. The index is 1/Σ_b p_b², p_b the weight of batch b
    around a cell; scaled as (iLISI − 1)/(number of batches − 1) (Luecken et al. 2022).
    """
    n_batches = int(batch.max()) + 1
    weights = kernel(distances, distances.shape[1] / 3)
    shares = np.stack([(weights * (batch[neighbours] == b)).sum(1) for b in range(n_batches)], axis=1)
    lisi = 1 / (shares**2).sum(1)
    return float((np.median(lisi) - 1) / (n_batches - 1))


def kernel(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Weights exp(−β·d) of each row's neighbours, of sum 1, β such that exp(entropy) is the perplexity.

    Distances enter as they are, not squared, as in the published implementation of LISI. All rows bisect at once.
    """
    target = np.log(max(perplexity, 1.0))
    # weights know no unit, so bisection starts at 1 in a unit of each row's own; subtracting the smallest changes none
    d = distances - distances.min(1, keepdims=True)
    unit = d.mean(1, keepdims=True)
    d = d / np.where(unit > 0, unit, 1)
    beta = np.ones((len(d), 1))
    low, high = np.zeros_like(beta), np.full_like(beta, np.inf)
    for _ in range(_STEPS):
        weights = np.exp(-beta * d)
        total = weights.sum(1, keepdims=True)
        entropy = np.log(total) + beta * (weights * d).sum(1, keepdims=True) / total
        if np.abs(entropy - target).max() < _TOLERANCE:
            break
        flat = entropy > target
        low, high = np.where(flat, beta, low), np.where(flat, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + np.where(np.isinf(high), low, high)) / 2)
    return weights / total
