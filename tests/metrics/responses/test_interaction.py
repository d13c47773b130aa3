"""Genetic interaction against naive formulas, scikit-learn and the published fits."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.linear_model import TheilSenRegressor

from scinfl.metrics import interaction
from scinfl.metrics._responses._interaction import _THRESHOLDS, interaction_types
from scinfl.metrics._responses._theil_sen import theil_sen


def naive_distance_correlation(x, y):
    def centred(values):
        d = squareform(pdist(values.reshape(len(values), -1)))
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()

    A, B = centred(x), centred(y)
    return np.sqrt((A * B).mean() / np.sqrt((A * A).mean() * (B * B).mean()))


def make_changes(c1=0.7, c2=0.6, noise=0.1, n_genes=60, *, rng=0):
    generator = np.random.default_rng(rng)
    first, second = generator.normal(size=(2, n_genes))
    both = c1 * first + c2 * second + noise * generator.normal(size=n_genes)
    genes = [f"g{i}" for i in range(n_genes)]
    return pd.DataFrame([first, second, both], ["A+ctrl", "ctrl+B", "B+A"], genes)


def test_scores_are_those_of_naive_formulas():
    changes = make_changes(n_genes=700)  # more than one block of distances
    first, second, both = changes.to_numpy()
    row = interaction(changes, ["A+B"]).loc["A+B"]
    assert (row["first"], row["second"]) == ("A", "B")
    assert row["c1"] == pytest.approx(0.7, abs=0.03)
    assert row["c2"] == pytest.approx(0.6, abs=0.03)
    assert row["mag"] == pytest.approx(np.hypot(row["c1"], row["c2"]))
    assert row["corr_fit"] == pytest.approx(np.corrcoef(row["c1"] * first + row["c2"] * second, both)[0, 1])
    assert row["dominance"] == pytest.approx(abs(np.log10(row["c1"] / row["c2"])))
    expected = {
        "dcor": naive_distance_correlation(np.column_stack([first, second]), both),
        "dcor_singles": naive_distance_correlation(first, second),
        "dcor_first": naive_distance_correlation(first, both),
        "dcor_second": naive_distance_correlation(second, both),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9), name
    assert row["eq_contr"] == pytest.approx(expected["dcor_second"] / expected["dcor_first"])


@pytest.mark.parametrize("seed", range(4))
def test_the_robust_fit_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    X = generator.standard_t(3, size=(40, 2))
    X[: 5 * seed] = 0  # pairs of rows that determine nothing
    y = X @ [0.9, -0.3] + 0.5 * generator.standard_t(2, size=40)
    reference = TheilSenRegressor(fit_intercept=False, max_subpopulation=1e5, max_iter=5000, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(theil_sen(X, y), reference.coef_, atol=1e-4)
    some = theil_sen(X, y, n_subsets=300, rng=1)
    np.testing.assert_allclose(some, reference.coef_, atol=0.2)
    assert not np.array_equal(some, theil_sen(X, y, n_subsets=300, rng=2))


def test_outliers_do_not_move_the_fit():
    changes = make_changes(noise=0.01)
    changes.iloc[2, :6] += 50
    row = interaction(changes, [("B", "A")]).iloc[0]
    assert row["c1"] == pytest.approx(0.7, abs=0.05)
    assert row["c2"] == pytest.approx(0.6, abs=0.05)


def test_types_are_named_for_what_was_built_in():
    generator = np.random.default_rng(3)
    one, two, new = generator.normal(size=(3, 80))
    doubles = {
        "A+B": 0.75 * one + 0.7 * two,
        "A+C": 1.2 * one + 1.1 * two,
        "A+D": 0.4 * one + 0.35 * two,
        "A+E": 0.9 * one + 0.1 * two,
        "A+F": 0.5 * one + 0.5 * two + 2 * new,
        "A+G": 0.8 * one,
    }
    rows = {"A": one, **dict.fromkeys("BCDEF", two), "G": one + 0.05 * new}
    changes = pd.DataFrame.from_dict(rows | doubles, orient="index")
    found = interaction(changes, list(doubles))
    assert list(found.index) == list(doubles)
    assert list(found["type"]) == ["additive", "synergy", "suppression", "epistasis", "neomorphism", "redundancy"]
    relaxed = interaction(changes, ["A+C"], thresholds={"synergy": 2.0})
    assert relaxed.loc["A+C", "type"] == "additive"


def test_opposite_signs_have_a_dominance():
    row = interaction(make_changes(c1=-1.0, c2=0.1, noise=0), ["A+B"]).iloc[0]
    assert row["dominance"] == pytest.approx(1, abs=1e-4)
    assert row["c1"] == pytest.approx(-1, abs=1e-5)


def test_nothing_that_happens_is_nan_without_a_warning():
    changes = make_changes().mul([1.0, 1.0, 0.0], axis=0)
    row = interaction(changes, ["A+B"]).iloc[0]
    assert row[["c1", "c2", "mag"]].eq(0).all()
    assert row[["dcor", "corr_fit", "dominance", "eq_contr"]].isna().all()
    assert row["type"] == "suppression"


def test_pairs_may_be_spelled_in_any_way_and_genes_chosen():
    changes = make_changes()
    spelled = [interaction(changes, [pair]) for pair in ("A+B", "B+A", ("B", "A"))]
    for other in spelled[1:]:
        pd.testing.assert_frame_equal(spelled[0], other)
    assert len(interaction(changes, ["A+B", ("B", "A")])) == 1
    chosen = list(changes.columns[:30])
    pd.testing.assert_frame_equal(
        interaction(changes, ["A+B"], genes=chosen), interaction(changes[chosen].astype(np.float64), ["A+B"])
    )


def test_the_published_fits_of_norman_are_named_as_documented(shared):
    fits = pd.read_csv(shared("perturb/norman2019_regr_fits_final.csv.gz"), index_col="name")
    mag = np.hypot(fits["ts_coef_first"], fits["ts_coef_second"])
    np.testing.assert_allclose(mag, fits["ts_norm2"])
    scores = pd.DataFrame(
        {
            "mag": mag,
            "dcor_singles": fits["dcor_singles"],
            "corr_fit": fits["corr_fit"],
            "dominance": np.abs(np.log10(np.abs(fits["ts_coef_first"] / fits["ts_coef_second"]))),
        }
    )
    assert mag.median() == pytest.approx(1.02, abs=0.005)
    types = pd.Series(interaction_types(scores, _THRESHOLDS), fits.index)
    counts = types.value_counts().to_dict()
    assert counts == {
        "synergy": 35,
        "additive": 32,
        "epistasis": 17,
        "redundancy": 14,
        "suppression": 14,
        "neomorphism": 13,
    }
    for number in map(str, counts.values()):
        assert number in interaction.__doc__
    # examples the paper itself discusses
    assert types[["CBL_CNN1", "DUSP9_ETS2", "CEBPE_CEBPA"]].to_list() == ["synergy", "epistasis", "redundancy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "at least one pair"),
        ({"pairs": ["A"]}, "pairs of two genes"),
        ({"pairs": ["A+B+C"]}, "pairs of two genes"),
        ({"pairs": [("A", "A")]}, "pairs of two genes"),
        ({"pairs": ["A+C"]}, "none for C, A\\+C"),
        ({"pairs": ["A+B"], "genes": ["g0", "g1", "other"]}, "others: other"),
        ({"pairs": ["A+B"], "genes": ["g0", "g1"]}, "at least 3 genes"),
        ({"pairs": ["A+B"], "thresholds": {"rescue": 1.0}}, "thresholds"),
        ({"pairs": ["A+B"], "n_subsets": 1}, "n_subsets"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        interaction(make_changes(), **arguments)


def test_missing_values_and_repeated_rows_are_refused():
    changes = make_changes()
    with pytest.raises(ValueError, match="several for A"):
        interaction(pd.concat([changes, changes.iloc[:1]]), ["A+B"])
    changes.iloc[0, 0] = np.nan
    with pytest.raises(ValueError, match="missing values"):
        interaction(changes, ["A+B"])


def test_distance_correlation_is_symmetric_and_between_zero_and_one():
    for seed, noise in itertools.product(range(3), (0.0, 1.0)):
        row = interaction(make_changes(noise=noise, rng=seed), ["A+B"]).iloc[0]
        swapped = interaction(make_changes(noise=noise, rng=seed).iloc[[1, 0, 2]].set_axis(["A", "B", "A+B"]), ["A+B"])
        assert 0 <= row["dcor_singles"] <= row["dcor"] <= 1
        assert swapped["dcor_first"].iloc[0] == pytest.approx(row["dcor_second"])
