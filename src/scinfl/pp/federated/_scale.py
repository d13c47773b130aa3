"""Scale features by their mean and deviation over the cells of all sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from scipy import sparse

from scinfl._checks import number_between, warn
from scinfl.federation import Protection
from scinfl.pp.federated._moments import pooled_moments
from scinfl.pp.federated._site_sums import Matrix, SiteSums, matrix_of
from scinfl.privacy import Key


def federated_scale(
    adata: AnnData,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    zero_mean: bool = True,
    max_value: float | None = None,
    layer: str | None = None,
    min_cells: int = 10,
) -> None:
    """Scale features to mean 0 and variance 1 over all cells, without pooling them.

    Every site sums its values, then their squares around the common mean; with the mean and deviation of all sites it
    scales its own cells. The result is that of :func:`scanpy.pp.scale` on pooled cells (deviation with n - 1; constant
    features become 0).

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn the number of cells,
    and the mean and deviation of each feature over all cells; nobody sees those of a single site (with two sites each
    can subtract its own). Without ``key`` the server sees the sums of every site.

    Sets the following fields:

    ``.X`` or ``.layers[layer]``
        Scaled values; float32 stays float32, whole numbers become float64.
    ``.var["mean"]``, ``.var["std"]``
        Mean and deviation of each feature over all cells (1 for constant features).
    ``.uns["infl"]["payload"]["federated_scale"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data, not a view.
    site_key
        Column of ``adata.obs`` with the site of each cell.
    key
        Secret key of the sites for keyed sums; ``None`` for plain sums.
    protections
        What guards the sums in place of keyed ones, for example a :class:`~scinfl.privacy.PairwiseSum`.
    zero_mean
        Subtract the mean, which makes sparse values dense (with a warning). Without, sparse values stay sparse.
    max_value
        Clip scaled values to this, and to its negative with ``zero_mean``.
    layer
        Layer to scale in place of X.
    min_cells
        Least number of cells of a site.

    Raises
    ------
    KeyError
        If the column or layer does not exist.
    ValueError
        If ``adata`` is a view, values are missing, or a site is too small.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3)
    >>> si.pp.federated_scale(adata, site_key="site", max_value=10)
    >>> abs(adata.X.mean(0)).max() < 0.1
    np.True_
    """
    if max_value is not None:
        number_between("max_value", max_value, 0, float(np.finfo(np.float32).max), open_low=True)
    sites = SiteSums(adata, "federated_scale", site_key=site_key, key=key, min_cells=min_cells, protections=protections)
    matrix = matrix_of(adata, layer, sites.rows)
    mean, variance, _ = pooled_moments(sites, matrix, "scaling")
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1
    scaled = matrix.astype(matrix.dtype if np.issubdtype(matrix.dtype, np.floating) else np.float64)
    if sparse.issparse(scaled) and zero_mean:
        warn("Subtracting the mean makes sparse values dense. Pass `zero_mean=False` to keep them sparse.")
        scaled = scaled.toarray()
    _scale(scaled, mean if zero_mean else None, deviation, max_value)
    if layer is None:
        adata.X = scaled
    else:
        adata.layers[layer] = scaled
    adata.var["mean"], adata.var["std"] = mean, deviation
    sites.keep()


def _scale(values: Matrix, mean: np.ndarray | None, deviation: np.ndarray, max_value: float | None) -> None:
    """Scale in place; row by row the same at every site, so the rows need not be taken apart."""
    if sparse.issparse(values):
        values.data /= deviation[values.indices]
        if max_value is not None:
            np.minimum(values.data, max_value, out=values.data)
        return
    if mean is not None:
        values -= mean
    values /= deviation
    if max_value is not None:
        np.clip(values, -max_value if mean is not None else None, max_value, out=values)
