"""Principal components from sums over sites, beside those of pooled cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import linalg, sparse

from scinfl.pp import federated_pca, split_sites
from scinfl.pp.federated import _gram
from scinfl.pp.federated._gram import full, leading_eigenvectors


@pytest.fixture(scope="module")
def real(shared):
    """Real logarithms of 600 highly variable genes among others, split into five uneven sites."""
    adata = ad.read_h5ad(shared("singlecell/kang2018_pbmc_ctrl_stim_2x1000.h5ad"))
    sc.pp.filter_genes(adata, min_cells=20)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=600)
    split_sites(adata, 5, by="stim", alpha=1.0)
    return adata


def largest_angle(one, other):
    return float(linalg.subspace_angles(one, other).max())


def pooled_pca(adata, n_comps):
    """Naive pooled components in double precision."""
    X = adata.X[:, adata.var["highly_variable"].to_numpy()].toarray().astype(np.float64)
    centred = X - X.mean(0)
    _, singular, loadings = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2 / (len(X) - 1)
    return centred, loadings[:n_comps].T, variance[:n_comps], (variance / variance.sum())[:n_comps]


def test_components_are_those_of_pooled_cells_under_keyed_sums(real, key):
    adata = real.copy()
    federated_pca(adata, 30, site_key="site", key=key)
    centred, loadings, variance, ratio = pooled_pca(real, 30)
    own = adata.varm["PCs"][adata.var["highly_variable"]]
    assert largest_angle(own, loadings) < 1e-5
    np.testing.assert_allclose(adata.uns["pca"]["variance"], variance, rtol=1e-8)
    np.testing.assert_allclose(adata.uns["pca"]["variance_ratio"], ratio, rtol=1e-8)
    np.testing.assert_allclose(adata.obsm["X_pca"], centred @ own, atol=1e-4)
    assert not adata.varm["PCs"][~adata.var["highly_variable"]].any()


def test_components_are_scanpys(real, key):
    adata, pooled = real.copy(), real.copy()
    federated_pca(adata, 30, site_key="site", key=key)
    sc.pp.pca(pooled, 30)
    mask = real.var["highly_variable"].to_numpy()
    assert largest_angle(adata.varm["PCs"][mask], pooled.varm["PCs"][mask]) < 1e-3
    np.testing.assert_allclose(adata.uns["pca"]["variance_ratio"], pooled.uns["pca"]["variance_ratio"], rtol=1e-4)
    np.testing.assert_allclose(np.abs(adata.obsm["X_pca"]), np.abs(pooled.obsm["X_pca"]), atol=2e-2)
    assert adata.uns["pca"]["params"]["mask_var"] == "highly_variable"


def test_largest_loadings_are_positive_and_runs_agree_bit_for_bit(real):
    one, other = real.copy(), real.copy()
    federated_pca(one, 10, site_key="site")
    federated_pca(other, 10, site_key="site")
    loadings = one.varm["PCs"]
    assert (loadings[np.abs(loadings).argmax(0), np.arange(10)] > 0).all()
    assert (loadings == other.varm["PCs"]).all()


@pytest.mark.parametrize("density", [0.02, 0.3])
def test_dense_and_sparse_agree(cells, density):
    X = sparse.random(360, 30, density, "csr", np.float32, rng=np.random.default_rng(0))
    found = []
    for matrix in (X, X.toarray(), X.tocsc(), X.astype(np.float64)):
        cells.X = matrix
        federated_pca(cells, 5, site_key="site")
        found.append(cells.obsm["X_pca"].copy())
        assert type(cells.X) is type(matrix)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def test_without_the_mean_it_is_a_truncated_decomposition(cells):
    cells.X += 3
    federated_pca(cells, 4, site_key="site", zero_mean=False)
    _, _, loadings = np.linalg.svd(cells.X.astype(np.float64), full_matrices=False)
    assert largest_angle(cells.varm["PCs"], loadings[:4].T) < 1e-6
    np.testing.assert_allclose(cells.obsm["X_pca"], cells.X @ cells.varm["PCs"], rtol=1e-4, atol=1e-4)


def test_a_large_mean_does_not_spoil_the_components(cells, key):
    federated_pca(cells, 5, site_key="site")
    before = cells.varm["PCs"].copy()
    cells.X = cells.X.astype(np.float64) + 1e4
    federated_pca(cells, 5, site_key="site", key=key)
    assert largest_angle(cells.varm["PCs"], before) < 1e-5


def test_a_mask_chooses_features(cells):
    mask = np.arange(30) < 12
    federated_pca(cells, 5, site_key="site", mask_var=mask)
    by_array = cells.varm["PCs"].copy()
    cells.var["mine"] = mask
    federated_pca(cells, 5, site_key="site", mask_var="mine")
    assert (cells.varm["PCs"] == by_array).all()
    assert not by_array[12:].any()
    cells.var["highly_variable"] = ~mask
    federated_pca(cells, 5, site_key="site")
    assert not cells.varm["PCs"][:12].any()
    federated_pca(cells, 5, site_key="site", mask_var=None)
    assert cells.varm["PCs"].any(1).all()
    with pytest.raises(ValueError, match="to hold 30 booleans, found int64"):
        federated_pca(cells, 5, site_key="site", mask_var=np.arange(30))
    with pytest.raises(ValueError, match="found none chosen"):
        federated_pca(cells, 5, site_key="site", mask_var=np.zeros(30, bool))
    with pytest.raises(KeyError, match=r"name a column of adata.var, found 'other'"):
        federated_pca(cells, 5, site_key="site", mask_var="other")


def test_too_many_components_are_refused(cells):
    with pytest.raises(ValueError, match="at most 30"):
        federated_pca(cells, site_key="site")


def test_few_eigenvectors_of_many_are_those_of_all(monkeypatch):
    monkeypatch.setattr(_gram, "_FULL", 10)
    X = np.random.default_rng(0).normal(size=(200, 100)) * np.linspace(1, 4, 100)
    symmetric = X.T @ X
    values, vectors = leading_eigenvectors(symmetric, 3)
    expected = linalg.eigh(symmetric)
    np.testing.assert_allclose(values, expected[0][::-1][:3])
    assert largest_angle(vectors, expected[1][:, ::-1][:, :3]) < 1e-6


def test_an_upper_triangle_unfolds():
    square = np.arange(16.0).reshape(4, 4)
    square += square.T
    assert (full(square[np.triu_indices(4)], 4) == square).all()
