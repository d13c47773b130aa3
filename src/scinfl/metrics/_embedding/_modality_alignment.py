"""How well two modalities of the same spots meet in one embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from scinfl._checks import one_of, whole_number
from scinfl.metrics._embedding._integration import _codes, _matrix
from scinfl.metrics._embedding._label_structure import label_transfer
from scinfl.metrics._embedding._mixing import nearest

_BLOCK = 2**23
_ROUNDING = 1e-12


def modality_alignment(
    x: np.ndarray,
    y: np.ndarray,
    *,
    labels: Sequence[str] | np.ndarray | pd.Series | None = None,
    n_neighbours: int = 1,
    metric: str = "cosine",
) -> pd.DataFrame:
    r"""Scores of how well a spot's embedding from one modality finds the embedding of the same spot from another.

    ==================  ======================================================================  ====================
    Score               Meaning                                                                 By chance
    ==================  ======================================================================  ====================
    ``matching_score``  weight that shared neighbours give to the right partner, 0 to 1 (a)     1 / spots
    ``foscttm``         share of the other spots closer than the partner, 0 is best (b)         0.5
    ``label_transfer``  macro F1 of each modality's labels, voted by 10 spots of the other      1 / labels
    ``cosine``          cosine of a spot's two embeddings, mean, -1 to 1                        that of any two spots
    ==================  ======================================================================  ====================

    (a) With :math:`N(i)` the ``n_neighbours`` nearest spots of each modality around spot i of ``x``, and those
    around spot j of ``y`` (a spot is the nearest to itself within its own modality), the weight of a pair is the
    Jaccard index of :math:`N(i)` and :math:`N(j)`, over the sum of its row. The matching score is the mean weight of
    the pairs (i, i). With one neighbour, spots that are each other's nearest weigh 1 and one-sided pairs 1/3. The score
    is that of Lance et al. 2022 (PMLR 176:162), the weights are those of Tu et al. 2022 (CLUE, NeurIPS 35).

    (b) Fraction of samples closer than the true match (Liu et al. 2019, LIPIcs 143:10), of all spots but the partner,
    ties counting half, mean of both directions.

    Chance is what spots that are paired at random have on average: exactly, but for ``label_transfer``, where it is
    that of guesses as frequent as the labels are. In ``label_transfer`` the partner votes too, as in SpaMosaic.

    Compute the scores of each section by itself. Time grows with the square of the spots, memory only with their
    number.

    Parameters
    ----------
    x, y
        Spots × dimensions, row i of both the same spot.
    labels
        Label of each spot, for ``label_transfer``. Spots without one (missing) do not count there.
    n_neighbours
        Nearest spots that the matching score looks at.
    metric
        ``"cosine"`` or ``"euclidean"``: what is near, in all scores but ``cosine``.

    Returns
    -------
    Tidy data frame with the columns ``metric``, ``value`` and ``chance``.

    Raises
    ------
    ValueError
        If shapes or lengths differ, values are missing, or a row is zero and has no direction.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> table = si.metrics.modality_alignment(x, x + 0.01).set_index("metric")
    >>> table.loc[["matching_score", "foscttm"], "value"].tolist(), table.loc["foscttm", "chance"].item()
    ([1.0, 0.0], 0.5)
    """
    whole_number("n_neighbours", n_neighbours, 1)
    one_of("metric", metric, ["cosine", "euclidean"])
    x, y = _matrix(x, "x", None), _matrix(y, "y", None)
    _check_pairs(x, y, n_neighbours)
    n = len(x)
    x_unit, y_unit = _directions(x, "x"), _directions(y, "y")
    if metric == "cosine":  # distances of unit vectors rank as cosines do
        x, y = x_unit, y_unit
    scores = {
        "matching_score": (_matching_score(x, y, n_neighbours), 1 / n),
        "foscttm": (_foscttm(x, y), 0.5),
    }
    if labels is not None:
        codes = _codes(labels, "labels", n, missing=True)
        known = codes >= 0
        modality = np.repeat([0, 1], known.sum())
        value = label_transfer(np.concatenate([x[known], y[known]]), np.tile(codes[known], 2), modality)
        scores["label_transfer"] = (value, 1 / (codes.max() + 1))
    cosine = np.einsum("ij,ij->i", x_unit, y_unit).mean()
    scores["cosine"] = (float(cosine), float(x_unit.mean(0) @ y_unit.mean(0)))
    table = pd.DataFrame(list(scores.values()), columns=["value", "chance"], dtype=np.float64)
    table.insert(0, "metric", list(scores))
    return table


def _matching_score(x: np.ndarray, y: np.ndarray, n_neighbours: int) -> float:
    """Mean weight of the right pairs among the Jaccard indices of shared neighbours."""
    x_in_y, y_in_x = _neighbours_in(x, y, n_neighbours), _neighbours_in(y, x, n_neighbours)
    x_in_x, y_in_y = _neighbours_within(x, n_neighbours), _neighbours_within(y, n_neighbours)
    shared = (x_in_y @ y_in_y.T + (y_in_x @ x_in_x.T).T).tocsr()
    shared.data = shared.data / (4 * n_neighbours - shared.data)  # both sets have 2 × n_neighbours members
    # a spot shares its nearest spot with that spot itself, so no row is empty
    return float((shared.diagonal() / shared.sum(1)).mean())


def _neighbours_in(points: np.ndarray, others: np.ndarray, k: int) -> sparse.csr_array:
    return _graph(NearestNeighbors(n_neighbors=k).fit(others).kneighbors(points, return_distance=False))


def _neighbours_within(points: np.ndarray, k: int) -> sparse.csr_array:
    """A point is its own nearest, whatever the ties."""
    own = np.arange(len(points))[:, None]
    return _graph(own if k == 1 else np.concatenate([own, nearest(points, k - 1)[1]], axis=1))


def _graph(neighbours: np.ndarray) -> sparse.csr_array:
    n, k = neighbours.shape
    return sparse.csr_array((np.ones(n * k), neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def _foscttm(x: np.ndarray, y: np.ndarray) -> float:
    """Both directions from one pass over blocks of squared distances."""
    n = len(x)
    x_squares, y_squares = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    partner = x_squares + y_squares - 2 * np.einsum("ij,ij->i", x, y)
    # equal rows differ by rounding, and a row must tie with its copies
    near = _ROUNDING * (x_squares.max() + y_squares.max())
    twice_closer = 0  # every spot strictly closer counts twice, a tie once, the partner (a tie with itself) once
    rows = max(1, _BLOCK // n)
    for start in range(0, n, rows):
        own = slice(start, start + rows)
        distances = x_squares[own, None] + y_squares - 2 * x[own] @ y.T
        for bound in (partner[own, None], partner):
            twice_closer += int((distances < bound - near).sum() + (distances <= bound + near).sum())
    return (twice_closer - 2 * n) / (4 * n * (n - 1))


def _check_pairs(x: np.ndarray, y: np.ndarray, n_neighbours: int) -> None:
    if x.shape != y.shape:
        msg = (
            f"Expected `x` and `y` to hold the same spots in one embedding, found the shapes {x.shape} and {y.shape}. "
            "Take the spots that both modalities measured, in one order."
        )
        raise ValueError(msg)
    least = max(2, n_neighbours)
    if len(x) < least:
        msg = f"Expected at least {least} spots, found {len(x)}."
        raise ValueError(msg)


def _directions(matrix: np.ndarray, argument: str) -> np.ndarray:
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    if zeros := int((length == 0).sum()):
        msg = f"Expected rows of `{argument}` with a direction, found {zeros} of zeros. Drop these rows of `x` and `y`."
        raise ValueError(msg)
    return matrix / length
