"""Pairs of spots in different sections that are each other's nearest neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import sparse
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from scinfl._checks import first_of, number_between, one_of, whole_number
from scinfl.model.spamosaic._spatial_graph import rows_by_name

Metric = Literal["cosine", "euclidean", "manhattan"]

# pynndescent compiles for half a minute in every process, in which exact search compares 50,000 with 50,000 spots
_EXACT_BELOW = 50_000
_CANDIDATES, _EPSILON = 30, 0.4  # finds 97 % of the pairs of 20,000 and 20,000 spots; an epsilon of 0.1 finds 92 %


def mutual_neighbours(
    x: np.ndarray,
    y: np.ndarray,
    *,
    n_neighbours: int = 10,
    n_neighbours_other: int | None = None,
    metric: Metric = "cosine",
    exact_below: int = _EXACT_BELOW,
    rng: int = 0,
) -> np.ndarray:
    """Pairs of spots that list each other among their nearest in the other section (Haghverdi et al. 2018).

    The published SpaMosaic searches approximately, by ``metric="manhattan"`` on rows of length 1.

    Returns
    -------
    Pairs × 2 (int64): rows of ``x`` and of ``y``, sorted.

    Raises
    ------
    ValueError
        If features differ in number or are not finite, or a row of zeros has no direction for the cosine.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.model.spamosaic._mutual_neighbours import mutual_neighbours
    >>> x, y = np.array([[0.0], [5.0], [6.0]]), np.array([[0.1], [5.6]])
    >>> mutual_neighbours(x, y, n_neighbours=1, metric="euclidean").tolist()
    [[0, 0], [2, 1]]
    """
    one_of("metric", metric, ["cosine", "euclidean", "manhattan"])
    whole_number("exact_below", exact_below, 0)
    k, k_other = n_neighbours, n_neighbours if n_neighbours_other is None else n_neighbours_other
    whole_number("n_neighbours", k, 1)
    whole_number("n_neighbours_other", k_other, 1)
    x, y = _checked(x, metric), _checked(y, metric)
    if x.shape[1] != y.shape[1]:
        msg = f"Expected the same features in both sections, found {x.shape[1]} and {y.shape[1]}. Use shared features."
        raise ValueError(msg)
    if not len(x) or not len(y):
        return np.empty((0, 2), np.int64)
    if metric == "cosine":  # for rows of length 1 the same order as euclidean, for which searches are quicker
        x, y, metric = normalize(x), normalize(y), "euclidean"
    exact = np.sqrt(len(x) * len(y)) < exact_below
    listing = _lists(y, x, k_other, metric, exact=exact, rng=rng)
    mutual = _lists(x, y, k, metric, exact=exact, rng=rng).multiply(listing.T).tocsr()
    mutual.sort_indices()
    return np.stack(mutual.nonzero(), axis=1).astype(np.int64)


def adaptive_neighbours(n: int, m: int, base: int, *, threshold: float = 0.8) -> tuple[int, int]:
    """How many neighbours the spots of two sections list of each other, fewer where one section is much smaller.

    Spots of the larger section list ``base`` times the ratio of sizes (at least 1), so that each spot of the smaller is
    listed about as often as it would be among equals; those of the smaller list ``base``.

    Returns
    -------
    Number for the section of n spots, and for that of m.

    Examples
    --------
    >>> from scinfl.model.spamosaic._mutual_neighbours import adaptive_neighbours
    >>> adaptive_neighbours(1000, 900, 10), adaptive_neighbours(1000, 300, 10)
    ((10, 10), (3, 10))
    """
    ratio = min(n, m) / max(n, m)
    if ratio >= threshold:
        return base, base
    fewer = max(1, int(base * ratio))
    return (fewer, base) if n > m else (base, fewer)


def without_outliers(
    pairs: np.ndarray,
    coordinates_x: np.ndarray,
    coordinates_y: np.ndarray,
    *,
    share: float | Literal["auto"] = "auto",
    rng: int = 0,
) -> np.ndarray:
    """Drop pairs that are unlike the others in space, by an isolation forest (Liu et al. 2008).

    The forest sees both places of a pair and their difference, so coordinates of the sections should roughly agree.

    Returns
    -------
    Pairs × 2, those that stay.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.model.spamosaic._mutual_neighbours import without_outliers
    >>> place = np.random.default_rng(0).random((50, 2))
    >>> pairs = np.r_[np.c_[:50, :50], [[0, 49]]]
    >>> len(without_outliers(pairs, place, place, share=0.02))
    50
    """
    if share != "auto":
        number_between("share", share, 0, 0.5, open_low=True)
    if len(pairs) < 2:
        return pairs
    one, other = np.asarray(coordinates_x)[pairs[:, 0]], np.asarray(coordinates_y)[pairs[:, 1]]
    places = np.hstack([one, other, one - other])
    return pairs[IsolationForest(contamination=share, random_state=rng).fit_predict(places) == 1]


def section_pairs(
    x: np.ndarray,
    section: np.ndarray,
    *,
    site: np.ndarray | None = None,
    measured: np.ndarray | None = None,
    bridge: Collection[str] | None = None,
    n_neighbours: int = 10,
    adaptive: bool = False,
    coordinates: np.ndarray | None = None,
    outlier_share: float | Literal["auto"] | None = None,
    metric: Metric = "cosine",
    exact_below: int = _EXACT_BELOW,
    rng: int = 0,
) -> np.ndarray:
    """Mutual nearest neighbours between all sections of a site; spots of two sites are never compared.

    Returns
    -------
    Pairs × 2 (int64) of rows of ``x``. Each two sections come once, the one whose name sorts first to the left.

    Raises
    ------
    ValueError
        If a bridge does not occur, coordinates are missing, or features cannot be compared.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.model.spamosaic._mutual_neighbours import section_pairs
    >>> x = np.array([[0.0], [9.0], [0.1], [9.1], [9.2]])
    >>> section_pairs(x, np.array(list("aabbc")), n_neighbours=1, metric="euclidean").tolist()
    [[0, 2], [1, 3], [1, 4], [3, 4]]
    """
    if unknown := sorted(set(bridge or ()) - set(map(str, np.unique(section)))):
        msg = f"Expected `bridge` to name sections, found {len(unknown)} that do not occur: {first_of(unknown)}."
        raise ValueError(msg)
    if outlier_share is not None and coordinates is None:
        msg = "Expected `coordinates` to drop outliers by, found none. Pass them, or `outlier_share=None`."
        raise ValueError(msg)
    found = [np.empty((0, 2), np.int64)]
    for one, other in _compared(section, site, measured, bridge):
        k, k_other = n_neighbours, n_neighbours
        if adaptive:
            k, k_other = adaptive_neighbours(len(one), len(other), n_neighbours)
        pairs = mutual_neighbours(
            x[one],
            x[other],
            n_neighbours=k,
            n_neighbours_other=k_other,
            metric=metric,
            exact_below=exact_below,
            rng=rng,
        )
        if outlier_share is not None:
            places = np.asarray(coordinates)
            pairs = without_outliers(pairs, places[one], places[other], share=outlier_share, rng=rng)
        found.append(np.c_[one[pairs[:, 0]], other[pairs[:, 1]]])
    return np.concatenate(found)


def _compared(
    section: np.ndarray, site: np.ndarray | None, measured: np.ndarray | None, bridge: Collection[str] | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each two sections to compare."""
    looked_at = np.arange(len(section)) if measured is None else np.flatnonzero(measured)
    sites = np.zeros(len(section)) if site is None else np.asarray(site)
    for _, rows in rows_by_name(sites[looked_at]):
        own = {name: looked_at[rows[at]] for name, at in rows_by_name(section[looked_at[rows]])}
        bridges = set(own) & set(bridge or ())
        for one, other in combinations(own, 2):
            if not bridges or bridges & {one, other}:
                yield own[one], own[other]


