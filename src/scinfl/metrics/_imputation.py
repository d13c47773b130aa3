"""How close imputed values of a modality come to measured ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from scinfl._checks import as_numbers, finite, number_between, same_order, whole_number

Matrix: TypeAlias = Any
"""Dense array or sparse matrix."""

_BLOCK = 2**22
_POOLED = 2**23
_CONSTANT = 1e-10


def imputation(
    measured: np.ndarray | sparse.spmatrix | sparse.sparray,
    imputed: np.ndarray | sparse.spmatrix | sparse.sparray,
    *,
    features: Sequence[str] | None = None,
    threshold: float | None = None,
    n_cmd: int = 2_000,
    rng: int = 0,
) -> pd.DataFrame:
    r"""Scores of imputed against measured values, over cells and over features.

    ==========================================  ======================================================================
    Score                                       Meaning
    ==========================================  ======================================================================
    ``pcc_cell``, ``pcc_cell_median``           Pearson correlation over the features of a cell: mean, median
    ``pcc_feature``, ``pcc_feature_median``     Pearson correlation over the cells of a feature: mean, median
    ``cmd_cell``, ``cmd_feature``               correlation matrix distance of cells, of features; 0 is best, at most 1
    ``rmse``                                    root mean squared error of all values, in their unit
    ``auroc``                                   area under the ROC curve of all values together (with ``threshold``)
    ``auroc_cell``, ``auroc_feature``           that of each cell, of each feature: mean (with ``threshold``)
    ``constant_cells``, ``constant_features``   how many are constant as measured, and left out of ``pcc`` and ``cmd``
    ``uniform_cells``, ``uniform_features``     how many are all above or all below the threshold, and left out
    ==========================================  ======================================================================

    What is left out depends on the measured values alone, so that methods are compared on the same cells and features.
    A cell or feature that varies as measured and is constant as imputed correlates with nothing: its correlation is 0.
    By that rule a method that imputes the mean of each feature has ``pcc_feature`` 0; but ``pcc_cell`` is high for
    every method that knows which features are abundant.

    The correlation matrix distance of two correlation matrices is

    .. math:: 1 - \frac{\operatorname{tr}(R_1 R_2)}{\lVert R_1 \rVert_F \lVert R_2 \rVert_F}

    (Herdin et al. 2005, IEEE VTC 1:136). It depends on how many cells or features the matrices hold, and is low where
    both are close to the identity: read it beside that of a baseline.

    Values are read in blocks: neither matrix is made dense or copied as a whole.

    Parameters
    ----------
    measured, imputed
        Cells × features, in the same order, on the same scale where ``rmse`` matters.
    features
        Names of the features, for messages.
    threshold
        Measured values above are positives of ``auroc``: 0 for open chromatin, for example. ``None`` leaves ``auroc``
        out.
    n_cmd
        Correlation matrices of more cells or features than this are of that many at random. ``auroc`` of more than
        8 million values is of as many whole cells at random.
    rng
        Seed of this choice.

    Returns
    -------
    Tidy data frame with the columns ``metric`` and ``value``; NaN where a score does not exist.

    Raises
    ------
    ValueError
        If shapes differ, or values are missing or infinite.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> measured = np.random.default_rng(0).poisson(3.0, (50, 20))
    >>> table = si.metrics.imputation(measured, measured + 1.0).set_index("metric")["value"]
    >>> table[["pcc_cell", "cmd_feature", "rmse"]].round(3).tolist()
    [1.0, 0.0, 1.0]
    """
    whole_number("n_cmd", n_cmd, 2)
    generator = np.random.default_rng(rng)
    measured, imputed = _checked(measured, imputed, features, threshold)
    scores: dict[str, float] = {}
    both = {"cell": (measured, imputed), "feature": (_transposed(measured), _transposed(imputed))}
    tables = {axis: _by_row(*pair, threshold) for axis, pair in both.items()}
    for axis, table in tables.items():
        scores[f"pcc_{axis}"] = table["pcc"].mean()
        scores[f"pcc_{axis}_median"] = table["pcc"].dropna().median()
    for axis, table in tables.items():
        rows = np.flatnonzero(table["pcc"].notna())
        if len(rows) > n_cmd:
            rows = np.sort(generator.choice(rows, n_cmd, replace=False))
        scores[f"cmd_{axis}"] = _correlation_matrix_distance(*both[axis], rows)
    scores["rmse"] = math.sqrt((tables["cell"]["rmse"] ** 2).mean())
    if threshold is not None:
        scores["auroc"] = _pooled_auroc(measured, imputed, threshold, generator)
        scores |= {f"auroc_{axis}": table["auroc"].mean() for axis, table in tables.items()}
    scores |= {f"constant_{axis}s": table["pcc"].isna().sum() for axis, table in tables.items()}
    if threshold is not None:
        scores |= {f"uniform_{axis}s": table["auroc"].isna().sum() for axis, table in tables.items()}
    return pd.DataFrame({"metric": list(scores), "value": np.array(list(scores.values()), dtype=np.float64)})


def imputation_features(
    measured: np.ndarray | sparse.spmatrix | sparse.sparray,
    imputed: np.ndarray | sparse.spmatrix | sparse.sparray,
    *,
    features: Sequence[str] | None = None,
    threshold: float | None = None,
) -> pd.DataFrame:
    """Scores of each feature's imputed against its measured values over cells.

    Parameters
    ----------
    measured, imputed
        Cells × features, in the same order.
    features
        Names of the features; by default their numbers.
    threshold
        Measured values above are positives of ``auroc``. ``None`` leaves ``auroc`` out.

    Returns
    -------
    Data frame with one row per feature: ``pcc`` (NaN where the measured values are constant, 0 where only the imputed
    are), ``rmse`` and, with ``threshold``, ``auroc`` (NaN where all cells are on one side).

    Raises
    ------
    ValueError
        If shapes or the order of names differ, or values are missing or infinite.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> measured = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    >>> si.metrics.imputation_features(measured, measured / 2, features=["CD3", "CD8"]).round(2)
         pcc  rmse
    CD3  1.0  1.29
    CD8  NaN  0.50
    """
    measured, imputed = _checked(measured, imputed, features, threshold)
    table = _by_row(_transposed(measured), _transposed(imputed), threshold)
    return table if features is None else table.set_axis(list(map(str, features)))


def _by_row(measured: Matrix, imputed: Matrix, threshold: float | None) -> pd.DataFrame:
    """Correlation, error and area under the curve of each row."""
    pairs = zip(_blocks(measured), _blocks(imputed), strict=True)
    return pd.concat([_row_scores(*pair, threshold) for pair in pairs], ignore_index=True)


def _row_scores(measured: np.ndarray, imputed: np.ndarray, threshold: float | None) -> pd.DataFrame:
    scores = {"rmse": np.sqrt(((measured - imputed) ** 2).mean(1))}
    if threshold is not None:
        scores["auroc"] = _auroc(measured > threshold, imputed)
    (a, a_size), (b, b_size) = _centred(measured), _centred(imputed)
    products, sizes = np.einsum("ij,ij->i", a, b), a_size * b_size
    pcc = np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return pd.DataFrame({"pcc": np.where(a_size > 0, pcc, np.nan)} | scores)


def _centred(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows minus their means, and their lengths; 0 for rows that differ from their mean by rounding alone."""
    means = rows.mean(1, keepdims=True)
    centred = rows - means
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))
    return centred, np.where(lengths > _CONSTANT * np.abs(means[:, 0]) * math.sqrt(rows.shape[1]), lengths, 0)


