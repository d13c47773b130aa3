"""Plots of perturbation response hold what they say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import boxplot_stats

from scinfl import datasets, pl, pp

METHODS = ["GEARS", "additive", "no change"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def cells():
    generator = np.random.default_rng(0)
    genes = [f"GENE{i}" for i in range(20)]
    return pd.DataFrame(
        {"gene": np.repeat(genes, 30), "change": generator.normal(np.repeat(np.arange(20) / 5 - 2, 30))}
    )


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    rows = [
        (method, seed, subgroup, name, metric, generator.random())
        for method in METHODS
        for seed in range(3)
        for subgroup, name in (("combo_seen0", "A+B"), ("combo_seen0", "A+C"), ("unseen_single", "D"))
        for metric in ("mse_de", "opposite_direction_de", "hit_rate")
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "subgroup", "perturbation", "metric", "value"])


@pytest.fixture
def scored_pairs():
    generator = np.random.default_rng(0)
    columns = [
        "c1",
        "c2",
        "mag",
        "dcor",
        "dcor_singles",
        "dcor_first",
        "dcor_second",
        "corr_fit",
        "dominance",
        "eq_contr",
    ]
    table = pd.DataFrame(generator.random((5, 10)), [f"A+{name}" for name in "BCDEF"], columns)
    return table.assign(type=["synergy", "additive", "epistasis", "additive", "redundancy"])


def texts(labels):
    return [label.get_text() for label in labels]


def legend(ax):
    return texts(ax.get_legend().get_texts())


def test_boxes_are_the_cells_and_symbols_the_predictions(cells):
    genes = list(dict.fromkeys(cells["gene"]))
    predictions = {"GEARS": dict.fromkeys(genes, 0.5), "additive": pd.Series(np.arange(20.0), genes)}
    ax = pl.perturbation(cells, predictions, title="A+B")
    assert texts(ax.get_xticklabels()) == genes
    assert len(ax.patches) == 20
    assert legend(ax) == ["measured cells", "control mean", "GEARS", "additive"]
    assert ax.get_legend().get_title().get_text() == "A+B"
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["additive"].get_ydata(), np.arange(20.0))
    control = lines["control mean"]
    assert (set(control.get_ydata()), control.get_linestyle(), control.get_color()) == ({0}, ":", "#009E73")
    shown = boxplot_stats(cells.loc[cells["gene"] == "GENE3", "change"])[0]
    drawn = ax.patches[3].get_path().vertices[:, 1]
    assert (drawn.min(), drawn.max()) == (shown["q1"], shown["q3"])
    tips = {y for line in ax.lines for y in line.get_ydata()}
    assert {shown["whislo"], shown["whishi"]} <= tips


def test_genes_may_be_chosen_and_lack_a_prediction(cells):
    given = plt.subplots(figsize=(3.5, 3))[1]
    ax = pl.perturbation(cells, {"GEARS": {"GENE3": 1.0}}, genes=["GENE5", "GENE3"], ax=given)
    assert ax is given
    assert texts(ax.get_xticklabels()) == ["GENE5", "GENE3"]
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), [np.nan, 1.0])
    alone = pl.perturbation(cells.iloc[:1])
    assert legend(alone) == ["measured cells", "control mean"]
    assert pl.perturbation(cells, ax=plt.subplots(figsize=(3.5, 3))[1]).get_xticklabels()[0].get_rotation() == 90


@pytest.fixture(scope="module")
def screen():
    adata = datasets.perturbseq_simulated(80, n_singles=10, n_doubles=6, n_cells=10, n_controls=40)
    pp.perturbations(adata)
    pp.split_perturbations(adata, "combo_seen2")
    return adata


@pytest.mark.parametrize("dense", [False, True])
def test_cells_of_a_perturbation_are_drawn_in_one_line_with_simple_rules_beside_the_model(screen, dense):
    adata = screen.copy()
    if dense:
        adata.X = adata.X.toarray()
    name = adata.obs["infl_perturbation"][adata.obs["infl_split"] == "test"].astype(str)
    name = next(text for text in name if "+" in text)
    first, second = name.split("+")
    predicted = pd.DataFrame(np.full((1, 80), 0.5), [name], adata.var_names)
    ax = pl.perturbation(adata, {"mine": predicted}, f"{second}+{first}")  # in any order
    top = adata.uns["infl"]["perturbations"]
    genes = [gene for gene in top["top_non_dropout_de"][list(top["conditions"]).index(name)] if gene]
    assert texts(ax.get_xticklabels()) == genes
    assert ax.get_legend().get_title().get_text() == name
    assert legend(ax) == ["measured cells", "control mean", "train mean", "additive", "mine"]
    control = adata[(adata.obs["infl_perturbation"] == "ctrl") & (adata.obs["infl_split"] == "test")].to_df()
    cells = adata[adata.obs["infl_perturbation"] == name].to_df()[genes[0]] - control[genes[0]].mean()
    box = ax.patches[0].get_path().vertices[:, 1]
    np.testing.assert_allclose([box.min(), box.max()], np.quantile(cells, [0.25, 0.75]), atol=1e-5)
    train = adata[adata.obs["infl_split"] == "train"]
    means = train.to_df().groupby(train.obs["infl_perturbation"].astype(str)).mean()
    additive = (means.loc[[first, second]] - means.loc["ctrl"]).sum()[genes]
    drawn = next(line for line in ax.lines if line.get_label() == "additive").get_ydata()
    np.testing.assert_allclose(drawn, additive, atol=1e-5)


def test_changes_are_drawn_by_the_ids_or_the_names_of_genes_in_any_order(screen):
    adata = screen.copy()
    names = adata.var["gene_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    pp.perturbations(adata, gene_key="gene_name")
    pair = next(name for name in adata.obs["infl_perturbation"].cat.categories if "+" in name)
    change = pd.DataFrame([np.arange(adata.n_vars, dtype=float)], [pair], names)
    tables = {"names": change.iloc[:, ::-1], "ids": change.set_axis(adata.var_names, axis=1).iloc[:, ::-1]}
    ax = pl.perturbation(adata, tables, pair)
    expected = [list(names).index(gene) for gene in texts(ax.get_xticklabels())]
    for method in tables:
        drawn = next(line for line in ax.lines if line.get_label() == method).get_ydata()
        np.testing.assert_allclose(drawn, expected)


def test_a_perturbation_that_was_not_measured_or_named_is_refused(screen):
    with pytest.raises(ValueError, match="Expected the `perturbation` to draw"):
        pl.perturbation(screen)
    with pytest.raises(ValueError, match="perturbation"):
        pl.perturbation(screen, None, "KLF1")
    pair = next(name for name in screen.obs["infl_perturbation"].cat.categories if "+" in name)
    with pytest.raises(ValueError, match=rf"Write it as '{pair.replace('+', '.')}'"):
        pl.perturbation(screen, None, pair.replace("+", "_").lower())
    assert pl.perturbation(screen, None, pair.split("+")).get_legend().get_title().get_text() == pair
    name = screen.obs["infl_perturbation"].cat.categories[1]
    with pytest.raises(ValueError, match="genes"):
        pl.perturbation(screen, None, name, genes=["KLF1"])
    with pytest.raises(ValueError, match="a row"):
        pl.perturbation(screen, {"mine": pd.DataFrame(index=["x"], columns=screen.var_names)}, name)
    with pytest.raises(KeyError, match=r"scinfl\.pp\.perturbations"):
        pl.perturbation(datasets.pbmc(), None, "A")


def test_boxes_of_nothing_are_refused(cells):
    for arguments, message in (
        ({"adata": cells.drop(columns="change")}, "no change"),
        ({"adata": cells.iloc[:0]}, "found none"),
        ({"adata": cells, "genes": ["GENE0", "KLF1"]}, "none of KLF1"),
        ({"adata": cells, "predictions": {"GEARS": {"KLF1": 1.0}}}, "predictions\\['GEARS'\\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pl.perturbation(**arguments)


def test_a_scatter_shows_all_genes_on_equal_axes_and_their_correlation():
    generator = np.random.default_rng(0)
    measured = generator.normal(size=200)
    predicted = 0.5 * measured + 0.3 * generator.normal(size=200)
    table = pd.DataFrame({"measured": measured, "predicted": predicted}, [f"g{i}" for i in range(200)])
    ax = pl.perturbation_scatter(table, title="A+B")
    assert ax.get_title(loc="left") == f"A+B\nPearson {np.corrcoef(measured, predicted)[0, 1]:.2f}"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured change", "predicted change")
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_legend() is None
    assert 1 <= len(ax.texts) <= 8
    assert ax.texts[0].get_text() == table.abs().max(axis=1).idxmax()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    top = table.assign(de=np.abs(measured) > 1, gene=[f"KLF{i}" for i in range(200)])
    ax = pl.perturbation_scatter(top, n_labels=3)
    assert [len(points.get_offsets()) for points in ax.collections] == [(~top["de"]).sum(), top["de"].sum()]
    assert legend(ax) == ["other genes", "DE genes"]
    assert "DE" in ax.get_title(loc="left")
    assert all(name.startswith("KLF") for name in texts(ax.texts))
    assert not pl.perturbation_scatter(table, n_labels=0).texts


def test_a_constant_prediction_has_an_undefined_correlation():
    table = pd.DataFrame({"measured": [0.1, -0.2, 0.4], "predicted": [0.0, 0.0, 0.0]})
    assert pl.perturbation_scatter(table).get_title(loc="left") == "Pearson undefined"
    with pytest.raises(ValueError, match="no measured"):
        pl.perturbation_scatter(table[["predicted"]])


def test_bars_are_means_of_seeds_and_points_the_seeds(scores):
    ax = pl.perturbation_metrics(scores)
    assert texts(ax.get_xticklabels()) == ["combo seen0", "unseen single"]
    assert ax.get_ylabel() == "MSE, top DE genes"
    assert legend(ax) == METHODS
    assert len(ax.patches) == 6
    own = scores.query("metric == 'mse_de' and method == 'additive' and subgroup == 'combo_seen0'")
    assert ax.patches[2].get_height() == pytest.approx(own["value"].mean())
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [6, 6, 6]
    np.testing.assert_allclose(points[1].get_ydata()[:3], own.groupby("seed")["value"].mean())


def test_several_scores_stand_beside_each_other(scores):
    missing = (scores["method"] == "GEARS") & (scores["subgroup"] == "unseen_single") & (scores["metric"] == "mse_de")
    ax = pl.perturbation_metrics(scores[~missing], ["mse_de", "opposite_direction_de"])
    assert len(ax.patches) == 12
    assert ax.get_ylabel() == "score"
    lower = ax.child_axes[0].get_xticklabels()
    assert [text.strip() for text in texts(lower)] == ["MSE\ntop DE genes", "opposite direction\ntop DE genes"]
    with pytest.raises(ValueError, match="'pearson'"):
        pl.perturbation_metrics(scores, "pearson")
    with pytest.raises(ValueError, match="no method"):
        pl.perturbation_metrics(scores.drop(columns="method"))


def test_a_single_run_has_bars_and_no_points(scores):
    ax = pl.perturbation_metrics(scores.drop(columns="seed"))
    own = scores.query("metric == 'mse_de' and method == 'additive' and subgroup == 'combo_seen0'")
    assert ax.patches[2].get_height() == pytest.approx(own["value"].mean())
    assert not [line for line in ax.lines if line.get_marker() == "o"]


def test_categories_give_the_order(scores):
    order = ["no change", "additive", "GEARS", "unused"]
    ordered = scores.assign(method=pd.Categorical(scores["method"], order))
    assert legend(pl.perturbation_metrics(ordered)) == order[:3]
    assert legend(pl.hit_rate(ordered)) == order[:3]


def test_hit_rates_are_drawn_by_perturbation_and_method(scores):
    ax = pl.hit_rate(scores)
    assert texts(ax.get_yticklabels()) == ["A+B", "A+C", "D"]
    assert ax.get_xlim() == (0, 1)
    assert legend(ax) == METHODS
    lines = {line.get_label(): line for line in ax.lines}
    expected = scores.query("metric == 'hit_rate' and method == 'additive'").groupby("perturbation")["value"].mean()
    np.testing.assert_allclose(lines["additive"].get_xdata(), expected[["A+B", "A+C", "D"]])
    assert len({lines[method].get_marker() for method in METHODS}) == 3
    partial = scores[(scores["method"] != "GEARS") | (scores["perturbation"] != "D")]
    assert np.isnan({line.get_label(): line for line in pl.hit_rate(partial).lines}["GEARS"].get_xdata()[2])
    with pytest.raises(ValueError, match="metric 'hit_rate'"):
        pl.hit_rate(scores[scores["metric"] != "hit_rate"])
    with pytest.raises(ValueError, match="no method"):
        pl.hit_rate(scores.drop(columns="method"))


def test_interactions_write_their_values_and_standardise_columns(scored_pairs):
    scored_pairs.loc["A+C", "dominance"] = np.inf
    scored_pairs.loc["A+D", "dcor"] = np.nan
    scored_pairs["eq_contr"] = 0.5
    ax = pl.interactions(scored_pairs)
    assert texts(ax.get_yticklabels())[:2] == ["A+B (synergy)", "A+C (additive)"]
    assert texts(ax.get_xticklabels())[2] == "dcor singles"
    shown = ax.images[0].get_array()
    assert shown.shape == (5, 8)
    np.testing.assert_allclose(shown.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(shown.std(0)[:7], 1)
    assert shown.mask.sum() == 2
    written = texts(ax.texts)
    assert len(written) == 40
    assert written[0] == f"{scored_pairs['mag'].iloc[0]:.2f}"
    assert {"∞", "–"} <= set(written)
    given = plt.subplots()[1]
    assert pl.interactions(scored_pairs, scores=["mag", "c1"], ax=given) is given
    assert len(given.texts) == 10
    with pytest.raises(ValueError, match="no type"):
        pl.interactions(scored_pairs.drop(columns="type"))


def test_many_methods_are_told_apart():
    rows = [(f"method {i}", "A", "hit_rate", i / 10) for i in range(9)]
    ax = pl.hit_rate(pd.DataFrame(rows, columns=["method", "perturbation", "metric", "value"]))
    styles = {(line.get_color(), line.get_marker()) for line in ax.lines if line.get_label().startswith("method")}
    assert len(styles) == 9
