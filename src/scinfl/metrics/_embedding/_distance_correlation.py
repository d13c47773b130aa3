"""Distance correlation without a matrix of all distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

_ROWS = 512


def distance_correlations(variables: Mapping[str, np.ndarray], of: Sequence[tuple[str, str]]) -> list[float]:
    """Distance correlation of pairs of variables (samples, or samples × dimensions), in blocks of rows.

    The covariance of the doubly centred distances expands to sums over distances and products of row sums, so that no
    matrix of all distances is held (Székely, Rizzo & Bakirov 2007, equation 2.18 and after).
    """
    columns = {name: np.atleast_2d(values.T).T.astype(np.float64) for name, values in variables.items()}
    n = len(next(iter(columns.values())))
    wanted = [*of, *((name, name) for name in columns)]
    row_sums = {name: np.empty(n) for name in columns}
    products = dict.fromkeys(wanted, 0.0)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        distances = {name: cdist(values[rows], values) for name, values in columns.items()}
        for name, block in distances.items():
            row_sums[name][rows] = block.sum(1)
        for first, second in wanted:
            products[first, second] += float(np.vdot(distances[first], distances[second]))
    covariance = {
        (first, second): max(
            0.0,
            product / n**2
            - 2 * float(row_sums[first] @ row_sums[second]) / n**3
            + float(row_sums[first].sum()) * float(row_sums[second].sum()) / n**4,
        )
        for (first, second), product in products.items()
    }
    spread = [np.sqrt(covariance[first, first] * covariance[second, second]) for first, second in of]
    return [
        float(np.sqrt(covariance[pair] / both)) if both > 0 else np.nan for pair, both in zip(of, spread, strict=True)
    ]
