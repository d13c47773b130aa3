"""Highly variable genes over the cells of all sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import looks_like_counts, one_of, whole_number
from scinfl.federation import Protection
from scinfl.pp.federated._moments import Change, pooled_moments
from scinfl.pp.federated._seurat_v3 import normalised_variances
from scinfl.pp.federated._site_sums import SiteSums, matrix_of
from scinfl.privacy import Key

_N_BINS = 20
_NORMAL_QUARTILE = 0.6744897501960817  # median absolute deviation of a standard normal


def federated_highly_variable_genes(
    adata: AnnData,
    n_top_genes: int = 2000,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    layer: str | None = None,
    flavor: Literal["seurat", "cell_ranger", "seurat_v3"] = "seurat",
    min_cells: int = 10,
) -> None:
    r"""Find genes that vary more than others of their mean over all cells, without pooling them.

    The genes are those of :func:`scanpy.pp.highly_variable_genes` on pooled cells:

    ``"seurat"`` (Satija et al. 2015) and ``"cell_ranger"`` (Zheng et al. 2017)
        On logarithms. Every site sums its values (of :math:`e^x - 1` for ``"seurat"``), then their squares around the
        common mean; the dispersions :math:`\sigma^2 / \mu` are normalised among genes of similar mean.
    ``"seurat_v3"`` (Stuart et al. 2019)
        On counts. After means and variances all sites fit the same curve of variance over mean; in a last round every
        site sums the squares of its counts around the mean, clipped at :math:`\mu + \sigma_\mathrm{fit} \sqrt{n}`.

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn the number of cells
    and, of each gene, mean and variance over all cells, for ``"seurat_v3"`` also that after clipping; nobody sees
    those of a single site (with two sites each can subtract its own). A gene that only few cells of one site express
    shows in the mean that some site has it. Without ``key`` the server sees the sums of every site.

    Sets the following fields:

    ``.var["highly_variable"]``, ``.var["means"]``
        Whether a gene is chosen, and its mean.
    ``.var["dispersions"]``, ``.var["dispersions_norm"]``
        For ``"seurat"`` and ``"cell_ranger"``.
    ``.var["variances"]``, ``.var["variances_norm"]``, ``.var["highly_variable_rank"]``
        For ``"seurat_v3"``.
    ``.uns["hvg"]``
        The flavour.
    ``.uns["infl"]["payload"]["federated_highly_variable_genes"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data, not a view.
    n_top_genes
        Number of genes to choose.
    site_key
        Column of ``adata.obs`` with the site of each cell.
    key
        Secret key of the sites for keyed sums; ``None`` for plain sums.
    protections
        What guards the sums in place of keyed ones, for example a :class:`~scinfl.privacy.PairwiseSum`.
    layer
        Layer to use in place of X.
    flavor
        How genes are ranked.
    min_cells
        Least number of cells of a site.

    Raises
    ------
    ImportError
        If ``"seurat_v3"`` is asked for and scikit-misc is not installed.
    KeyError
        If the column or layer does not exist.
    ValueError
        If ``adata`` is a view, values are missing or do not fit the flavour, or a site is too small.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc().raw.to_adata()
    >>> si.pp.split_sites(adata, n_sites=5)
    >>> si.pp.federated_highly_variable_genes(adata, 100, site_key="site", key=si.privacy.Key.generate())
    >>> int(adata.var["highly_variable"].sum())
    100
    """
    one_of("flavor", flavor, ["seurat", "cell_ranger", "seurat_v3"])
    whole_number("n_top_genes", n_top_genes, 1)
    sites = SiteSums(
        adata,
        "federated_highly_variable_genes",
        site_key=site_key,
        key=key,
        min_cells=min_cells,
        protections=protections,
    )
    matrix = matrix_of(adata, layer, sites.rows)
    if flavor == "seurat_v3":
        table = normalised_variances(sites, matrix, n_top_genes)
    else:
        if looks_like_counts(matrix):
            msg = (
                f"Expected logarithms for flavor='{flavor}', found what looks like raw counts. Run "
                "`sc.pp.normalize_total(adata)` and `sc.pp.log1p(adata)` first, or choose `flavor='seurat_v3'`."
            )
            raise ValueError(msg)
        change = unlogged(_log_base(adata)) if flavor == "seurat" else None
        mean, variance, _ = pooled_moments(sites, matrix, f"highly variable genes ({flavor})", change)
        table = dispersions(mean, variance, n_top_genes, flavor)
    for name in table:
        adata.var[name] = table[name].to_numpy()
    adata.uns["hvg"] = {"flavor": flavor}
    sites.keep()


def _log_base(adata: AnnData) -> float:
    """Natural logarithm of the base that scanpy's ``log1p`` noted, or 1."""
    base = adata.uns.get("log1p", {}).get("base")
    return 1.0 if base is None else float(np.log(base))


def unlogged(log_base: float = 1.0) -> Change:
    """Function that takes logarithms back to counts."""
    return lambda values: np.expm1(values * log_base)


def dispersions(mean: np.ndarray, variance: np.ndarray, n_top: int, flavor: str) -> pd.DataFrame:
    """Dispersions of features among those of a similar mean, from their moments over all sites, and the highest."""
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    if flavor == "seurat":
        with np.errstate(invalid="ignore"):
            dispersion = np.log(np.where(dispersion == 0, np.nan, dispersion))
            mean = np.log1p(mean)
    table = pd.DataFrame({"means": mean, "dispersions": dispersion})
    percentiles = np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf]
    bins = pd.cut(table["means"], bins=_N_BINS if flavor == "seurat" else _distinct(percentiles, flavor))
    groups = table["dispersions"].groupby(bins, observed=True)
    if flavor == "seurat":
        level, spread = groups.transform("mean"), groups.transform("std")
        alone = spread.isna()  # the only gene of its bin gets 1
        level, spread = level.mask(alone, 0), spread.mask(alone, level)
    else:
        level = groups.transform("median")
        deviations = (table["dispersions"] - level).abs()
        spread = deviations.groupby(bins, observed=True).transform("median") / _NORMAL_QUARTILE
    table["dispersions_norm"] = ((table["dispersions"] - level) / spread).astype(np.float32)
    table["highly_variable"] = _highest(table["dispersions_norm"].to_numpy(), n_top)
    return table


def _distinct(edges: np.ndarray, flavor: str) -> np.ndarray:
    if (np.diff(edges) <= 0).any():
        msg = (
            f"Expected means that differ between genes for flavor='{flavor}', found percentiles that coincide: too "
            "many genes are not expressed. Filter genes at all sites first, or use flavor='seurat'."
        )
        raise ValueError(msg)
    return edges


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """Values among the n highest; equals of the last are chosen too."""
    known = values[~np.isnan(values)]
    if not len(known):
        msg = "Expected genes that vary, found none. Look whether `layer` holds the logarithms that this flavor takes."
        raise ValueError(msg)
    lowest = np.sort(known)[::-1][min(n, len(known)) - 1]
    return np.nan_to_num(values, nan=-np.inf) >= lowest
