"""Highly variable genes from sums over sites, beside scanpy's on pooled cells."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scinfl.pp import federated_highly_variable_genes, split_sites

COLUMNS = {
    "seurat": ["means", "dispersions", "dispersions_norm"],
    "cell_ranger": ["means", "dispersions", "dispersions_norm"],
    "seurat_v3": ["means", "variances", "variances_norm"],
}


@pytest.fixture(scope="module")
def counts(shared):
    """Real counts with logarithms in a layer, split into five uneven sites."""
    adata = ad.read_h5ad(shared("singlecell/kang2018_pbmc_ctrl_stim_2x1000.h5ad"))
    sc.pp.filter_genes(adata, min_cells=10)
    adata.layers["logarithms"] = adata.X.astype(np.float64)
    sc.pp.normalize_total(adata, target_sum=1e4, layer="logarithms")
    sc.pp.log1p(adata, layer="logarithms")
    split_sites(adata, 5, by="stim", alpha=1.0)
    return adata


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("flavor", list(COLUMNS))
def test_genes_are_scanpys_on_pooled_cells(counts, key, flavor, locked):
    layer = None if flavor == "seurat_v3" else "logarithms"
    pooled = counts.copy()
    sc.pp.highly_variable_genes(pooled, n_top_genes=1000, flavor=flavor, layer=layer)
    adata = counts.copy()
    federated_highly_variable_genes(
        adata, 1000, site_key="site", key=key if locked else None, flavor=flavor, layer=layer
    )
    assert (adata.var["highly_variable"] == pooled.var["highly_variable"]).all()
    # scanpy's own loess moves by 1e-3 with the last digits of its input, between dense and sparse for example
    rtol = 5e-3 if flavor == "seurat_v3" else 1e-4
    for column in COLUMNS[flavor]:
        np.testing.assert_allclose(adata.var[column], pooled.var[column], rtol=rtol, atol=1e-6, err_msg=column)
    assert adata.uns["hvg"] == {"flavor": flavor}


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_bundled_cells_in_float32_give_scanpys_genes(key, flavor):
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    pooled = adata.copy()
    sc.pp.highly_variable_genes(pooled, n_top_genes=200, flavor=flavor)
    split_sites(adata, 5)
    federated_highly_variable_genes(adata, 200, site_key="site", key=key, flavor=flavor)
    assert (adata.var["highly_variable"] == pooled.var["highly_variable"]).all()


@pytest.mark.parametrize("flavor", list(COLUMNS))
def test_dense_and_sparse_agree(flavor):
    X = np.random.default_rng(0).negative_binomial(1, 0.3, (200, 60)).astype(np.float32) * np.linspace(1, 9, 60).round()
    X = X.astype(np.float32) if flavor == "seurat_v3" else np.log1p(X).astype(np.float32)
    found = []
    for matrix in (X, sparse.csr_matrix(X), sparse.csc_matrix(X), X.astype(np.float64)):
        adata = ad.AnnData(matrix, pd.DataFrame({"site": ["a", "b"] * 100}, index=[str(i) for i in range(200)]))
        federated_highly_variable_genes(adata, 20, site_key="site", flavor=flavor)
        found.append(adata.var[["highly_variable", "means"]])
    for other in found[1:]:
        assert (other["highly_variable"] == found[0]["highly_variable"]).all()
        np.testing.assert_allclose(other["means"], found[0]["means"], rtol=1e-5)


def test_the_base_of_the_logarithm_is_honoured(counts):
    adata, pooled = counts.copy(), counts.copy()
    for other in (adata, pooled):
        other.layers["logarithms"] = other.layers["logarithms"] / np.log(2)
        other.uns["log1p"] = {"base": 2}
    sc.pp.highly_variable_genes(pooled, n_top_genes=500, layer="logarithms")
    federated_highly_variable_genes(adata, 500, site_key="site", layer="logarithms")
    assert (adata.var["highly_variable"] == pooled.var["highly_variable"]).all()


def test_constant_genes_and_genes_nobody_expresses_are_not_chosen(cells):
    cells.X = np.log1p(np.abs(cells.X))
    cells.X[:, 0], cells.X[:, 1] = 0, 3.3
    federated_highly_variable_genes(cells, 25, site_key="site")
    assert not cells.var["highly_variable"].iloc[:2].any()
    assert cells.var["dispersions"].iloc[:2].isna().all()


def test_more_genes_than_there_are_chooses_all_that_vary(cells):
    cells.X = np.log1p(np.abs(cells.X))
    cells.X[:, 0] = 0
    federated_highly_variable_genes(cells, 5000, site_key="site")
    assert cells.var["highly_variable"].sum() == 29


def test_counts_and_their_regression_are_asked_for(cells, monkeypatch):
    cells.X = np.abs(cells.X)
    with pytest.warns(UserWarning, match="expects counts"):
        federated_highly_variable_genes(cells, 5, site_key="site", flavor="seurat_v3")
    cells.X = cells.X.round()
    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    with pytest.raises(ImportError, match="pip install scikit-misc"):
        federated_highly_variable_genes(cells, 5, site_key="site", flavor="seurat_v3")


def test_bad_input_is_refused(cells):
    with pytest.raises(ValueError, match="Expected `flavor` to be one of"):
        federated_highly_variable_genes(cells, site_key="site", flavor="pearson")
    with pytest.raises(ValueError, match="n_top_genes"):
        federated_highly_variable_genes(cells, 0, site_key="site")
    with pytest.raises(KeyError, match="Expected `layer` to name a layer"):
        federated_highly_variable_genes(cells, site_key="site", layer="counts")
    cells.X[:] = 0
    with pytest.raises(ValueError, match="percentiles that coincide"):
        federated_highly_variable_genes(cells, site_key="site", flavor="cell_ranger")
    with pytest.raises(ValueError, match="genes that vary, found none"):
        federated_highly_variable_genes(cells, site_key="site")