def _auroc(positive: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each row, from the ranks of its positives (Mann and Whitney)."""
    n_positive = positive.sum(1)
    ranks = (rankdata(values, axis=1) * positive).sum(1)
    pairs = n_positive * (positive.shape[1] - n_positive)
    wins = ranks - n_positive * (n_positive + 1) / 2
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)


def _pooled_auroc(measured: Matrix, imputed: Matrix, threshold: float, generator: np.random.Generator) -> float:
    n, n_most = measured.shape[0], max(1, _POOLED // measured.shape[1])
    if n > n_most:
        chosen = np.sort(generator.choice(n, n_most, replace=False))
        measured, imputed = measured[chosen], imputed[chosen]
    positive = np.concatenate([block.ravel() > threshold for block in _blocks(measured)])
    values = np.concatenate([block.ravel() for block in _blocks(imputed)])
    return float(_auroc(positive[None], values[None])[0])


def _correlation_matrix_distance(measured: Matrix, imputed: Matrix, rows: np.ndarray) -> float:
    """Distance of the correlation matrices of the chosen rows."""
    if len(rows) < 2:
        return math.nan
    first, second = (_correlations(_transposed(matrix[rows])) for matrix in (measured, imputed))
    similarity = (first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second))
    return max(0.0, 1 - float(similarity))


def _correlations(matrix: Matrix) -> np.ndarray:
    """Correlations of columns, from blocks of rows. Constant columns correlate with themselves alone."""
    n, p = matrix.shape
    means = np.asarray(matrix.mean(0, dtype=np.float64)).ravel()
    products = np.zeros((p, p))
    for block in _blocks(matrix):
        centred = block - means
        products += centred.T @ centred
    lengths = np.sqrt(np.diag(products))
    varies = lengths > _CONSTANT * np.abs(means) * math.sqrt(n)
    factors = np.divide(1, lengths, out=np.zeros(p), where=varies)
    correlations = products * factors * factors[:, None]
    np.fill_diagonal(correlations, 1)
    return correlations


def _blocks(matrix: Matrix) -> Iterator[np.ndarray]:
    """Rows in dense blocks of float64."""
    rows = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], rows):
        block = matrix[start : start + rows]
        yield np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def _transposed(matrix: Matrix) -> Matrix:
    return matrix.T.tocsr() if sparse.issparse(matrix) else matrix.T


def _checked(
    measured: Matrix, imputed: Matrix, features: Sequence[str] | None, threshold: float | None
) -> tuple[Matrix, Matrix]:
    if threshold is not None:
        number_between("threshold", threshold, -math.inf, math.inf)
    for axis in ("index", "columns"):
        same_order(measured, imputed, "measured", "imputed", axis=axis)
    measured, imputed = (as_numbers(matrix) for matrix in (measured, imputed))
    if measured.ndim != 2 or measured.shape != imputed.shape or 0 in measured.shape:
        msg = (
            "Expected `measured` and `imputed` to be matrices of the same cells and features, found the shapes "
            f"{measured.shape} and {imputed.shape}. Select them by name, in one order."
        )
        raise ValueError(msg)
    n_features = measured.shape[1]
    names = list(map(str, range(n_features) if features is None else features))
    if len(names) != n_features:
        msg = f"Expected a name in `features` for each of the {n_features} features, found {len(names)}."
        raise ValueError(msg)
    finite(measured, names, where=" in `measured`")
    finite(imputed, names, where=" in `imputed`")
    return measured, imputed
