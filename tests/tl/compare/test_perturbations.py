"""Perturbation response scored beside baselines, and through every way to train."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl import pl, tl
from scinfl.model import GEARS

pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")

BASELINES = {"no change", "train mean", "nearest", "additive", "linear"}
QUICK = {"n_rounds": 1, "local_epochs": 1, "loss": "squared", "min_cells": 1, "progress": False}
SMALL = {"n_hidden": 8}


def make_screen(rng: int = 0) -> ad.AnnData:
    adata = si.datasets.perturbseq_simulated(60, n_singles=10, n_doubles=16, n_cells=20, n_controls=160, rng=rng)
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    si.pp.perturbations(adata, known_genes=list(adata.uns["gene_terms"]))
    si.pp.split_perturbations(adata, "combo_seen2", test_fraction=0.25)
    si.pp.split_sites(adata, 3, by="infl_perturbation", alpha=1.0, everywhere=["ctrl"])
    return adata


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return make_screen()


@pytest.fixture(scope="module")
def model(screen) -> GEARS:
    GEARS.setup_anndata(screen, site_key=None)
    model = GEARS(screen, gene_ontology=screen.uns["gene_terms"], key_scheme=None, **SMALL)
    model.train(**QUICK)
    return model


@pytest.fixture(scope="module")
def compared(screen) -> pd.DataFrame:
    return tl.compare_perturbations(
        screen,
        screen.uns["gene_terms"],
        site_key="site",
        n_seeds=2,
        n_keys=2,
        init=SMALL,
        train={**QUICK, "n_rounds": 2},
        rng=5,
        progress=False,
    )


def held_out(adata: ad.AnnData, part: str = "test") -> list[str]:
    names = adata.obs["infl_perturbation"].astype(str)
    return sorted(set(names[(adata.obs["infl_split"] == part) & (names != "ctrl")]))


def value(table: pd.DataFrame, method: str, metric: str) -> float:
    return table[(table["method"] == method) & (table["metric"] == metric)]["value"].mean()


def means(adata: ad.AnnData, chosen: np.ndarray) -> np.ndarray:
    return np.asarray(adata.X[np.flatnonzero(chosen)].mean(0), np.float64).ravel()


# ---- score_perturbations


def test_a_model_stands_beside_all_baselines_on_every_held_out_perturbation(screen, model):
    table = tl.score_perturbations(screen, model)
    assert list(table) == ["method", "perturbation", "metric", "value", "subgroup"]
    assert set(table["method"]) == {*BASELINES, "GEARS"}
    assert table.groupby(["method", "metric"])["perturbation"].agg(lambda own: sorted(own) == held_out(screen)).all()
    assert not table.duplicated(["method", "perturbation", "metric"]).any()


def test_several_models_keep_their_names_and_baselines_can_be_left_out(screen, model):
    table = tl.score_perturbations(screen, {"one": model, "two": model}, baselines=False)
    assert list(table["method"].unique()) == ["one", "two"]
    one, two = (table[table["method"] == name]["value"].to_numpy() for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_scores_are_of_changes_against_the_controls_that_no_model_has_seen(screen, model):
    names = screen.obs["infl_perturbation"].astype(str).to_numpy()
    parts = screen.obs["infl_split"].astype(str).to_numpy()
    name = held_out(screen)[0]
    measured = means(screen, names == name) - means(screen, (names == "ctrl") & (parts == "test"))
    expected = np.corrcoef(measured, model.predict_change([name]).to_numpy()[0])[0, 1]
    table = tl.score_perturbations(screen, model, baselines=False).query("metric == 'pearson_delta'")
    assert table.set_index("perturbation")["value"][name] == pytest.approx(expected, abs=1e-6)


def test_changes_of_another_method_are_scored_like_a_model(screen, model):
    names = held_out(screen)
    changes = model.predict_change(names[::-1])
    table = tl.score_perturbations(screen, {"model": model, "table": changes}, baselines=False)
    one, two = (
        table[table["method"] == name].sort_values(["perturbation", "metric"])["value"] for name in ("model", "table")
    )
    np.testing.assert_allclose(one, two, rtol=1e-6, equal_nan=True)


def test_perfect_changes_have_no_error(screen):
    names = screen.obs["infl_perturbation"].astype(str).to_numpy()
    parts = screen.obs["infl_split"].astype(str).to_numpy()
    start = means(screen, (names == "ctrl") & (parts == "train"))
    truth = pd.DataFrame({name: means(screen, names == name) - start for name in held_out(screen)}).T
    table = tl.score_perturbations(screen, {"truth": truth.set_axis(screen.var_names, axis=1)})
    assert value(table, "truth", "mse") == pytest.approx(0, abs=1e-9)
    assert value(table, "no change", "mse") > 1e-3


def test_validation_perturbations_can_be_scored(screen, model):
    table = tl.score_perturbations(screen, model, part="val")
    assert set(table["perturbation"]) == set(held_out(screen, "val"))
    assert not set(table["perturbation"]) & set(held_out(screen))


def test_subgroups_carry_the_names_of_the_split(screen, model):
    adata = screen.copy()
    si.pp.split_perturbations(adata, "simulation", rng=1)
    table = tl.score_perturbations(adata, {})
    groups = adata.uns["infl"]["split"]["test"]
    found = table.drop_duplicates("perturbation").set_index("perturbation")["subgroup"]
    assert found.to_dict() == {str(name): group for group, names in groups.items() for name in names}
    assert len(set(found)) > 1
    assert set(tl.score_perturbations(screen, model)["subgroup"]) == {"combo_seen2"}


def test_a_perturbation_in_no_subgroup_is_called_other(screen):
    adata = screen.copy()
    name = held_out(adata)[0]
    adata.uns["infl"]["split"]["test"] = {"combo_seen2": np.array(held_out(adata)[1:], dtype=object)}
    table = tl.score_perturbations(adata, {})
    assert set(table[table["perturbation"] == name]["subgroup"]) == {"other"}


def test_a_layer_can_be_scored(screen, model):
    adata = screen.copy()
    adata.layers["logged"], adata.X = adata.X, None
    changes = {"GEARS": model.predict_change(held_out(adata))}
    pd.testing.assert_frame_equal(
        tl.score_perturbations(adata, changes, layer="logged"), tl.score_perturbations(screen, changes)
    )


def test_similar_genes_are_a_baseline_where_similarity_is_given(screen):
    genes = list(screen.uns["gene_terms"])
    similarity = pd.DataFrame({"source": genes[:-1], "target": genes[1:], "importance": 0.5})
    assert "similar" in set(tl.score_perturbations(screen, {}, similarity=similarity)["method"])


def test_controls_that_were_not_split_are_scored_with_a_warning(screen):
    adata = screen.copy()
    si.pp.split_perturbations(adata, "combo_seen2", test_fraction=0.25, split_controls=False)
    with pytest.warns(UserWarning, match="found the same mean"):
        table = tl.score_perturbations(adata, {})
    assert set(table["method"]) == BASELINES


def test_cells_that_were_not_prepared_are_refused(screen):
    adata = screen.copy()
    del adata.obs["infl_split"]
    with pytest.raises(KeyError, match="split_perturbations"):
        tl.score_perturbations(adata, {})
    del adata.uns["infl"]
    with pytest.raises(KeyError, match=r"scinfl\.pp\.perturbations"):
        tl.score_perturbations(adata, {})


def test_a_split_that_holds_nothing_out_is_refused(screen):
    adata = screen.copy()
    si.pp.split_perturbations(adata, "no_split")
    with pytest.raises(ValueError, match=r"found none\. Split again"):
        tl.score_perturbations(adata, {})


def test_a_comparison_of_cells_that_were_not_prepared_is_refused(screen):
    adata = screen.copy()
    del adata.uns["infl"]
    with pytest.raises(KeyError, match=r"scinfl\.pp\.perturbations"):
        tl.compare_perturbations(adata, methods=["centralised"], progress=False)
    with pytest.raises(KeyError, match=r"scinfl\.pp\.perturbations"):
        tl.compare_perturbations(adata, methods=["FedAvg"], site_key="site", by_site=True, progress=False)


def test_ids_of_genes_in_place_of_names_change_no_score(lines):
    adata = lines.copy()
    adata.var["gene_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    si.pp.perturbations(adata, gene_key="gene_name", known_genes=list(adata.uns["gene_terms"]))
    names = held_out(adata)
    change = pd.DataFrame(np.random.default_rng(0).normal(size=(len(names), adata.n_vars)), names, lines.var_names)
    expected = tl.score_perturbations(lines, {"mine": change})
    for columns in (adata.var_names, lines.var_names):
        found = tl.score_perturbations(adata, {"mine": change.set_axis(columns, axis=1)})
        pd.testing.assert_frame_equal(found, expected)
    options = {"site_key": "line", "by_site": True, "methods": ["local-only"], "n_seeds": 1, "init": SMALL}
    tables = [
        tl.compare_perturbations(data, data.uns["gene_terms"], train=QUICK, progress=False, **options)
        for data in (lines, adata)
    ]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_the_name_of_the_control_is_remembered(screen):
    adata = screen.copy()
    adata.obs["condition"] = adata.obs["infl_perturbation"].astype(str).replace("ctrl", "NT")
    si.pp.perturbations(adata, control="NT", known_genes=list(adata.uns["gene_terms"]))
    options = {"n_seeds": 1, "init": SMALL, "train": QUICK, "progress": False}
    table = tl.compare_perturbations(adata, adata.uns["gene_terms"], methods=["centralised"], **options)
    assert np.isfinite(value(table, "centralised", "mse_de"))


def test_an_unknown_part_is_refused(screen):
    with pytest.raises(ValueError, match="part"):
        tl.score_perturbations(screen, {}, part="train")


# ---- compare_perturbations


def test_every_method_and_baseline_is_scored_on_the_same_perturbations(compared, screen):
    assert list(compared) == ["seed", "method", "site", "perturbation", "metric", "value", "subgroup"]
    assert set(compared["site"]) == {"all"}
    assert set(compared["method"].cat.categories) == {*BASELINES, *tl.PERTURBATION_METHODS}
    for method in tl.PERTURBATION_METHODS:
        own = compared[compared["method"] == method]
        assert set(own["seed"]) == {5, 6}
        assert set(own["perturbation"]) == set(held_out(screen))
    assert not compared.duplicated(["seed", "method", "perturbation", "metric"]).any()


def test_wrong_keys_and_removed_modules_do_not_correlate_with_what_was_measured(compared):
    right = value(compared, "keyed", "pearson_delta")
    assert right > 0.4
    for method in ("wrong key", "modules removed"):
        assert abs(value(compared, method, "pearson_delta")) < 0.25
        assert value(compared, method, "mse_de") > 2 * value(compared, "keyed", "mse_de")


def test_the_key_costs_little(compared):
    for method in ("centralised", "FedAvg"):
        gap = value(compared, "keyed", "pearson_delta") - value(compared, method, "pearson_delta")
        assert abs(gap) < 0.1


def test_the_share_of_the_network_is_listed_by_method_and_seed(compared):
    shares = compared.attrs["shrinkage"]
    assert set(shares) == {(method, seed) for method in ("centralised", "FedAvg", "keyed") for seed in (5, 6)}
    assert all(set(share) == {"single", "combination"} for share in shares.values())
    assert all(0 <= number <= 1 for share in shares.values() for number in share.values())


def test_a_comparison_is_ready_for_summary_and_plots(compared):
    summary = si.metrics.perturbation_summary(compared)
    assert {"seed", "method", "metric", "subgroup", "value", "n"} <= set(summary)
    assert pl.perturbation_metrics(summary, "mse_de").get_ylabel() == "MSE, top DE genes"
    assert pl.hit_rate(compared).get_xlabel() == "hit rate"


# ---- lines as sites: other cells, the same perturbations


@pytest.fixture(scope="module")
def lines() -> ad.AnnData:
    """Three lines that differ more from each other than any perturbation makes a difference."""
    adata = make_screen(2)
    adata.obs["line"] = adata.obs["site"].astype(str).replace({f"site_{n}": f"line {n}" for n in (1, 2, 3)})
    shift = np.random.default_rng(0).uniform(0, 4, (3, adata.n_vars))
    adata.X = np.asarray(adata.X.todense()) + shift[adata.obs["line"].str[-1].astype(int) - 1]
    si.pp.perturbations(adata, known_genes=list(adata.uns["gene_terms"]))
    si.pp.split_perturbations(adata, "combo_seen2", test_fraction=0.25, site_key="line")
    return adata


@pytest.fixture(scope="module")
def by_line(lines) -> pd.DataFrame:
    return tl.compare_perturbations(
        lines,
        lines.uns["gene_terms"],
        site_key="line",
        by_site=True,
        n_seeds=1,
        n_keys=1,
        init=SMALL,
        train=QUICK,
        progress=False,
    )


def test_every_line_is_scored_on_its_own_cells(by_line, lines):
    at = lines.obs["line"].astype(str)
    for line in set(at):
        own = set(lines.obs["infl_perturbation"][at == line].astype(str)) & set(held_out(lines))
        rows = by_line[by_line["site"] == line]
        assert set(rows["method"]) == {*BASELINES, *(f"{rule}, all sites" for rule in BASELINES - {"no change"})} | {
            *tl.PERTURBATION_METHODS
        }
        assert rows.groupby("method", observed=True)["perturbation"].agg(lambda names, own=own: set(names) == own).all()
    assert not by_line.duplicated(["method", "site", "perturbation", "metric"]).any()


def test_what_lines_differ_in_is_no_change(by_line, lines):
    names, parts = (lines.obs[column].astype(str).to_numpy() for column in ("infl_perturbation", "infl_split"))
    at_line = (lines.obs["line"] == "line 1").to_numpy()
    chosen = by_line[(by_line["site"] == "line 1") & (by_line["metric"] == "mse")].set_index(["method", "perturbation"])
    name = chosen.loc["no change"].index[0]
    start = means(lines, at_line & (names == "ctrl") & (parts == "train"))
    expected = np.square(means(lines, at_line & (names == name)) - start).mean()
    assert chosen.loc[("no change", name), "value"] == pytest.approx(expected)
    mean = chosen["value"].groupby("method", observed=True).mean()
    for method in ("centralised", "FedAvg", "keyed", "additive, all sites"):
        assert mean[method] < 1.5 * mean["no change"]  # a confounded change would be off by the shift between lines


def test_rules_of_all_sites_are_of_changes_within_sites(by_line, lines):
    names, parts = (lines.obs[column].astype(str).to_numpy() for column in ("infl_perturbation", "infl_split"))
    line, total, count = lines.obs["line"].to_numpy(), {}, {}
    for name in set(names[parts == "train"]) - {"ctrl"}:
        for one in set(line[names == name]):
            control = means(lines, (line == one) & (names == "ctrl") & (parts == "train"))
            own = (line == one) & (names == name)
            total[name] = total.get(name, 0) + own.sum() * (means(lines, own) - control)
            count[name] = count.get(name, 0) + own.sum()
    mean = np.mean([total[name] / count[name] for name in total], axis=0)
    rows = by_line[(by_line["site"] == "line 2") & (by_line["metric"] == "mse")].set_index(["method", "perturbation"])
    name = rows.loc["train mean, all sites"].index[0]
    at_line = line == "line 2"
    start = means(lines, at_line & (names == "ctrl") & (parts == "train"))
    expected = np.square(start + mean - means(lines, at_line & (names == name))).mean()
    assert rows.loc[("train mean, all sites", name), "value"] == pytest.approx(expected, rel=1e-6)


def test_a_comparison_by_line_is_drawn_by_line(by_line):
    ax = pl.perturbation_metrics(by_line, "mse_de", by="site")
    assert [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()] == ["line 1", "line 2", "line 3"]


def test_pooled_training_needs_no_sites(screen):
    table = tl.compare_perturbations(
        screen,
        screen.uns["gene_terms"],
        methods=["centralised"],
        n_seeds=1,
        init=SMALL,
        train=QUICK,
        progress=False,
    )
    assert set(table["method"]) == {*BASELINES, "centralised"}
    assert set(table["seed"]) == {0}


def test_the_cells_are_left_as_they_were():
    adata = make_screen(1)
    before = adata.copy()
    tl.compare_perturbations(
        adata,
        adata.uns["gene_terms"],
        site_key="site",
        methods=["local-only"],
        n_seeds=1,
        init=SMALL,
        train=QUICK,
        progress=False,
    )
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": ["keyed", "magic"]}, ValueError, r"found \['magic'\]"),
        ({"site_key": None}, ValueError, "Expected `site_key` for the methods"),
        ({"site_key": "hospital"}, KeyError, "site_key"),
        ({"site_key": None, "methods": ["centralised"], "by_site": True}, ValueError, "to score by site"),
        ({"n_seeds": 0}, ValueError, "n_seeds"),
        ({"n_keys": 0}, ValueError, "n_keys"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(screen, monkeypatch, arguments, error, message):
    monkeypatch.setattr(GEARS, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(error, match=message):
        tl.compare_perturbations(
            screen, screen.uns["gene_terms"], **{"site_key": "site", "progress": False, **arguments}
        )


def test_only_the_scores_that_were_asked_for_are_returned(screen):
    everything = tl.score_perturbations(screen, {})
    chosen = tl.score_perturbations(screen, {}, metrics=["mse_de", "discrimination_l1", "pearson_delta_perturbed"])
    assert set(chosen["metric"]) == {"mse_de", "discrimination_l1", "pearson_delta_perturbed"}
    assert len(chosen) == 3 * len(everything[everything["metric"] == "mse_de"])
    with pytest.raises(ValueError, match="metrics"):
        tl.score_perturbations(screen, {}, metrics="mse_ed")
