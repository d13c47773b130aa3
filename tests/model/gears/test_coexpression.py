"""Co-expression from sums, against correlations of the cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scinfl.federation import FedAvg, Update, mean_of
from scinfl.model.gears import _coexpression
from scinfl.model.gears._coexpression import second_moments, strongest_edges
from scinfl.privacy import KeyedSum

N_GENES = 24


def make_matrix(n_cells=150, *, density=0.8, dtype=np.float32, rng=0):
    """Programs shared by groups of genes, so that some correlate strongly, up or down."""
    generator = np.random.default_rng(rng)
    programs, loadings = generator.normal(size=(n_cells, 4)), np.zeros((4, N_GENES))
    loadings[np.arange(N_GENES) % 4, np.arange(N_GENES)] = generator.normal(0, 1.5, N_GENES)
    X = np.abs(3 + programs @ loadings + generator.normal(size=(n_cells, N_GENES)))
    if density < 1:
        X *= generator.random((n_cells, 1)) < density  # drops cells, so that what is left still correlates
        X *= generator.random(X.shape) < 0.95
    return X.astype(dtype)


def naive_edges(X, k, threshold):
    """|Pearson|, NaN as 0; for each gene the k + 1 largest that are above the threshold."""
    with np.errstate(invalid="ignore", divide="ignore"):
        strength = np.nan_to_num(np.abs(np.corrcoef(X.astype(np.float64), rowvar=False)))
    return {
        (int(source), target): strength[source, target]
        for target in range(X.shape[1])
        for source in np.argsort(-strength[:, target])[: k + 1]
        if strength[source, target] > threshold
    }


def edges_of(X, k=5, threshold=0.3, rows=None):
    return strongest_edges(
        second_moments(X, np.arange(X.shape[0]) if rows is None else rows), n_neighbours=k, threshold=threshold
    )


def assert_edges(found, expected, tolerance=1e-5):
    edges, weights = found
    assert edges.shape == (2, len(weights)) == (2, len(expected))
    as_dict = dict(zip(map(tuple, edges.T.tolist()), weights.tolist(), strict=True))
    assert as_dict == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "threshold"), [(5, 0.3), (2, 0.0), (20, 0.4), (100, 0.1)])
def test_edges_are_the_strongest_correlations_of_the_cells(kind, dtype, k, threshold):
    X = make_matrix(dtype=dtype)
    expected = naive_edges(X, k, threshold)
    assert len(expected) > N_GENES
    assert_edges(edges_of(kind(X), k, threshold), expected)


def test_every_gene_comes_first_among_its_own_neighbours():
    edges, weights = edges_of(make_matrix(), k=3)
    loops = edges[0] == edges[1]
    assert sorted(edges[0][loops]) == list(range(N_GENES))
    np.testing.assert_allclose(weights[loops], 1, atol=1e-6)
    assert (weights <= 1).all()
    assert np.bincount(edges[1], minlength=N_GENES).max() <= 4


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 0.1), (3.6, 0.7), (8.85, 1000.1)])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("n_cells", [150, 1000])
def test_genes_that_do_not_vary_have_no_edges(values, kind, n_cells):
    X = make_matrix(n_cells)
    X[:, [2, 11]] = values
    edges, weights = edges_of(kind(X), k=30, threshold=0.0)
    assert not np.isin(edges, [2, 11]).any()
    assert np.isfinite(weights).all()
    rest = np.delete(np.arange(N_GENES), [2, 11])
    expected = naive_edges(X[:, rest], 30, 0.0)
    assert_edges((np.searchsorted(rest, edges), weights), expected)


def test_genes_of_very_different_scale_are_compared_in_the_same_way():
    X = make_matrix(dtype=np.float64)
    X[:, 3] *= 1e-4
    X[:, 7] *= 1e3
    assert_edges(edges_of(X), naive_edges(X, 5, 0.3))


def test_all_genes_may_be_silent():
    edges, weights = edges_of(np.zeros((10, 4), np.float32))
    assert edges.shape == (2, 0)
    assert weights.shape == (0,)


def test_only_the_named_cells_count():
    X, rows = make_matrix(), np.arange(20, 90)
    assert_edges(edges_of(X, rows=rows), naive_edges(X[rows], 5, 0.3))
    assert_edges(edges_of(sparse.csr_matrix(X), rows=rows), naive_edges(X[rows], 5, 0.3))


@pytest.mark.parametrize("n_rows", [7, 4096])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_are_means_of_products_however_they_are_taken(dtype, n_rows, monkeypatch):
    monkeypatch.setattr(_coexpression, "_ROWS", n_rows)
    X = make_matrix(density=0.03, dtype=dtype)
    assert 0 < (X != 0).mean() < 0.05
    exact = X.astype(np.float64)
    upper = np.triu_indices(N_GENES)
    expected = {"products": (exact.T @ exact / len(X))[upper], "mean": exact.mean(0)}
    for matrix in (X, sparse.csr_matrix(X)):
        found = second_moments(matrix, np.arange(len(X)))
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert found[name].dtype == np.float64
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-7)


def test_the_sparse_way_is_taken_for_few_values_and_gives_the_edges_of_the_dense_one(monkeypatch):
    X = make_matrix(400, density=0.04)
    dense = edges_of(X, threshold=0.2)
    for share in (0.0, 1.1):  # never, always
        monkeypatch.setattr(_coexpression, "_DENSE", share)
        assert_edges(edges_of(sparse.csr_matrix(X), threshold=0.2), naive_edges(X, 5, 0.2))
    assert_edges(dense, naive_edges(X, 5, 0.2))


def test_without_cells_there_are_no_sums():
    found = second_moments(make_matrix(), np.array([], int))
    assert not any(values.any() for values in found.values())


# ---- shared by sites


def updates_of(X, parts):
    return [
        Update(f"site_{i}", 0, second_moments(X, rows), len(rows), float(len(rows)), purpose="coexpression")
        for i, rows in enumerate(parts)
    ]


def test_sums_of_sites_are_the_sums_of_all_their_cells():
    X = make_matrix(dtype=np.float64)
    updates = updates_of(X, [np.arange(40), np.arange(40, 150)])
    merged, pooled = FedAvg().reduce(updates).state, second_moments(X, np.arange(150))
    for name, values in pooled.items():
        np.testing.assert_allclose(merged[name], values, rtol=1e-6)
    assert_edges(strongest_edges(merged, n_neighbours=5, threshold=0.3), naive_edges(X, 5, 0.3))


def test_a_keyed_sum_gives_the_graph_of_all_cells(key):
    X = make_matrix()
    X[:, 2], X[:, 5] = 0.0, 2.5
    updates = updates_of(X, [np.arange(40), np.arange(40, 70), np.arange(70, 150)])
    merged = mean_of(updates, [KeyedSum(key)]).state
    assert_edges(strongest_edges(merged, n_neighbours=5, threshold=0.3), naive_edges(X, 5, 0.3))
