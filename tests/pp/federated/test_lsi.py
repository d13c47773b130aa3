"""Latent semantic indexing from sums over sites, beside the formula on pooled cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scinfl.pp import federated_lsi, split_sites
from scinfl.pp.federated import _lsi


def pooled_lsi(counts, n_found):
    """Naive form: TF-IDF, L1, log1p, truncated decomposition, standardised cells."""
    counts = counts.astype(np.float64)
    tfidf = counts / counts.sum(1, keepdims=True) * (len(counts) / counts.sum(0))
    values = np.log1p(1e4 * tfidf / tfidf.sum(1, keepdims=True))
    _, singular, loadings = np.linalg.svd(values, full_matrices=False)
    loadings = loadings[:n_found]
    largest = loadings[np.arange(n_found), np.abs(loadings).argmax(1)]
    loadings = loadings * np.sign(largest)[:, None]
    scores = values @ loadings.T
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, ddof=1, keepdims=True), singular[:n_found]


@pytest.fixture
def real(shared):
    adata = ad.read_h5ad(shared("singlecell/kang2018_pbmc_ctrl_stim_2x1000.h5ad"))[::4].copy()
    sc.pp.filter_genes(adata, min_cells=80)
    split_sites(adata, 5, by="stim", alpha=1.0)
    return adata


def test_real_counts_give_the_pooled_formula_under_keyed_sums(real, key):
    expected, singular = pooled_lsi(real.X.toarray(), 11)
    federated_lsi(real, 10, site_key="site", key=key)
    np.testing.assert_allclose(real.uns["lsi"]["singular_values"], singular, rtol=1e-8)
    np.testing.assert_allclose(real.obsm["X_lsi"], expected[:, 1:], atol=1e-4)
    assert sparse.issparse(real.X)


def test_the_first_component_may_stay(cells):
    cells.X = np.abs(cells.X).round()
    expected, _ = pooled_lsi(cells.X, 6)
    federated_lsi(cells, 6, site_key="site", drop_first=False)
    np.testing.assert_allclose(cells.obsm["X_lsi"], expected, atol=1e-4)
    assert cells.varm["LSI"].shape == (30, 6)


def test_dense_and_sparse_agree(cells):
    X = sparse.random(360, 30, 0.3, "csr", np.float32, rng=np.random.default_rng(0))
    found = []
    for matrix in (X, X.toarray(), X.tocsc(), X.astype(np.float64)):
        cells.X = matrix
        federated_lsi(cells, 5, site_key="site")
        found.append(cells.obsm["X_lsi"].copy())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_empty_cells_and_features_become_zero(cells):
    cells.X = np.abs(cells.X).round()
    cells.X[5], cells.X[:, 3] = 0, 0
    federated_lsi(cells, 5, site_key="site")
    assert not cells.obsm["X_lsi"][5].any()
    assert cells.uns["lsi"]["weights"][3] == 0
    assert np.isfinite(cells.obsm["X_lsi"]).all()


def test_bad_input_is_refused(cells, monkeypatch):
    with pytest.raises(ValueError, match="Expected counts, found negative values at site 'hospital_0'"):
        federated_lsi(cells, 5, site_key="site")
    with pytest.raises(ValueError, match="at most 29"):
        federated_lsi(cells, 30, site_key="site")
    with pytest.raises(ValueError, match="from 2"):
        federated_lsi(cells, 1, site_key="site")
    monkeypatch.setattr(_lsi, "_MOST_FEATURES", 20)
    with pytest.raises(ValueError, match="at most 20 features, whose products are summed, found 30"):
        federated_lsi(cells, 5, site_key="site")
    cells.X = np.abs(cells.X)
    federated_lsi(cells, 5, site_key="site", mask_var=np.arange(30) < 20)
