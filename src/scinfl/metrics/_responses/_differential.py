"""Which genes a perturbation changes: moments of conditions, Welch's t and the tables that metrics score on."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

_ROWS = 4096


def condition_moments(X: Any, codes: np.ndarray, n_conditions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count (conditions), mean and unbiased variance (conditions × genes, float64) of each gene in each condition.

    One product with the indicator matrix of the conditions gives the sums, another the sums of squares; a dense matrix
    is read in blocks of rows. The variance of a single cell is 0; moments of a condition without cells are NaN.
    """
    codes = np.asarray(codes)
    if codes.shape != (X.shape[0],) or (len(codes) and codes.max() >= n_conditions):
        msg = (
            f"Expected a number below {n_conditions} for each of {X.shape[0]} cells, found {len(codes)} numbers up to "
            f"{codes.max(initial=-1)}. Number the conditions from 0."
        )
        raise ValueError(msg)
    rows = np.flatnonzero(codes >= 0)
    n = np.bincount(codes[rows], minlength=n_conditions)
    indicator = sparse.csr_matrix((np.ones(len(rows)), (codes[rows], rows)), shape=(n_conditions, len(codes)))
    if sparse.issparse(X):
        offset = np.zeros(X.shape[1])
        sums, squares = _sparse_sums(X, indicator)
    else:
        # far from zero the squares would swamp the variance
        offset = np.asarray(np.mean(X, axis=0, dtype=np.float64))
        sums, squares = _dense_sums(X, indicator.tocsc(), offset)
    count = n[:, None].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, square = sums / count, squares / count
        spread = square - mean**2
        # what is left of a constant gene is rounding, and t would make a signal of it
        rounding = count * np.finfo(np.float64).eps
        spread[spread <= rounding * square] = 0
        variance = spread * count / np.maximum(count - 1, 1)
        mean += offset
        # a gene that is silent in the condition must have a mean of exactly 0, since dropouts are recognised by it
        mean[(spread == 0) & (np.abs(mean) <= rounding * np.abs(offset))] = 0
    return n, mean, variance


def _sparse_sums(X: Any, indicator: Any) -> tuple[np.ndarray, np.ndarray]:
    values = sparse.csr_matrix(X, dtype=np.float64)
    if not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    return (indicator @ values).toarray(), (indicator @ values.multiply(values)).toarray()


def _dense_sums(X: Any, indicator: Any, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums, squares = np.zeros((2, indicator.shape[0], X.shape[1]))
    for start in range(0, X.shape[0], _ROWS):
        block = np.asarray(X[start : start + _ROWS], dtype=np.float64) - offset
        members = indicator[:, start : start + _ROWS]
        sums += members @ block
        squares += members @ block**2
    return sums, squares


def welch_scores(
    mean: np.ndarray,
    variance: np.ndarray,
    n: np.ndarray,
    control_mean: np.ndarray,
    control_variance: np.ndarray,
    n_control: int,
) -> np.ndarray:
    r"""Welch's t of each gene in each condition against the control (conditions × genes); 0 where it varies in neither.

    :math:`t = (m - m_0) / \sqrt{v / n + v_0 / n_0}` (Welch 1947).
    """
    error = np.sqrt(variance / np.asarray(n)[:, None] + control_variance / n_control)
    return np.divide(mean - control_mean, error, out=np.zeros_like(error), where=error > 0)


def rank_genes(
    mean: np.ndarray,
    variance: np.ndarray,
    n: np.ndarray,
    control_mean: np.ndarray,
    control_variance: np.ndarray,
    n_control: int,
) -> np.ndarray:
    """Positions of the genes of each condition from the most to the least differential, by the absolute Welch's t.

    The order of ``scanpy.tl.rank_genes_groups(..., method="t-test", rankby_abs=True)`` with the control as reference,
    by which GEARS ranks (Roohani et al. 2024). Ties keep the order of the genes.
    """
    scores = welch_scores(mean, variance, n, control_mean, control_variance, n_control)
    return np.argsort(-np.abs(scores), axis=1, kind="stable")


def top_genes(order: np.ndarray, mean: np.ndarray, control_mean: np.ndarray, n_top: int) -> dict[str, np.ndarray]:
    """First genes of a ranking (positions, conditions × ``n_top``, −1 where there are fewer), as GEARS is scored.

    Of all, of those expressed, and of those that are no dropouts: a mean of 0 where that of the control is not 0.
    """
    non_zero = mean != 0
    eligible = {
        "top_de": np.ones_like(non_zero),
        "top_non_zero_de": non_zero,
        "top_non_dropout_de": non_zero | (control_mean == 0),
    }
    return {name: _first(order, mask, n_top) for name, mask in eligible.items()}


def _first(order: np.ndarray, eligible: np.ndarray, n_top: int) -> np.ndarray:
    ranked = np.take_along_axis(eligible, order, axis=1)
    place = np.cumsum(ranked, axis=1) - 1
    rows, columns = np.nonzero(ranked & (place < n_top))
    table = np.full((len(order), n_top), -1)
    table[rows, place[rows, columns]] = order[rows, columns]
    return table
