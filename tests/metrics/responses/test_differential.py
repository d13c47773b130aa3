"""Moments of conditions and the ranking of genes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scinfl.metrics._responses._differential import condition_moments, rank_genes, top_genes, welch_scores


def simulated(n_cells=300, n_genes=60, n_conditions=4, rng=0):
    """Log counts of a control (code 0) and conditions that each change some genes."""
    generator = np.random.default_rng(rng)
    codes = generator.integers(n_conditions, size=n_cells)
    rates = generator.gamma(0.6, 2.0, n_genes) * np.exp(generator.normal(0, 0.8, (n_conditions, n_genes)))
    return np.log1p(generator.poisson(rates[codes])).astype(np.float32), codes


def naive(X, codes, n_conditions):
    parts = [np.asarray(X, dtype=np.float64)[codes == code] for code in range(n_conditions)]
    return np.stack([p.mean(0) for p in parts]), np.stack([p.var(0, ddof=1) for p in parts])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_moments_are_those_of_the_cells_of_each_condition(form, dtype):
    X, codes = simulated()
    n, mean, variance = condition_moments(form(X.astype(dtype)), codes, 4)
    expected_mean, expected_variance = naive(X, codes, 4)
    assert n.tolist() == np.bincount(codes).tolist()
    assert mean.dtype == variance.dtype == np.float64
    np.testing.assert_allclose(mean, expected_mean, atol=1e-12)
    np.testing.assert_allclose(variance, expected_variance, atol=1e-12)


def test_moments_are_the_same_in_blocks_of_rows(monkeypatch):
    X, codes = simulated()
    whole = condition_moments(X, codes, 4)
    monkeypatch.setattr("scinfl.metrics._responses._differential._ROWS", 7)
    for once, blocks in zip(whole, condition_moments(X, codes, 4), strict=True):
        np.testing.assert_allclose(once, blocks, atol=1e-12)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_one_cell_and_constant_genes_have_no_variance_and_no_cell_has_no_moments(form):
    X = np.array([[0.1, 7.0], [0.1, 5.0], [0.1, 3.0], [0.4, 1.0]])
    n, mean, variance = condition_moments(form(X), np.array([0, 0, 0, 2]), 3)
    assert n.tolist() == [3, 0, 1]
    np.testing.assert_allclose(mean, [[0.1, 5], [np.nan, np.nan], [0.4, 1]])
    assert variance[0, 0] == 0
    np.testing.assert_allclose(variance[[0, 2]], [[0, 4], [0, 0]])
    assert np.isnan(variance[1]).all()


def test_a_gene_that_is_silent_in_a_condition_has_a_mean_of_exactly_0():
    X, codes = simulated()
    X[codes == 1, :20] = 0
    for form in (np.asarray, sparse.csr_matrix):
        _, mean, _ = condition_moments(form(X), codes, 4)
        assert ((mean == 0) == (naive(X, codes, 4)[0] == 0)).all()
        assert (mean[1, :20] == 0).all()


def test_a_small_spread_far_from_zero_is_found():
    X = 1e6 + np.random.default_rng(0).normal(0, 1e-2, (500, 3))
    _, _, variance = condition_moments(X, np.zeros(500, int), 1)
    np.testing.assert_allclose(variance[0], X.var(0, ddof=1), rtol=1e-6)


def test_cells_without_a_condition_are_left_out():
    X, codes = simulated()
    kept = codes != 2
    for form in (np.asarray, sparse.csr_matrix):
        found = condition_moments(form(X), np.where(kept, codes, -1), 4)
        expected = condition_moments(form(X[kept]), codes[kept], 4)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_entries_stored_twice_are_summed_and_the_matrix_is_left_alone():
    stored = sparse.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2))
    _, mean, variance = condition_moments(stored, np.zeros(2, int), 1)
    np.testing.assert_allclose(mean, [[1.5, 2]])
    np.testing.assert_allclose(variance, [[4.5, 8]])
    assert stored.nnz == 3


@pytest.mark.parametrize("codes", [[0, 1], [0, 1, 5]])
def test_codes_that_fit_no_cell_or_condition_are_refused(codes):
    with pytest.raises(ValueError, match="Number the conditions from 0"):
        condition_moments(np.zeros((3, 2)), np.array(codes), 2)


def test_the_ranking_is_that_of_scanpy():
    X, codes = simulated()
    n, mean, variance = condition_moments(X, codes, 4)
    moments = (mean[1:], variance[1:], n[1:], mean[0], variance[0], n[0])
    order, scores = rank_genes(*moments), welch_scores(*moments)
    obs = pd.DataFrame({"condition": pd.Categorical(codes.astype(str))}, index=[f"cell_{i}" for i in range(len(codes))])
    adata = ad.AnnData(X, obs)
    sc.tl.rank_genes_groups(adata, "condition", reference="0", method="t-test", rankby_abs=True)
    for row, condition in enumerate(["1", "2", "3"]):
        ranked = adata.uns["rank_genes_groups"]["names"][condition].astype(int)
        assert set(ranked[:20]) == set(order[row, :20])
        np.testing.assert_allclose(
            adata.uns["rank_genes_groups"]["scores"][condition], scores[row, ranked], rtol=1e-4, atol=1e-5
        )


def test_ties_and_genes_that_never_vary_keep_their_order():
    mean, zeros = np.array([[9.0, 1.0, 0.0, -1.0]]), np.zeros(4)
    variance = np.array([[0.0, 1.0, 0.0, 1.0]])
    assert rank_genes(mean, variance, np.array([5]), zeros, zeros, 5).tolist() == [[1, 3, 0, 2]]


def test_tables_hold_the_first_genes_that_are_eligible():
    generator = np.random.default_rng(1)
    mean, control = generator.integers(0, 2, (6, 30)).astype(float), generator.integers(0, 2, 30).astype(float)
    order = np.stack([generator.permutation(30) for _ in range(6)])
    tables = top_genes(order, mean, control, 12)
    for row in range(6):
        eligible = {
            "top_de": list(order[row]),
            "top_non_zero_de": [g for g in order[row] if mean[row, g] != 0],
            "top_non_dropout_de": [g for g in order[row] if mean[row, g] != 0 or control[g] == 0],
        }
        for name, genes in eligible.items():
            assert tables[name][row].tolist() == (genes + [-1] * 12)[:12]


def test_tables_longer_than_the_genes_are_filled_up():
    table = top_genes(np.array([[1, 0]]), np.ones((1, 2)), np.ones(2), 4)["top_de"]
    assert table.tolist() == [[1, 0, -1, -1]]
