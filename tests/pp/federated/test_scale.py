"""Scaling by sums over sites, beside scanpy's on pooled cells."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scinfl.pp import federated_scale, split_sites


@pytest.mark.parametrize("zero_mean", [True, False])
@pytest.mark.parametrize("max_value", [None, 1.5])
def test_scaled_values_are_scanpys(key, zero_mean, max_value):
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    adata.X = adata.X.toarray()
    pooled = adata.copy()
    sc.pp.scale(pooled, zero_center=zero_mean, max_value=max_value)
    split_sites(adata, 5, by="bulk_labels", alpha=0.5)
    federated_scale(adata, site_key="site", key=key, zero_mean=zero_mean, max_value=max_value)
    np.testing.assert_allclose(adata.X, pooled.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adata.var["mean"], pooled.var["mean"], rtol=1e-6)
    np.testing.assert_allclose(adata.var["std"], pooled.var["std"], rtol=1e-5)
    assert adata.X.dtype == np.float32


def test_sparse_stays_sparse_without_the_mean_and_warns_with_it(cells):
    X = sparse.random(360, 30, 0.2, "csr", np.float32, rng=np.random.default_rng(0))
    cells.layers["sparse"], cells.layers["dense"] = X.copy(), X.toarray()
    for layer in ("sparse", "dense"):
        federated_scale(cells, site_key="site", layer=layer, zero_mean=False, max_value=2)
    assert sparse.issparse(cells.layers["sparse"])
    np.testing.assert_allclose(cells.layers["sparse"].toarray(), cells.layers["dense"], rtol=1e-5)
    cells.layers["sparse"], cells.layers["dense"] = X.copy(), X.toarray()
    with pytest.warns(UserWarning, match="makes sparse values dense"):
        federated_scale(cells, site_key="site", layer="sparse")
    federated_scale(cells, site_key="site", layer="dense")
    np.testing.assert_allclose(cells.layers["sparse"], cells.layers["dense"], atol=1e-5)


def test_constant_features_become_zero_and_whole_numbers_float64(cells, key):
    cells.X = cells.X.round().astype(np.int64)
    cells.X[:, 0], cells.X[:, 1] = 7, 0
    federated_scale(cells, site_key="site", key=key)
    assert cells.X.dtype == np.float64
    assert np.abs(cells.X[:, :2]).max() < 1e-9
    assert (cells.var["std"].iloc[:2] == 1).all()
    np.testing.assert_allclose(cells.X[:, 2:].std(0, ddof=1), 1)


def test_a_layer_is_scaled_and_x_left_alone(cells):
    before = cells.X.copy()
    cells.layers["other"] = cells.X * 2
    federated_scale(cells, site_key="site", layer="other")
    assert (before == cells.X).all()
    np.testing.assert_allclose(cells.layers["other"].std(0, ddof=1), 1, rtol=1e-5)


def test_a_bound_of_zero_is_refused(cells):
    with pytest.raises(ValueError, match="max_value"):
        federated_scale(cells, site_key="site", max_value=0)
