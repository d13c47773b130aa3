"""What sections show at several scales, judged without labels: by two halves of what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import KFold, cross_val_predict

from scinfl._checks import looks_like_counts
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import width_of
from scinfl.model.spamosaic._spatial_graph import spatial_graph

_N_COMPONENTS = 30
_N_FEATURES = 2000
_N_STARTS = 3  # of k-means


def compare_scales(
    measured: Measured, scales: Sequence[str | int], n_clusters: Sequence[int], n_halvings: int, rng: int
) -> pd.DataFrame:
    """Spots that are averaged, stability and held-out fit of each scale (scales × 3)."""
    generator = np.random.default_rng(rng)
    hops = [_hops(measured, scale) for scale in scales]
    found = np.zeros((len(scales), 2))
    for _ in range(n_halvings):
        parts = [_components(half, measured.section) for half in _halves(measured, generator)]
        for row, (hop, n_hops) in enumerate(hops):
            around = [centred(propagated(x, hop, n_hops)[-1], measured.section) for x in parts]
            fit = np.mean([_explained(around[0], parts[1]), _explained(around[1], parts[0])])
            found[row] += [_agreement(around, n_clusters, rng), fit]
    spots = [1.0 if not n_hops else float(np.diff((hop**n_hops).indptr).mean()) for hop, n_hops in hops]
    stability, held_out = found.T / n_halvings
    index = pd.Index([str(scale) for scale in scales], name="scale")
    return pd.DataFrame({"spots": spots, "stability": stability, "held_out": held_out}, index)


def _hops(measured: Measured, scale: str | int) -> tuple[sparse.csr_matrix, int]:
    """Weights of one hop at a scale, and how many hops there are."""
    width, n_hops = width_of(scale)
    graph = spatial_graph(measured.coordinates, measured.section, n_neighbours=width or 1)
    return hop_matrix(graph), n_hops


def _halves(measured: Measured, rng: np.random.Generator) -> Iterator[Matrix]:
    """Two halves without a count in common, normalised; of other values, two halves of the features."""
    matrix, how = measured.matrix, measured.normalise
    if not looks_like_counts(matrix):
        values = normalised(matrix, how)
        order = rng.permutation(matrix.shape[1])
        yield from (values[:, own] for own in np.array_split(order, 2))
        return
    counts = sparse.csr_matrix(matrix)
    half = counts.copy()
    half.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(counts.dtype)
    yield from (normalised(own, how) for own in (half, counts - half))


def _components(values: Matrix, section: np.ndarray) -> np.ndarray:
    """Principal components of scaled features, around the mean of their section (spots × components)."""
    values = sparse.csc_matrix(values)
    variance = np.asarray(values.power(2).mean(0)).ravel() - np.asarray(values.mean(0)).ravel() ** 2
    columns = np.sort(np.argsort(-variance, kind="stable")[:_N_FEATURES])
    columns = columns[variance[columns] > 0]
    scaled = centred(values[:, columns].toarray() / np.sqrt(variance[columns]), section)
    n = min(_N_COMPONENTS, *(size - 1 for size in scaled.shape))
    return PCA(max(n, 1), random_state=0).fit_transform(scaled).astype(np.float32)


def _agreement(halves: Sequence[np.ndarray], n_clusters: Sequence[int], rng: int) -> float:
    """Adjusted Rand index between clusters of the halves, in the mean over their numbers."""
    scores = []
    for n in n_clusters:
        labels = [KMeans(n, n_init=_N_STARTS, random_state=rng).fit_predict(x) for x in halves]
        scores += [adjusted_rand_score(*pair) for pair in combinations(labels, 2)]
    return float(np.mean(scores))


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the variance of one half's components that averages of the other's explain, in other spots."""
    folds = KFold(5, shuffle=True, random_state=0)
    ridge = RidgeCV(np.geomspace(1e-3, 1e2, 6) * len(x))
    predicted = cross_val_predict(ridge, x / max(x.std(), 1e-12), y, cv=folds)
    return float(1 - ((y - predicted) ** 2).sum() / (y**2).sum())
