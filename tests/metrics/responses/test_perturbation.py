"""Scores of perturbation response against naive formulas."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import boxplot_stats
from scipy import sparse
from scipy.stats import pearsonr, ttest_ind
from sklearn.metrics import r2_score

from scinfl.metrics import perturbation, perturbation_summary

NAMES = ["A", "B", "A+B"]


def make_screen(n_genes: int = 260, n_cells: int = 24, *, rng: int = 0):
    """Cells of three perturbations and controls, with dropouts; a prediction between truth and noise."""
    generator = np.random.default_rng(rng)
    base = generator.gamma(1.0, 1.0, n_genes)
    effects = generator.normal(0, 1, (4, n_genes)) * (generator.random((4, n_genes)) < 0.3)
    effects[3] = 0
    conditions = np.repeat(["A+ctrl", "ctrl+B", "B+A", "ctrl"], n_cells)
    rates = np.maximum(base + effects, 0)[np.repeat(range(4), n_cells)]
    X = np.log1p(generator.poisson(rates) * generator.uniform(0.9, 1.1, (len(rates), 1)))  # no ties between genes
    start = X[-n_cells // 2 :].mean(0)
    X, conditions = X[: -n_cells // 2], conditions[: -n_cells // 2]
    truth = np.stack([X[conditions == name].mean(0) for name in ("A+ctrl", "ctrl+B", "B+A")])
    guess = np.maximum(truth + generator.normal(0, 0.3, truth.shape), 0)
    genes = [f"g{i}" for i in range(n_genes)]
    return pd.DataFrame(guess, ["A", "B", "A+B"], genes), X, conditions, start


@pytest.fixture
def screen():
    return make_screen()


def wide(table):
    return table.pivot_table(index="perturbation", columns="metric", values="value", sort=False, dropna=False)


def naive(guess, cells, controls, start):
    """Every score of one perturbation, one formula a line."""
    true, here = cells.mean(0), controls.mean(0)
    moved, change = np.round(guess - start, 9), np.round(true - here, 9)  # equal means differ by rounding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = np.nan_to_num(ttest_ind(cells, controls, equal_var=False).statistic)
    ranked = np.argsort(-np.abs(t), kind="stable")
    keep = {"": ranked, "_non_zero": ranked[true[ranked] != 0]}
    keep["_non_dropout"] = ranked[(true[ranked] != 0) | (here[ranked] == 0)]
    same = np.sign(moved) == np.sign(change)
    opposite = np.sign(moved) * np.sign(change) < 0
    scores = {
        "mse": ((guess - true) ** 2).mean(),
        "pearson": pearsonr(guess, true)[0],
        "r2": r2_score(true, guess),
        "pearson_delta": pearsonr(moved, change)[0],
        "frac_correct_direction": same.mean(),
    }
    for suffix, order in keep.items():
        top = order[:20]
        sets = f"top20{suffix}" if suffix else "top20_de"
        scores[f"mse_top20_de{suffix}"] = ((guess - true)[top] ** 2).mean()
        scores[f"pearson_top20_de{suffix}"] = pearsonr(guess[top], true[top])[0]
        scores[f"pearson_delta_top20_de{suffix}"] = pearsonr(moved[top], change[top])[0]
        scores[f"frac_correct_direction_{sets}"] = same[top].mean()
        for name, (low, high) in {"": (0, 1), "_45_55": (0.45, 0.55), "_25_75": (0.25, 0.75)}.items():
            bounds = np.quantile(cells[:, top], [low, high], axis=0)
            scores[f"frac_in_range{name}{suffix}"] = ((guess[top] >= bounds[0]) & (guess[top] <= bounds[1])).mean()
        gap, deviation = np.abs(guess - true)[top], cells[:, top].std(0)
        sigmas = gap[deviation > 0] / deviation[deviation > 0]
        scores[f"mean_sigma{suffix}"], scores[f"std_sigma{suffix}"] = sigmas.mean(), sigmas.std()
        scores[f"frac_sigma_below_1{suffix}"] = (gap <= deviation).mean()
        if suffix:
            scores[f"frac_opposite_direction_{sets}"] = opposite[top].mean()
            scores[f"frac_opposite_direction{suffix}"] = opposite[order].mean()
            scores[f"frac_zero_direction{suffix}"] = (~same & ~opposite)[order].mean()
    top = ranked[:20]
    shown = boxplot_stats(cells[:, top] - here[top])
    scores["hit_rate"] = np.mean(
        [box["whislo"] <= x <= box["whishi"] for box, x in zip(shown, moved[top], strict=True)]
    )
    scores["opposite_direction_de"] = opposite[top].mean()
    scores["frac_correct_direction_top20_de_nonzero"] = same[top][true[top] != 0].mean()
    for k in (50, 100, 200):
        scores[f"mse_top{k}_de"] = ((guess - true)[ranked[:k]] ** 2).mean()
        scores[f"pearson_delta_top{k}_de"] = pearsonr(moved[ranked[:k]], change[ranked[:k]])[0]
        scores[f"frac_correct_direction_top{k}_de"] = same[ranked[:k]].mean()
    genes = np.flatnonzero((true >= 0.5) & (here > 0) & (start > 0))
    folds, gaps = true[genes] / here[genes], np.abs(guess[genes] / start[genes] - true[genes] / here[genes])
    scores["fold_change_gap_all"] = gaps.mean()
    scores["fold_change_gap_upreg_3"] = gaps[folds > 3].mean() if (folds > 3).any() else np.nan
    return scores


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array, lambda X: X.astype(np.float32)])
def test_scores_are_those_of_naive_formulas(screen, form):
    predicted, X, conditions, start = screen
    table = perturbation(predicted, form(X), conditions, control_mean=start)
    assert list(table.columns) == ["perturbation", "metric", "value", "subgroup"]
    assert not table.duplicated(["perturbation", "metric"]).any()
    assert set(table["subgroup"]) == {"all"}
    found = wide(table)
    spelled = {"A": "A+ctrl", "B": "ctrl+B", "A+B": "B+A"}
    for name in NAMES:
        cells = X[conditions == spelled[name]]
        expected = naive(predicted.loc[name].to_numpy(), cells, X[conditions == "ctrl"], start)
        for metric, value in expected.items():
            assert found.loc[name, metric] == pytest.approx(value, rel=1e-4, nan_ok=True), metric
        for metric in ("mse", "pearson", "pearson_delta"):
            assert found.loc[name, f"{metric}_de"] == found.loc[name, f"{metric}_top20_de"]


def test_the_most_variable_genes_are_those_of_the_condition_means(screen):
    predicted, X, conditions, start = screen
    means = pd.DataFrame(X).groupby(conditions).mean()
    genes = np.argsort(-means.var().to_numpy())[:200]
    found = wide(perturbation(predicted, X, conditions, control_mean=start))
    expected = (predicted.loc["B"].to_numpy() - means.loc["ctrl+B"].to_numpy())[genes]
    assert found.loc["B", "mse_top200_hvg"] == pytest.approx((expected**2).mean())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_change_has_no_correlation_and_no_direction(screen, dtype):
    predicted, X, conditions, start = screen
    still = pd.DataFrame(np.tile(start, (3, 1)).astype(dtype), predicted.index, predicted.columns)
    found = wide(perturbation(still, X, conditions, control_mean=start))
    assert found.filter(like="pearson_delta").isna().all(axis=None)
    assert found["pearson"].notna().all()
    assert (found["frac_opposite_direction_top20_non_dropout"] == 0).all()
    assert (found["frac_zero_direction_top20_non_dropout"] > 0.9).all()
    flat = pd.DataFrame(0.1, predicted.index, predicted.columns)
    assert wide(perturbation(flat, X, conditions, control_mean=start))["pearson"].isna().all()


def test_the_truth_itself_scores_best(screen):
    predicted, X, conditions, start = screen
    truth = pd.DataFrame(X).groupby(conditions).mean().set_axis(predicted.columns, axis=1).drop(index="ctrl")
    found = wide(perturbation(truth, X, conditions, control_mean=start))
    np.testing.assert_allclose(found[["mse", "mse_de", "mean_sigma"]], 0, atol=1e-12)
    np.testing.assert_allclose(found[["r2", "pearson", "frac_in_range", "frac_sigma_below_1"]], 1)


def test_a_shared_control_mean_is_warned_of_and_inflates_the_correlation():
    generator = np.random.default_rng(1)
    X = generator.normal(5, 1, (60, 400))
    conditions = np.repeat(["A", "ctrl"], 30)
    useless = pd.DataFrame([generator.normal(5, 0.05, 400)], ["A"], [f"g{i}" for i in range(400)])
    with pytest.warns(UserWarning, match="Split the control cells in two"):
        shared = wide(perturbation(useless, X, conditions, control_mean=X[30:].mean(0)))
    apart = wide(perturbation(useless, X[:45], conditions[:45], control_mean=X[45:].mean(0)))
    assert shared.loc["A", "pearson_delta"] > 0.5
    assert abs(apart.loc["A", "pearson_delta"]) < 0.2


def test_names_genes_and_cells_may_come_in_any_order(screen):
    predicted, X, conditions, start = screen
    expected = wide(perturbation(predicted, X, conditions, control_mean=start))
    genes = list(predicted.columns)
    generator = np.random.default_rng(0)
    mixed = predicted[generator.permutation(genes)].set_axis(["A+ctrl", "ctrl+B", "B+A"], axis=0)
    rows = generator.permutation(len(X))
    series = pd.Series(start, genes).sample(frac=1, random_state=0)
    cells, names = X[rows], pd.Series(conditions[rows], dtype="category")
    found = wide(perturbation(mixed, cells, names, control_mean=series, genes=genes))
    pd.testing.assert_frame_equal(found, expected)
    more = np.append(conditions, ["C", "D+A"])
    with_others = perturbation(predicted, np.vstack([X, X[:2] * np.nan]), more, control_mean=start)
    pd.testing.assert_frame_equal(wide(with_others), expected)
    dmso = np.array([name.replace("ctrl", "DMSO") for name in conditions])
    renamed = perturbation(predicted, X, dmso, control_mean=start, control="DMSO")
    pd.testing.assert_frame_equal(wide(renamed), expected)


def test_a_name_never_denotes_fewer_genes():
    predicted, X, conditions, start = make_screen(60)
    found = wide(perturbation(predicted, X, conditions, control_mean=start))
    assert found[["mse_top100_de", "pearson_top200_de", "mse_top200_hvg"]].isna().all(axis=None)
    assert found[["mse_top50_de", "mse_de", "hit_rate"]].notna().all(axis=None)
    predicted, X, conditions, start = make_screen(12)
    found = wide(perturbation(predicted, X, conditions, control_mean=start))
    assert found[["mse_de", "hit_rate", "mean_sigma"]].isna().all(axis=None)
    few = wide(perturbation(predicted, X, conditions, control_mean=start, n_top=5))
    assert few[["mse_de", "mse_top5_de", "hit_rate", "frac_opposite_direction_top5_non_dropout"]].notna().all(axis=None)


def test_subgroups_may_be_written_either_way(screen):
    predicted, X, conditions, start = screen
    by_name = {"A": "seen", "ctrl+B": "unseen", "B+A": "seen"}
    by_group = {"seen": ["A+ctrl", "A+B"], "unseen": ["B"], "empty": []}
    first, second = (
        perturbation(predicted, X, conditions, control_mean=start, subgroups=groups) for groups in (by_name, by_group)
    )
    pd.testing.assert_frame_equal(first, second)
    summary = perturbation_summary(first).query("metric == 'mse'").set_index("subgroup")
    assert list(summary.index) == ["all", "seen", "unseen"]
    assert list(summary["n"]) == [3, 2, 1]
    found = wide(first)["mse"]
    assert summary.loc["all", "value"] == pytest.approx(found.mean())
    assert summary.loc["seen", "value"] == pytest.approx(found[["A", "A+B"]].mean())


def test_a_summary_leaves_nan_out_and_keeps_methods_apart(screen):
    predicted, X, conditions, start = screen
    still = predicted * 0 + start
    still.loc["A"] = predicted.loc["A"]
    table = perturbation(still, X, conditions, control_mean=start)
    summary = perturbation_summary(table).set_index("metric")
    assert list(summary.columns) == ["subgroup", "value", "n"]
    assert summary.loc["pearson_delta", "n"] == 1
    assert summary.loc["pearson_delta", "value"] == wide(table).loc["A", "pearson_delta"]
    both = pd.concat([table.assign(method="x", seed=0), table.assign(method="y", seed=0)])
    assert len(perturbation_summary(both)) == 2 * len(summary)
    with pytest.raises(ValueError, match="no subgroup"):
        perturbation_summary(table.drop(columns="subgroup"))


def test_genes_found_elsewhere_are_scored(screen):
    predicted, X, conditions, start = screen
    own = {name: [f"g{i}" for i in range(20)] for name in ("A+ctrl", "B", "B+A")}
    record = {
        "control": "ctrl",
        "conditions": np.array(["A", "A+B", "B", "C"], dtype=object),
        "top_de": np.array([own["B"]] * 4, dtype=object),
        "top_non_dropout_de": np.array([[*own["B"][:3], ""]] * 4, dtype=object),
    }
    truth = X[conditions == "B+A"].mean(0)
    expected = (predicted.loc["A+B"].to_numpy() - truth) ** 2
    for given in ({"top_de": own}, {"top_de": pd.DataFrame(own).T}, record):
        found = wide(perturbation(predicted, X, conditions, control_mean=start, top_genes=given)).loc["A+B"]
        assert found["mse_de"] == pytest.approx(expected[:20].mean())
        assert np.isnan(found["mse_top50_de"])
    assert found["mse_top20_de_non_dropout"] == pytest.approx(expected[:3].mean())
    for given, message in (({"top_de": {"A": ["g0"]}}, "none for"), ({"best": {}}, "found best")):
        with pytest.raises(ValueError, match=message):
            perturbation(predicted, X, conditions, control_mean=start, top_genes=given)


def test_the_energy_distance_is_zero_for_the_cells_themselves(screen):
    predicted, X, conditions, start = screen
    mine = X[conditions == "A+ctrl"]
    cells = {"A": mine, "B+A": sparse.csr_matrix(mine)}
    found = wide(perturbation(predicted, X, conditions, control_mean=start, predicted_cells=cells))["energy_distance"]
    assert found["A"] == pytest.approx(0, abs=1e-9)
    assert found["A+B"] > 0.1
    assert np.isnan(found["B"])
    many = {"A": np.repeat(mine, 30, axis=0)}
    drawn = [
        wide(perturbation(predicted, X, conditions, control_mean=start, predicted_cells=many, rng=rng)).loc[
            "A", "energy_distance"
        ]
        for rng in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for wrong, message in (({"C": mine}, "found C"), ({"A": mine[:, :5]}, "other shapes for A")):
        with pytest.raises(ValueError, match=message):
            perturbation(predicted, X, conditions, control_mean=start, predicted_cells=wrong)


def test_control_cells_that_move_by_the_predicted_change_are_predicted_cells(screen):
    predicted, X, conditions, _ = screen
    controls = X[conditions == "ctrl"][:7]
    options = {"control_mean": controls.mean(0)}
    found = wide(perturbation(predicted, X, conditions, control_cells=sparse.csr_matrix(controls), **options))
    cells = {name: controls + (row.to_numpy() - controls.mean(0)) for name, row in predicted.iterrows()}
    same = wide(perturbation(predicted, X, conditions, predicted_cells=cells, **options))
    np.testing.assert_allclose(found["energy_distance"], same["energy_distance"])
    both = wide(perturbation(predicted, X, conditions, control_cells=controls, predicted_cells={"A": X[:9]}, **options))
    assert both.loc["A", "energy_distance"] != pytest.approx(found.loc["A", "energy_distance"])
    assert both.loc["B", "energy_distance"] == pytest.approx(found.loc["B", "energy_distance"])
    with pytest.raises(ValueError, match="`control_cells` to be cells × "):
        perturbation(predicted, X, conditions, control_cells=controls[:, :5], **options)


def test_one_cell_and_a_gene_without_variance_are_no_trouble():
    X = np.ones((5, 30))
    X[0, :15] = 2.0
    X[:, 29] = 0
    predicted = pd.DataFrame([np.linspace(0, 2, 30)], ["A"])
    found = wide(perturbation(predicted, X, ["A", "ctrl", "ctrl", "ctrl", "ctrl"], control_mean=np.full(30, 0.9)))
    assert np.isfinite(found.loc["A", ["mse", "mse_de", "hit_rate", "frac_sigma_below_1"]].astype(float)).all()
    assert np.isnan(found.loc["A", "mean_sigma"])


def test_an_unexpressed_gene_is_no_non_zero_gene_in_dense_and_sparse_cells(screen):
    predicted, X, conditions, start = screen
    X = X.copy()
    X[conditions != "ctrl", :100] = 0
    dense, thin = (
        wide(perturbation(predicted, form(X), conditions, control_mean=start)) for form in (np.array, sparse.csr_matrix)
    )
    pd.testing.assert_frame_equal(dense, thin, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, X, c, s: (p.iloc[:0], X, c, s), "0 perturbations"),
        (lambda p, X, c, s: (p, X[:0], c[:0], s), "0 cells"),
        (lambda p, X, c, s: (p.rename(index={"B": "ctrl"}), X, c, s), "for the control 'ctrl'"),
        (lambda p, X, c, s: (p.rename(index={"B": "A+ctrl"}), X, c, s), "several for A"),
        (lambda p, X, c, s: (p.rename(index={"B": "D"}), X, c, s), "found none of D"),
        (lambda p, X, c, s: (p, X[c != "ctrl"], c[c != "ctrl"], s), "keep a half of the control"),
        (lambda p, X, c, s: (p, X, c[1:], s), "each of the 84 rows, found 83"),
        (lambda p, X, c, s: (p.iloc[:, 1:], X, c, s), "found 259"),
        (lambda p, X, c, s: (p.replace({"g1": {p.loc["A", "g1"]: np.nan}}), X, c, s), "finite predictions"),
        (lambda p, X, c, s: (p, np.where(X.max() > X, X, np.nan), c, s), "finite values in `cells`"),
        (lambda p, X, c, s: (p, X, c, s[1:]), "260 finite numbers"),
        (lambda p, X, c, s: (p, X, c, s * np.nan), "finite numbers"),
        (lambda p, X, c, s: (p, X, c, pd.Series(s)), "indexed by the measured genes"),
    ],
)
def test_bad_input_is_refused(screen, change, message):
    predicted, X, conditions, start = change(*screen)
    with pytest.raises(ValueError, match=message):
        perturbation(predicted, X, conditions, control_mean=start)


def test_differing_genes_and_missing_subgroups_are_refused(screen):
    predicted, X, conditions, start = screen
    other = [*predicted.columns[:-1], "odd"]
    with pytest.raises(ValueError, match="difference in g259, odd"):
        perturbation(predicted, X, conditions, control_mean=start, genes=other)
    with pytest.raises(ValueError, match="none for B"):
        perturbation(predicted, X, conditions, control_mean=start, subgroups={"A": "seen", "A+B": "seen"})
    with pytest.raises(ValueError, match="n_top"):
        perturbation(predicted, X, conditions, control_mean=start, n_top=0)
