"""How well sections or batches share one embedding and its clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score

from scinfl._checks import whole_number
from scinfl.metrics._embedding._label_structure import graph_connectivity, label_transfer
from scinfl.metrics._embedding._mixing import ilisi, knn_mixing, nearest
from scinfl.metrics._embedding._silhouettes import asw_batch, asw_label
from scinfl.metrics._embedding._spatial_scores import chaos, morans_i, pas, spatial_neighbours


def integration(
    embedding: np.ndarray,
    *,
    batch: Sequence[str] | np.ndarray | pd.Series,
    labels: Sequence[str] | np.ndarray | pd.Series | None = None,
    clusters: Sequence[str] | np.ndarray | pd.Series | None = None,
    coordinates: np.ndarray | None = None,
    section: Sequence[str] | np.ndarray | pd.Series | None = None,
    n_neighbours: int = 30,
    n_silhouette: int = 10_000,
    rng: int = 0,
) -> pd.DataFrame:
    """Scores of an integrated embedding and its clusters: agreement with labels, mixing, and smoothness in space.

    Higher is better but for ``pas`` and ``chaos``. What there is depends on the arguments:

    ========================  ======================  ==========================================================
    Score                     Needs                   Meaning
    ========================  ======================  ==========================================================
    ``ari``                   clusters, labels        adjusted Rand index, 0 by chance, at most 1
    ``nmi``                   clusters, labels        normalised mutual information, 0 to 1
    ``homogeneity``           clusters, labels        clusters hold one label each, 0 to 1
    ``asw_label``             labels                  silhouette of the labels as (s + 1)/2, 0 to 1 (a)
    ``graph_connectivity``    labels                  share of a label in the largest piece of its kNN graph (a)
    ``label_transfer``        labels, two batches     macro F1 of each batch's labels, voted by the others' cells
    ``asw_batch``             two batches             1 − size of the batches' silhouette within a label (a)
    ``ilisi``                 two batches             local inverse Simpson index of the batches, 0 to 1 (a, b)
    ``mixing``                two batches             neighbours from other batches over those of a full mix
    ``pas``                   coordinates, clusters   spots unlike 6 of their 10 nearest spots, 0 to 1 (c)
    ``chaos``                 coordinates, clusters   distance to the nearest spot of the cluster, scaled axes (c)
    ``morans_i``              coordinates             Moran's I of the embedding's dimensions, mean
    ``morans_i_clusters``     coordinates, clusters   Moran's I of being in a cluster, mean over clusters
    ========================  ======================  ==========================================================

    Definitions: (a) Luecken et al. 2022, Nature Methods 19:41; (b) Korsunsky et al. 2019, Nature Methods 16:1289;
    (c) Shang & Zhou 2022, Nature Communications 13:7203.

    The spatial scores are computed within each section, with the 10 nearest spots, and averaged over sections.

    Parameters
    ----------
    embedding
        Cells × dimensions.
    batch
        Batch (section, donor, site) of each cell.
    labels
        True label of each cell. Cells without one (missing) do not count in scores that need labels.
    clusters
        Cluster or domain of each cell.
    coordinates
        Cells × axes, in any unit.
    section
        Section of each cell, the batch by default.
    n_neighbours
        Nearest cells in the embedding for ``ilisi``, ``mixing`` and ``graph_connectivity``. The perplexity of ``ilisi``
        is a third of it: 90 gives the 30 of the original (b). Where an embedding is smoothed over spots of a section,
        the nearest cells are the spots it was smoothed over: take more than these, or mixing is always poor.
    n_silhouette
        The silhouettes take time that grows with the square of the cells: beyond so many, of that many at random.
    rng
        Seed of this choice.

    Returns
    -------
    Tidy data frame with the columns ``metric`` and ``value``; NaN where a score does not exist, such as a silhouette of
    one label.

    Raises
    ------
    ValueError
        If lengths differ, or values, batches, sections or clusters are missing.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat(["a", "b"], 50)
    >>> embedding = np.repeat([[0.0], [9.0]], 50, axis=0) + generator.normal(size=(100, 2))
    >>> table = si.metrics.integration(embedding, batch=["x", "y"] * 50, labels=labels, clusters=labels)
    >>> float(table.set_index("metric").loc["ari", "value"])
    1.0
    """
    whole_number("n_neighbours", n_neighbours, 1)
    whole_number("n_silhouette", n_silhouette, 2)
    X = _matrix(embedding, "embedding", None)
    n = len(X)
    if n < 2:
        msg = f"Expected at least 2 cells, found {n}."
        raise ValueError(msg)
    batches = _codes(batch, "batch", n)
    sections = batches if section is None else _codes(section, "section", n)
    truth = None if labels is None else _codes(labels, "labels", n, missing=True)
    found = None if clusters is None else _codes(clusters, "clusters", n)
    chosen = np.arange(n)
    if n > n_silhouette:
        chosen = np.sort(np.random.default_rng(rng).choice(n, n_silhouette, replace=False))
    scores = _agreement(truth, found) | _geometry(X, batches, truth, n_neighbours, chosen)
    if coordinates is not None:
        scores |= _in_space(X, _matrix(coordinates, "coordinates", n), sections, found)
    return pd.DataFrame({"metric": list(scores), "value": np.array(list(scores.values()), dtype=np.float64)})


def _agreement(truth: np.ndarray | None, found: np.ndarray | None) -> dict[str, float]:
    if truth is None or found is None:
        return {}
    a, b = truth[truth >= 0], found[truth >= 0]
    return {
        "ari": float(adjusted_rand_score(a, b)),
        "nmi": float(normalized_mutual_info_score(a, b)),
        "homogeneity": float(homogeneity_score(a, b)),
    }


def _geometry(
    X: np.ndarray, batches: np.ndarray, truth: np.ndarray | None, n_neighbours: int, chosen: np.ndarray
) -> dict[str, float]:
    scores = {}
    distances, neighbours = nearest(X, n_neighbours)
    several = batches.max() > 0
    if truth is not None:
        known = truth >= 0
        own = chosen[known[chosen]]
        scores["asw_label"] = asw_label(X[own], truth[own])
        scores["graph_connectivity"] = graph_connectivity(neighbours, truth)
        if several:
            scores["label_transfer"] = label_transfer(X[known], truth[known], batches[known])
            scores["asw_batch"] = asw_batch(X[own], batches[own], truth[own])
    elif several:
        scores["asw_batch"] = asw_batch(X[chosen], batches[chosen], None)
    if several:
        scores["ilisi"] = ilisi(distances, neighbours, batches)
        scores["mixing"] = knn_mixing(neighbours, batches)
    return scores


def _in_space(
    X: np.ndarray, coordinates: np.ndarray, sections: np.ndarray, found: np.ndarray | None
) -> dict[str, float]:
    around = spatial_neighbours(coordinates, sections)
    scores = {}
    if found is not None:
        scores = {"pas": pas(around, found), "chaos": chaos(coordinates, sections, found)}
    scores["morans_i"] = morans_i(around, X)
    if found is not None:
        scores["morans_i_clusters"] = morans_i(around, np.eye(found.max() + 1)[found])
    return scores


def _matrix(values: np.ndarray, argument: str, n: int | None) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or (n is not None and len(matrix) != n):
        rows = "rows" if n is None else f"{n} rows"
        msg = f"Expected `{argument}` to be a matrix of {rows}, found the shape {matrix.shape}."
        raise ValueError(msg)
    if bad := int((~np.isfinite(matrix)).any(1).sum()):
        msg = f"Expected finite values in `{argument}`, found {bad} rows with others. Drop these rows first."
        raise ValueError(msg)
    return matrix


def _codes(
    names: Sequence[str] | np.ndarray | pd.Series, argument: str, n: int, *, missing: bool = False
) -> np.ndarray:
    """Whole numbers from 0, one per name, and −1 where it is missing."""
    values = pd.Series(np.asarray(names, dtype=object))
    if len(values) != n:
        msg = f"Expected an entry of `{argument}` for each of the {n} rows, found {len(values)}."
        raise ValueError(msg)
    codes = pd.factorize(values, sort=False)[0]
    if (codes < 0).any() and (not missing or (codes < 0).all()):
        msg = f"Expected `{argument}` for every row, found {(codes < 0).sum()} of {n} missing. Drop these rows first."
        raise ValueError(msg)
    return codes