def _lists(
    queries: np.ndarray, points: np.ndarray, n_neighbours: int, metric: str, *, exact: bool, rng: int
) -> sparse.csr_matrix:
    """Which points each query lists as its nearest (queries × points, ones)."""
    n, k = len(queries), min(n_neighbours, len(points))
    if exact:
        search = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(points)
        at = search.kneighbors(queries, return_distance=False)
    else:
        from pynndescent import NNDescent

        index = NNDescent(points, metric=metric, n_neighbors=max(_CANDIDATES, k), random_state=rng)
        at, _ = index.query(queries, k=k, epsilon=_EPSILON)
    rows, found = np.repeat(np.arange(n), k), at.ravel() >= 0  # a descent that finds too few fills with -1
    ones = np.ones(int(found.sum()), np.int8)
    return sparse.csr_matrix((ones, (rows[found], at.ravel()[found])), shape=(n, len(points)))


def _checked(x: np.ndarray, metric: str) -> np.ndarray:
    x = np.asarray(x)
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64, copy=False)
    if not np.isfinite(x).all():
        n = int((~np.isfinite(x)).any(1).sum())
        msg = f"Expected finite features of every spot, found {n} of {len(x)} spots without. Impute or drop them."
        raise ValueError(msg)
    if metric == "cosine" and (n := int((~x.any(1)).sum())):
        msg = (
            f"Expected features with a direction for the cosine, found {n} of {len(x)} spots that are 0 throughout. "
            "Drop them, or use metric='euclidean'."
        )
        raise ValueError(msg)
    return x
