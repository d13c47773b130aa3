"""Scores of imputed values, against naive versions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from scinfl.metrics import _imputation
from scinfl.metrics._imputation import imputation, imputation_features

FORMS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "array": sparse.csr_array}


@pytest.fixture
def pair():
    """Sparse counts of 60 cells × 25 features, and noisy values beside them."""
    generator = np.random.default_rng(0)
    measured = generator.poisson(generator.gamma(0.5, 1.5, (60, 25))).astype(np.float64)
    return measured, measured * 0.5 + generator.normal(1, 0.5, measured.shape)


def values(*arguments, **settings):
    return imputation(*arguments, **settings).set_index("metric")["value"]


def naive_cmd(measured, imputed):
    first, second = np.corrcoef(measured), np.corrcoef(imputed)
    return 1 - np.trace(first @ second) / (np.linalg.norm(first) * np.linalg.norm(second))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [2**22, 70])
def test_scores_agree_with_their_definitions(pair, form, block, monkeypatch):
    monkeypatch.setattr(_imputation, "_BLOCK", block)
    measured, imputed = pair
    found = values(FORMS[form](measured), imputed, threshold=0)
    for axis, a, b in (("cell", measured, imputed), ("feature", measured.T, imputed.T)):
        pcc = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
        auroc = [roc_auc_score(x > 0, y) for x, y in zip(a, b, strict=True)]
        assert found[f"pcc_{axis}"] == pytest.approx(np.mean(pcc))
        assert found[f"pcc_{axis}_median"] == pytest.approx(np.median(pcc))
        assert found[f"auroc_{axis}"] == pytest.approx(np.mean(auroc))
        assert found[f"cmd_{axis}"] == pytest.approx(naive_cmd(a, b))
    assert found["rmse"] == pytest.approx(np.sqrt(((measured - imputed) ** 2).mean()))
    assert found["auroc"] == pytest.approx(roc_auc_score((measured > 0).ravel(), imputed.ravel()))
    assert (found.filter(like="constant") == 0).all()
    assert (found.filter(like="uniform") == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_types_of_numbers_and_sparse_imputed_values_agree(pair, dtype):
    measured = pair[0].astype(dtype)
    imputed = np.round(np.abs(pair[1])).astype(np.float32)
    expected = values(measured.astype(np.float64), imputed.astype(np.float64), threshold=0)
    pd.testing.assert_series_equal(values(measured, imputed, threshold=0), expected, check_exact=False, rtol=1e-6)
    both = values(sparse.csr_matrix(measured), sparse.csc_matrix(imputed), threshold=0)
    pd.testing.assert_series_equal(both, expected, check_exact=False, rtol=1e-6)


def test_a_perfect_imputation_is_perfect_and_an_unrelated_one_is_at_chance(pair):
    measured, _ = pair
    perfect = values(measured, 3 * measured + 1, threshold=0)
    assert perfect[["pcc_cell", "pcc_feature", "auroc_cell", "auroc_feature", "auroc"]].tolist() == pytest.approx(
        [1] * 5
    )
    assert perfect[["cmd_cell", "cmd_feature"]].tolist() == pytest.approx([0, 0], abs=1e-9)
    unrelated = values(measured, np.random.default_rng(1).normal(size=measured.shape), threshold=0)
    assert unrelated[["pcc_cell", "pcc_feature"]].tolist() == pytest.approx([0, 0], abs=0.06)
    assert unrelated[["auroc", "auroc_cell", "auroc_feature"]].tolist() == pytest.approx([0.5] * 3, abs=0.06)


def test_what_is_constant_as_measured_is_left_out_and_counted(pair):
    measured, imputed = pair
    rest = values(np.delete(measured, 4, 1), np.delete(imputed, 4, 1), threshold=0)
    measured[:, 4] = 0.1
    found = values(measured, imputed, threshold=0)
    assert found[["constant_features", "constant_cells", "uniform_features"]].tolist() == [1, 0, 1]
    same = ["pcc_feature", "pcc_feature_median", "cmd_feature", "auroc_feature"]
    pd.testing.assert_series_equal(found[same], rest[same])
    measured[7] = 2
    found = values(measured, imputed, threshold=0)
    assert found[["constant_cells", "uniform_cells"]].tolist() == [1, 1]


def test_the_mean_of_each_feature_correlates_with_no_feature(pair):
    measured, _ = pair
    means = np.broadcast_to(measured.mean(0, dtype=np.float32), measured.shape)
    found = values(measured, means)
    assert found[["pcc_feature", "constant_features"]].tolist() == [0, 0]
    identity = np.corrcoef(measured.T)
    assert found["cmd_feature"] == pytest.approx(1 - 25 / (np.linalg.norm(identity) * 5))
    assert (imputation_features(measured, means)["pcc"] == 0).all()


def test_features_have_their_own_rows(pair):
    measured, imputed = pair
    measured[:, 2] = 0
    names = [f"peak_{i}" for i in range(25)]
    table = imputation_features(sparse.csr_matrix(measured), imputed, features=names, threshold=0)
    assert list(table.index) == names
    assert list(table.columns) == ["pcc", "rmse", "auroc"]
    assert table["pcc"].isna().sum() == table["auroc"].isna().sum() == 1
    assert table.loc["peak_5", "pcc"] == pytest.approx(np.corrcoef(measured[:, 5], imputed[:, 5])[0, 1])
    assert table.loc["peak_5", "rmse"] == pytest.approx(np.sqrt(((measured - imputed)[:, 5] ** 2).mean()))
    assert list(imputation_features(measured, imputed).columns) == ["pcc", "rmse"]


def test_large_matrices_are_sampled_with_a_seed(pair, monkeypatch):
    measured, imputed = pair
    whole = values(measured, imputed, threshold=0)
    monkeypatch.setattr(_imputation, "_POOLED", 500)
    part, again, other = (values(measured, imputed, threshold=0, n_cmd=10, rng=rng) for rng in (1, 1, 2))
    pd.testing.assert_series_equal(part, again)
    sampled = ["cmd_cell", "cmd_feature", "auroc"]
    assert (part[sampled] != other[sampled]).all()
    assert part["auroc"] == pytest.approx(whole["auroc"], abs=0.1)
    pd.testing.assert_series_equal(part.drop(sampled), whole.drop(sampled))


def test_sparse_values_are_never_dense_as_a_whole(monkeypatch):
    monkeypatch.setattr(_imputation, "_BLOCK", 2**15)
    shape = (2000, 1500)
    measured = sparse.random(*shape, density=0.01, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    imputed = np.zeros(shape, np.float32)
    tracemalloc.start()
    imputation(measured, imputed, n_cmd=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * np.prod(shape) / 2


def test_small_and_uniform_matrices_give_nan_where_there_is_no_score():
    one = values([[1.0, 2.0, 4.0]], [[1.0, 2.0, 3.0]], threshold=0)
    assert one["pcc_cell"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1])
    assert one["constant_features"] == 3
    assert one[["pcc_feature", "cmd_cell", "cmd_feature", "auroc", "auroc_cell"]].isna().all()
    nothing = values(np.zeros((4, 3)), np.ones((4, 3)), threshold=0)
    assert nothing[["rmse", "constant_cells", "uniform_features"]].tolist() == [1, 4, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imputed": np.ones((60, 24))}, r"the shapes \(60, 25\) and \(60, 24\)"),
        ({"measured": np.ones(25), "imputed": np.ones(25)}, r"matrices .* found the shapes \(25,\)"),
        ({"measured": np.ones((0, 25)), "imputed": np.ones((0, 25))}, r"matrices .* found the shapes \(0, 25\)"),
        ({"features": ["a"]}, "each of the 25 features, found 1"),
        ({"threshold": "open"}, "`threshold` to be a number"),
        ({"n_cmd": 1}, "`n_cmd` to be a whole number from 2"),
    ],
)
def test_bad_input_is_refused(pair, change, message):
    measured, imputed = pair
    with pytest.raises(ValueError, match=message):
        imputation(**{"measured": measured, "imputed": imputed, **change})


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("argument", ["measured", "imputed"])
def test_missing_values_are_refused_with_their_features(pair, form, value, argument):
    matrices = dict(zip(("measured", "imputed"), pair, strict=True))
    matrices[argument][3, 7] = value
    matrices[argument] = FORMS[form](matrices[argument])
    with pytest.raises(ValueError, match=f"finite values in `{argument}`, found .* in 1 features: CD7"):
        imputation(**matrices, features=[f"CD{i}" for i in range(25)])
