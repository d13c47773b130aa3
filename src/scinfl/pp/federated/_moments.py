"""Means and variances of features over the cells of all sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from scinfl.pp.federated._site_sums import Computation, Matrix, SiteSums, blocks, column_sums, run

_ROUNDING = 1e-12  # what is left of the variance of a constant feature, as a share of its mean square

Change = Callable[[np.ndarray], np.ndarray]
"""Maps values, and 0 to 0."""


def pooled_moments(
    sites: SiteSums, matrix: Matrix, purpose: str, change: Change | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and unbiased variance of each feature over all sites, and the number of cells."""
    (found,), n = run(moments_of(sites, [(matrix, change)], purpose))
    return *found, n


def moments_of(
    sites: SiteSums, parts: Sequence[tuple[Matrix, Change | None]], purpose: str
) -> Computation[tuple[list[tuple[np.ndarray, np.ndarray]], int]]:
    """Means and unbiased variances of several matrices at once, and the number of cells.

    Means come first and squares are taken around them: a difference of two large sums would lose digits.
    """
    zero, rows = np.zeros(1), sites.rows.items()
    numbered = [(f" {number}" * (number > 0), *part) for number, part in enumerate(parts)]
    sums = {site: {f"sum{n}": sum_around(x, own, zero, change) for n, x, change in numbered} for site, own in rows}
    pooled, n_cells = yield from sites.mean(purpose, sums)
    means = {n: pooled[f"sum{n}"] for n, _, _ in numbered}
    sums = {
        site: {
            **{f"sum_around_mean{n}": sum_around(x, own, means[n], change) for n, x, change in numbered},
            **{f"squares_around_mean{n}": squares_around(x, own, means[n], change) for n, x, change in numbered},
        }
        for site, own in rows
    }
    around, _ = yield from sites.mean(f"{purpose}, around the mean", sums)
    found = []
    for n, mean in means.items():
        variance = around[f"squares_around_mean{n}"] - around[f"sum_around_mean{n}"] ** 2
        variance[variance <= _ROUNDING * (variance + mean**2)] = 0
        found.append((mean, variance * (n_cells / max(n_cells - 1, 1))))
    return found, n_cells


def sum_around(matrix: Matrix, rows: np.ndarray, point: np.ndarray, change: Change | None = None) -> np.ndarray:
    """Sum of the differences of a site's values from a point, for each feature."""
    sums = (column_sums(with_values(block, change)) for _, block in blocks(matrix, rows))
    return sum(sums, np.zeros(matrix.shape[1])) - len(rows) * point


def squares_around(matrix: Matrix, rows: np.ndarray, point: np.ndarray, change: Change | None = None) -> np.ndarray:
    """Sum of the squared differences of a site's values from a point, for each feature."""
    squares = np.zeros(matrix.shape[1])
    for _, block in blocks(matrix, rows):
        changed = with_values(block, change)
        if sparse.issparse(changed):
            # the values that are not stored differ from the point by the point itself
            square = point**2
            changed.data = (changed.data - point[changed.indices]) ** 2 - square[changed.indices]
            squares += column_sums(changed) + changed.shape[0] * square
        else:
            squares += np.square(changed - point).sum(0)
    return squares


def with_values(block: Matrix, change: Change | None) -> Matrix:
    """Apply a function that keeps 0 to the values of a block."""
    if change is None:
        return block
    if not sparse.issparse(block):
        return change(block)
    return type(block)((change(block.data), block.indices, block.indptr), shape=block.shape)
