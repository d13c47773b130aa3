"""Latent semantic indexing of the cells of all sites, from sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from scipy import sparse

from scinfl.federation import Protection
from scinfl.pp.federated._features import at_features, check_n_comps, chosen_features, params_of
from scinfl.pp.federated._gram import Gram, full, leading_eigenvectors
from scinfl.pp.federated._site_sums import Computation, Matrix, SiteSums, blocks, column_sums, matrix_of, run
from scinfl.privacy import Key

_SCALE = 1e4
_MOST_FEATURES = 20_000


def federated_lsi(
    adata: AnnData,
    n_comps: int = 50,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | None = "auto",
    drop_first: bool = True,
    min_cells: int = 10,
) -> None:
    r"""Latent semantic indexing of counts (peaks, for example) of all cells, found without pooling them.

    Counts are weighted by the inverse mean of their feature over all cells (the n/Σ form of TF-IDF), divided by the
    sum of their cell, and :math:`\log(1 + 10^4 x)` is taken (Cao & Gao 2022). The right singular vectors of these
    values are the eigenvectors of their products, summed over all sites; every site projects its own cells and
    standardises each cell over its components (n - 1). The first component, which follows the depth of a cell, is
    dropped **after** that. The entry of each loading with the largest absolute value is positive.

    The products of every two features need :math:`8 p^2` bytes, and half of that is sent: choose the most variable
    features first. More than 20,000 are refused.

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn the number of cells,
    and of the chosen features the mean count and the mean products of their weighted logarithms, over all cells; nobody
    sees those of a single site (with two sites each can subtract its own). Without ``key`` the server sees the sums of
    every site. The products of more features than cells reveal a lot about the cells: choose features where sites are
    small.

    Sets the following fields:

    ``.obsm["X_lsi"]``
        Standardised coordinates (cells × components, float32); 0 for cells without counts.
    ``.varm["LSI"]``
        Loadings (features × components, the dropped one included), 0 for features that were not chosen.
    ``.uns["lsi"]``
        ``singular_values`` (the dropped one included), ``weights`` of the features and ``params``.
    ``.uns["infl"]["payload"]["federated_lsi"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data with counts, not a view.
    n_comps
        Number of components to write, at least 2.
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
    drop_first
        Find one component more, and drop the first.
    min_cells
        Least number of cells of a site.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If ``adata`` is a view, values are missing or negative, a site is too small, or there are too many features or
        components.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc().raw.to_adata()
    >>> si.pp.split_sites(adata, n_sites=5)
    >>> si.pp.federated_lsi(adata, 20, site_key="site", key=si.privacy.Key.generate())
    >>> adata.obsm["X_lsi"].shape
    (700, 20)
    """
    sites = SiteSums(adata, "federated_lsi", site_key=site_key, key=key, min_cells=min_cells, protections=protections)
    matrix = matrix_of(adata, layer, sites.rows)
    columns, mask_name = chosen_features(adata, mask_var)
    check_n_comps(n_comps, min(adata.n_obs, len(columns)) - drop_first, "what cells and features allow", least=2)
    n_found = n_comps + drop_first
    _check_features(len(columns))
    weights = run(inverse_means(sites, matrix, columns))
    values, loadings, n = run(latent_semantics(sites, matrix, columns, n_found, weights))
    coordinates = np.empty((adata.n_obs, n_comps), np.float32)
    for rows in sites.rows.values():
        for own, block in blocks(matrix, rows, columns):
            found = _standardised(weighted_logarithms(block, weights) @ loadings)
            coordinates[own] = found[:, int(drop_first) :]
    adata.obsm["X_lsi"] = coordinates
    adata.varm["LSI"] = at_features(columns, loadings, adata.n_vars)
    adata.uns["lsi"] = {
        "singular_values": np.sqrt(n * np.maximum(values, 0)),
        "weights": at_features(columns, weights, adata.n_vars),
        "params": params_of(site_key, mask_name, layer, drop_first=drop_first),
    }
    sites.keep()


def latent_semantics(
    sites: SiteSums, matrix: Matrix, columns: np.ndarray, n_found: int, weights: np.ndarray
) -> Computation[tuple[np.ndarray, np.ndarray, int]]:
    """The largest eigenvalues of products of weighted logarithms, loadings, and cells."""
    _check_features(len(columns))
    sums = {}
    for site, rows in sites.rows.items():
        parts = (weighted_logarithms(block, weights) for _, block in blocks(matrix, rows, columns))
        sums[site] = {"products": Gram(len(columns), parts).products()}
    pooled, n = yield from sites.mean("LSI", sums)
    values, loadings = leading_eigenvectors(full(pooled["products"], len(columns)), n_found)
    return values, loadings, n


def _check_features(n_features: int) -> None:
    if n_features > _MOST_FEATURES:
        msg = (
            f"Expected at most {_MOST_FEATURES} features, whose products are summed, found {n_features}. Choose some "
            "with `mask_var`, for example by `scinfl.pp.federated_highly_variable_genes(flavor='seurat_v3')`."
        )
        raise ValueError(msg)


def inverse_means(sites: SiteSums, matrix: Matrix, columns: np.ndarray) -> Computation[np.ndarray]:
    """Inverse mean of each feature over all cells; 0 for features that no cell has."""
    sums = {site: {"sum": _counts(matrix, rows, columns, site)} for site, rows in sites.rows.items()}
    pooled, _ = yield from sites.mean("LSI, weights of features", sums)
    mean = pooled["sum"]
    return np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)


def _counts(matrix: Matrix, rows: np.ndarray, columns: np.ndarray, site: str) -> np.ndarray:
    total = np.zeros(len(columns))
    for _, block in blocks(matrix, rows, columns):
        values = block.data if sparse.issparse(block) else block
        if values.size and values.min() < 0:
            msg = f"Expected counts, found negative values at site '{site}'. Name the layer of counts with `layer`."
            raise ValueError(msg)
        total += column_sums(block)
    return total


def weighted_logarithms(block: Matrix, weights: np.ndarray) -> Matrix:
    """Logarithms of weighted counts as shares of their cell, times 10,000; dividing by the depth before is no use."""
    if sparse.issparse(block):
        weighted = block.multiply(weights).tocsr()
        totals = np.asarray(weighted.sum(1)).ravel()
        factors = np.divide(_SCALE, totals, out=np.zeros_like(totals), where=totals > 0)
        weighted.data = np.log1p(weighted.data * np.repeat(factors, np.diff(weighted.indptr)))
        return weighted
    weighted = block * weights
    totals = weighted.sum(1, keepdims=True)
    return np.log1p(weighted * np.divide(_SCALE, totals, out=np.zeros_like(totals), where=totals > 0))


def _standardised(found: np.ndarray) -> np.ndarray:
    """Each cell with mean 0 and deviation 1 over its components."""
    found = found - found.mean(1, keepdims=True)
    deviation = found.std(1, ddof=1, keepdims=True)
    return np.divide(found, deviation, out=np.zeros_like(found), where=deviation > 0)
