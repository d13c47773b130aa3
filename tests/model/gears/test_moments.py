"""Moments of all pairs of cells and controls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scinfl.model.gears import _moments
from scinfl.model.gears._moments import Moments, central_moments

NONE = np.array([], int)
CONTROLS = np.arange(0, 30)
ROWS = [np.arange(30, 41), np.arange(41, 66), np.array([66])]


def make_matrix(dtype=np.float64, n_genes=25):
    """Counts on a log scale: many zeros, gene 3 silent in the first condition, gene 4 nowhere."""
    generator = np.random.default_rng(2)
    X = np.log1p(generator.poisson(generator.gamma(1.0, 1.0, n_genes), (70, n_genes)))
    X[41:66, :5] += generator.gamma(2.0, 1.0, 5)
    X[ROWS[0], 3] = 0
    X[:, 4] = 0
    return X.astype(dtype)


KINDS = {
    "dense": lambda X: X,
    "sparse": sparse.csr_matrix,
    "sparse array": sparse.csr_array,
    "fortran": np.asfortranarray,
}


def naive(X, rows, controls):
    """Mean and central moments of y - x over all pairs, gene by gene."""
    X = X.astype(np.float64)
    r = (X[rows][:, None] - X[controls][None]).reshape(-1, X.shape[1])
    return np.stack([r.mean(0), *(((r - r.mean(0)) ** k).mean(0) for k in (2, 3, 4))])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_rows", [4, 4096])
def test_they_are_those_of_all_pairs(kind, dtype, n_rows, monkeypatch):
    monkeypatch.setattr(_moments, "_ROWS", n_rows)
    X = make_matrix(dtype)
    moments = Moments.of(kind(X), ROWS, [CONTROLS] * 3)
    for row, own in enumerate(ROWS):
        found = np.stack([moments.mean[row], moments.variance[row], moments.third[row], moments.fourth[row]])
        np.testing.assert_allclose(found, naive(X, own, CONTROLS), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moments.noise[row], X[CONTROLS].var(0, dtype=np.float64, ddof=1) / len(CONTROLS))
    assert moments.mean.dtype == np.float64
    assert moments.n_cells.tolist() == [11, 25, 1]
    assert len(moments) == 3


def test_central_moments_are_those_of_the_cells():
    X = make_matrix()
    found = central_moments(X, ROWS[1])
    own = X[ROWS[1]]
    np.testing.assert_allclose(found[0], own.mean(0), rtol=1e-12)
    for order in (2, 3, 4):
        np.testing.assert_allclose(found[order - 1], stats.moment(own, order=order), rtol=1e-9, atol=1e-12)
    assert (central_moments(X, ROWS[2])[1:] == 0).all()


def test_far_from_zero_nothing_is_lost():
    X = make_matrix()
    near, far = (Moments.of(X + offset, ROWS, [CONTROLS] * 3) for offset in (0, 1e4))
    for name in ("mean", "variance", "third", "fourth"):
        np.testing.assert_allclose(getattr(far, name), getattr(near, name), rtol=1e-6, atol=1e-8)


def test_controls_are_their_own_targets():
    moments = Moments.of(make_matrix(), [NONE, ROWS[0]], [CONTROLS] * 2)
    for name in ("mean", "variance", "third", "fourth"):
        assert (getattr(moments, name)[0] == 0).all()
        assert getattr(moments, name)[1].any()
    assert moments.expressed[0].all()
    assert (moments.top[0] == -1).all()
    assert moments.n_cells.tolist() == [30, 11]


@pytest.mark.parametrize("kind", [KINDS["dense"], KINDS["sparse"]], ids=["dense", "sparse"])
def test_expressed_genes_have_a_mean_that_is_not_zero(kind):
    X = make_matrix()
    moments = Moments.of(kind(X), ROWS, [CONTROLS] * 3)
    np.testing.assert_array_equal(moments.expressed, [X[own].mean(0) != 0 for own in ROWS])
    assert not moments.expressed[0, 3]
    assert moments.expressed[1, 3]
    assert not moments.expressed[:, 4].any()


def test_the_top_genes_are_those_of_welchs_test():
    X = make_matrix(n_genes=30)
    moments = Moments.of(X, ROWS[:2], [CONTROLS] * 2)
    for row, own in enumerate(ROWS[:2]):
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.nan_to_num(stats.ttest_ind(X[own], X[CONTROLS], equal_var=False).statistic)
        expected = np.argsort(-np.abs(t), kind="stable")[:20]
        np.testing.assert_array_equal(moments.top[row], expected)
    assert moments.top.shape == (2, 20)


def test_tables_of_few_genes_are_filled_up():
    moments = Moments.of(make_matrix(n_genes=8), ROWS, [CONTROLS] * 3)
    assert (np.sort(moments.top[:, :8], axis=1) == np.arange(8)).all()
    assert (moments.top[:, 8:] == -1).all()


def test_a_single_cell_has_a_change_and_top_genes():
    X = make_matrix()
    moments = Moments.of(X, ROWS[2:], [CONTROLS])
    np.testing.assert_allclose(moments.mean[0], X[66] - X[CONTROLS].mean(0))
    np.testing.assert_allclose(moments.variance[0], X[CONTROLS].var(0))
    assert np.isfinite(moments.fourth).all()
    assert (moments.top >= 0).all()


def test_every_condition_has_its_own_controls():
    X, half = make_matrix(), CONTROLS[:15]
    moments = Moments.of(X, [ROWS[0], ROWS[0], NONE], [CONTROLS, half, half])
    np.testing.assert_allclose(moments.mean[1], naive(X, ROWS[0], half)[0])
    np.testing.assert_allclose(moments.third[1], naive(X, ROWS[0], half)[2], atol=1e-12)
    assert not np.allclose(moments.mean[0], moments.mean[1])
    assert moments.n_cells.tolist() == [11, 11, 15]


def test_the_matrix_is_left_as_it_is():
    for kind in (KINDS["dense"], KINDS["sparse"]):
        X = kind(make_matrix())
        before = X.copy()
        Moments.of(X, ROWS, [CONTROLS] * 3)
        assert (before != X).sum() == 0


def test_whole_numbers_are_no_special_case():
    X = np.random.default_rng(0).poisson(3.0, (70, 6))
    moments = Moments.of(X, ROWS, [CONTROLS] * 3)
    np.testing.assert_allclose(moments.fourth[1], naive(X, ROWS[1], CONTROLS)[3], rtol=1e-9)


def test_one_condition_missing_makes_unequal_lists_an_error():
    with pytest.raises(ValueError, match="zip"):
        Moments.of(make_matrix(), ROWS, [CONTROLS])
