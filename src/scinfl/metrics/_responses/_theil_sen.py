"""Robust regression on two variables without intercept."""

from __future__ import annotations

import numpy as np

_MAX_STEPS = 1000
_TOLERANCE = 1e-7


def theil_sen(X: np.ndarray, y: np.ndarray, *, n_subsets: int = 100_000, rng: int = 1000) -> np.ndarray:
    r"""Both coefficients of :math:`y \approx X c`: the spatial median of the solutions of pairs of rows.

    The generalised Theil–Sen estimator (Dang, Peng, Wang & Zhang 2008) with two variables. It is that of
    ``sklearn.linear_model.TheilSenRegressor(fit_intercept=False)`` run until it converges; solving all pairs at once
    takes a second for thousands of rows, and little memory. A pair that does not determine the coefficients
    gives the smallest ones that fit best.
    """
    n = len(X)
    if n * (n - 1) // 2 <= n_subsets:
        first, second = np.triu_indices(n, 1)
    else:
        generator = np.random.default_rng(rng)
        first = generator.integers(n, size=n_subsets)
        second = (first + generator.integers(1, n, size=n_subsets)) % n
    return _spatial_median(_solve(X[first], X[second], y[first], y[second]))


def _solve(first: np.ndarray, second: np.ndarray, y_first: np.ndarray, y_second: np.ndarray) -> np.ndarray:
    """Cramer's rule for each pair of rows; the pseudo-inverse of rank one where that is singular."""
    determinant = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    size = (first**2).sum(1) + (second**2).sum(1)
    regular = np.abs(determinant) > np.finfo(np.float64).eps * size
    cramer = np.column_stack(
        [y_first * second[:, 1] - y_second * first[:, 1], first[:, 0] * y_second - second[:, 0] * y_first]
    )
    rank_one = first * y_first[:, None] + second * y_second[:, None]
    divisor = np.where(regular, determinant, np.where(size > 0, size, 1))
    return np.where(regular[:, None], cramer, rank_one) / divisor[:, None]


def _spatial_median(points: np.ndarray) -> np.ndarray:
    """Weiszfeld's iteration, from the median of each coordinate since means of ratios run away."""
    median = np.median(points, axis=0)
    for _ in range(_MAX_STEPS):
        distance = np.sqrt(((points - median) ** 2).sum(1))
        weight = 1 / np.maximum(distance, 1e-9)  # the median may be one of the points
        moved = weight @ points / weight.sum()
        step, median = float(np.abs(moved - median).max()), moved
        if step < _TOLERANCE:
            break
    return median
