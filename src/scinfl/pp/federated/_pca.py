"""Principal components of the cells of all sites, from sums of products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from scinfl.federation import Protection
from scinfl.pp.federated._features import at_features, check_n_comps, chosen_features, params_of
from scinfl.pp.federated._gram import Gram, full, leading_eigenvectors
from scinfl.pp.federated._site_sums import Computation, Matrix, SiteSums, blocks, column_sums, matrix_of, run
from scinfl.privacy import Key


def federated_pca(
    adata: AnnData,
    n_comps: int = 50,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | None = "auto",
    zero_mean: bool = True,
    min_cells: int = 10,
) -> None:
    r"""Principal components of all cells, found without pooling them.

    Every site sums its cells, then the products of every two features around the common mean. The sums of all sites
    make the covariance,

    .. math:: C = \frac{1}{n - 1} \sum_i (x_i - \bar{x}) (x_i - \bar{x})^\top,

    whose leading eigenvectors are the components, and every site projects its own cells. The components are those of
    :func:`scanpy.pp.pca` on pooled cells. The entry of each with the largest absolute value is positive.

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn the number of cells,
    the mean and the covariance of the chosen features over all cells; nobody sees those of a single site (with two
    sites each can subtract its own). Without ``key`` the server sees the sums of every site. The covariance of more
    features than cells reveals a lot about the cells: choose features where sites are small.

    Sets the following fields:

    ``.obsm["X_pca"]``
        Coordinates (cells × components, float32).
    ``.varm["PCs"]``
        Loadings (features × components), 0 for features that were not chosen.
    ``.uns["pca"]``
        ``variance``, ``variance_ratio``, ``mean`` (features; 0 for those not chosen) and ``params``.
    ``.uns["infl"]["payload"]["federated_pca"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data, not a view. Dense or sparse; sparse values are never centred densely.
    n_comps
        Number of components, less than the number of cells and at most that of features.
    site_key
        Column of ``adata.obs`` with the site of each cell.
    key
        Secret key of the sites for keyed sums; ``None`` for plain sums.
    protections
        What guards the sums in place of keyed ones, for example a :class:`~scinfl.privacy.PairwiseSum`.
    layer
        Layer to use in place of X.
    mask_var
        Column of ``adata.var``, or booleans, that choose features. ``"auto"`` takes ``"highly_variable"`` where it
        exists, ``None`` all.
    zero_mean
        Subtract the mean. Without, the components are those of a truncated singular value decomposition.
    min_cells
        Least number of cells of a site.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If ``adata`` is a view, values are missing, a site is too small, or there cannot be so many components.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=5)
    >>> si.pp.federated_pca(adata, 20, site_key="site", key=si.privacy.Key.generate())
    >>> adata.obsm["X_pca"].shape
    (700, 20)
    """
    sites = SiteSums(adata, "federated_pca", site_key=site_key, key=key, min_cells=min_cells, protections=protections)
    matrix = matrix_of(adata, layer, sites.rows)
    columns, mask_name = chosen_features(adata, mask_var)
    check_n_comps(n_comps, min(adata.n_obs - 1, len(columns)), "what cells and features allow")
    mean = np.zeros(len(columns))
    if zero_mean:
        sums = {}
        for site, rows in sites.rows.items():
            totals = (column_sums(block) for _, block in blocks(matrix, rows, columns))
            sums[site] = {"sum": sum(totals, np.zeros(len(columns)))}
        mean = run(sites.mean("PCA", sums))[0]["sum"]
    found = principal_components(sites, matrix, columns, n_comps, mean, zero_mean=zero_mean)
    values, loadings, total = run(found)
    coordinates = np.empty((adata.n_obs, n_comps), np.float32)
    for rows in sites.rows.values():
        for own, block in blocks(matrix, rows, columns):
            coordinates[own] = block @ loadings - mean @ loadings
    chosen = mask_name == "highly_variable"
    adata.obsm["X_pca"] = coordinates
    adata.varm["PCs"] = at_features(columns, loadings, adata.n_vars)
    adata.uns["pca"] = {
        "mean": at_features(columns, mean, adata.n_vars),
        "variance": values,
        "variance_ratio": values / total if total > 0 else np.zeros(n_comps),
        "params": params_of(site_key, mask_name, layer, zero_center=zero_mean, use_highly_variable=chosen),
    }
    sites.keep()


def principal_components(
    sites: SiteSums, matrix: Matrix, columns: np.ndarray, n_comps: int, mean: np.ndarray, *, zero_mean: bool = True
) -> Computation[tuple[np.ndarray, np.ndarray, float]]:
    """Variances and loadings of components of the chosen columns around their mean, and the variance of all."""
    sums = {}
    for site, rows in sites.rows.items():
        gram = Gram(len(columns), (block for _, block in blocks(matrix, rows, columns)))
        sums[site] = gram.around(mean, len(rows))
    pooled, n = yield from sites.mean("PCA, around the mean", sums)
    covariance = full(pooled["products_around_mean"], len(columns))
    if zero_mean:
        covariance -= np.outer(pooled["sum_around_mean"], pooled["sum_around_mean"])
    covariance *= n / (n - 1)
    values, loadings = leading_eigenvectors(covariance, n_comps)
    return np.maximum(values, 0), loadings, float(np.trace(covariance))
