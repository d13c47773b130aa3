"""Variances of counts beside those of genes of the same mean, over the cells of all sites."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from scinfl._checks import warn
from scinfl.pp.federated._moments import pooled_moments
from scinfl.pp.federated._site_sums import Matrix, SiteSums, blocks, column_sums, run

_SPAN = 0.3


def normalised_variances(sites: SiteSums, matrix: Matrix, n_top_genes: int) -> pd.DataFrame:
    r"""Variance of clipped standardised counts (Stuart et al. 2019), from three rounds of sums.

    .. math::
        \frac{1}{(n - 1) \sigma^2} \sum_i (\min(x_i, c) - \mu)^2, \quad c = \mu + \sigma \sqrt{n}

    with the deviation :math:`\sigma` that a local regression (loess, degree 2) of log variance on log mean expects. The
    regression interpolates between vertices that move with the last digits of its input, by about 1e-3.
    """
    values = matrix.data if sparse.issparse(matrix) else matrix
    if values.size and (values.min() < 0 or not np.array_equal(values, np.floor(values))):
        warn(
            "`flavor='seurat_v3'` expects counts, found values that are no whole numbers or negative. Name the layer "
            "of counts with `layer`."
        )
    mean, variance, n = pooled_moments(sites, matrix, "highly variable genes (seurat_v3)")
    deviation = np.sqrt(10 ** _expected_log_variance(mean, variance))
    largest = mean + deviation * np.sqrt(n)
    sums = {
        site: {"clipped_squares": _clipped_squares(matrix, rows, mean, largest)} for site, rows in sites.rows.items()
    }
    pooled, _ = run(sites.mean("highly variable genes (seurat_v3), clipped", sums))
    normalised = pooled["clipped_squares"] * n / ((n - 1) * deviation**2)
    order = np.argsort(-normalised, kind="stable")
    rank = np.empty(len(order), np.float32)
    rank[order] = np.arange(len(order))
    chosen = rank < n_top_genes
    return pd.DataFrame(
        {
            "means": mean,
            "variances": variance,
            "variances_norm": normalised,
            "highly_variable_rank": np.where(chosen, rank, np.float32(np.nan)),
            "highly_variable": chosen,
        }
    )


def _expected_log_variance(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Logarithm (base 10) of the variance of genes of such a mean; 0 for constant genes."""
    try:
        from skmisc.loess import loess
    except ImportError as error:
        msg = "Expected scikit-misc for flavor='seurat_v3', found none. Install it with `pip install scikit-misc`."
        raise ImportError(msg) from error
    expected = np.zeros(len(mean))
    varies = (variance > 0) & (mean > 0)
    curve = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=_SPAN, degree=2)
    try:
        curve.fit()
    except ValueError as error:
        msg = (
            f"Expected genes of different means for the regression of flavor='seurat_v3', found {varies.sum()} that "
            f"vary ({error}). Name the layer of counts with `layer`, or choose another flavor."
        )
        raise ValueError(msg) from error
    expected[varies] = curve.outputs.fitted_values
    return expected


def _clipped_squares(matrix: Matrix, rows: np.ndarray, mean: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Sum of the squared differences of a site's clipped counts from the mean."""
    squares = np.zeros(len(mean))
    for _, block in blocks(matrix, rows):
        if sparse.issparse(block):
            clipped = np.minimum(block.data, largest[block.indices])
            block.data = (clipped - mean[block.indices]) ** 2 - mean[block.indices] ** 2
            squares += column_sums(block) + block.shape[0] * mean**2
        else:
            squares += np.square(np.minimum(block, largest) - mean).sum(0)
    return squares
