"""GEARS: perturbation response over sites."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scinfl as si
from scinfl.model import GEARS
from scinfl.model.gears._prediction import EVERYWHERE
from scinfl.privacy import Key

pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")

QUICK = {"n_rounds": 2, "local_epochs": 2, "loss": "squared", "progress": False}


def make_screen(rng: int = 0, *, n_sites: int = 4, **settings) -> ad.AnnData:
    adata = si.datasets.perturbseq_simulated(
        **{"n_genes": 60, "n_singles": 12, "n_doubles": 14, "n_cells": 24, "n_controls": 160, "rng": rng, **settings}
    )
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    si.pp.perturbations(adata, known_genes=list(adata.uns["gene_terms"]))
    si.pp.split_perturbations(adata, "combo_seen2", test_fraction=0.25)
    si.pp.split_sites(adata, n_sites, by="infl_perturbation", alpha=1.0, everywhere=["ctrl"])
    return adata


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return make_screen()


def make_model(adata, *, site_key="site", setup=None, **arguments) -> GEARS:
    GEARS.setup_anndata(adata, condition_key="condition", site_key=site_key, **(setup or {}))
    return GEARS(adata, **{"gene_ontology": adata.uns["gene_terms"], "n_hidden": 16, **arguments})


@pytest.fixture(scope="module")
def keyed(screen):
    model = make_model(screen)
    key = Key(bytes(range(32)), federation="screen")
    model.train(key=key, **QUICK)
    return model, key


def held_out(adata) -> list[str]:
    return sorted({name for names in adata.uns["infl"]["split"]["test"].values() for name in names})


def test_a_keyed_federation_predicts_what_was_held_out(screen):
    model = make_model(screen)
    model.train(12, key=Key.generate(), loss="squared", lr=6e-3, local_epochs=5, progress=False)
    table = si.tl.score_perturbations(screen, {"keyed": model})
    errors = table[table["metric"] == "mse_de"].groupby("method")["value"].mean()
    assert errors["keyed"] < 0.6 * errors["no change"]
    assert errors["keyed"] < errors["train mean"]


def test_wrong_and_missing_keys_predict_no_better_than_no_change(screen):
    model, key = make_model(screen, prior=None), Key.generate()
    model.train(12, key=key, loss="squared", lr=6e-3, local_epochs=5, progress=False)
    right = model.predict_change(held_out(screen))
    candidates = {"right": right, "removed": model.stripped()}
    model.unlock(Key.generate(), force=True)
    candidates["wrong"] = model.predict_change(held_out(screen))
    table = si.tl.score_perturbations(screen, candidates)
    means = table.groupby(["metric", "method"])["value"].mean()
    assert means["mse_de", "right"] < 0.7 * means["mse_de", "no change"]
    for attempt in ("wrong", "removed"):
        assert means["mse_de", attempt] > 0.9 * means["mse_de", "no change"]
        assert abs(means["pearson_delta", attempt]) < 0.25 < means["pearson_delta", "right"]


def test_a_forced_wrong_key_opens_no_prior_and_the_right_one_brings_it_back(keyed, screen):
    model, key = keyed
    before = model.predict_change(held_out(screen))
    model.unlock(Key.generate(), force=True)
    assert model.shrinkage is None
    assert not np.allclose(model.predict_change(held_out(screen)), before, atol=0.05)
    model.unlock(key)
    np.testing.assert_allclose(model.predict_change(held_out(screen)), before, atol=1e-6)


def test_a_locked_model_refuses_and_forgets_its_prior(screen):
    model, key = make_model(screen), Key.generate()
    model.train(key=key, **QUICK)
    model.lock()
    assert model.shrinkage is None
    assert "locked" in repr(model)
    with pytest.raises(RuntimeError, match="unlock"):
        model.predict(["GENE01"])
    model.unlock(key)
    assert model.shrinkage is not None


def test_save_and_load_bring_the_same_predictions_and_a_lock(keyed, screen, tmp_path):
    model, key = keyed
    model.save(tmp_path / "run")
    loaded = GEARS.load(tmp_path / "run", screen)
    assert loaded.is_locked
    with pytest.raises(RuntimeError, match="locked"):
        loaded.predict(held_out(screen))
    with pytest.raises(ValueError, match="Use the key of this model"):
        loaded.unlock(Key.generate())
    loaded.unlock(key)
    expected, found = (m.predict(held_out(screen)) for m in (model, loaded))
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    assert repr(loaded) == repr(model)
    pd.testing.assert_frame_equal(loaded.history, model.history, check_dtype=False)


def test_a_plain_model_needs_no_key_and_no_data_for_changes(screen, tmp_path):
    model = make_model(screen, site_key=None, key_scheme=None)
    model.train(**QUICK)
    model.save(tmp_path / "run")
    loaded = GEARS.load(tmp_path / "run")
    np.testing.assert_allclose(
        loaded.predict_change(held_out(screen)), model.predict_change(held_out(screen)), atol=1e-5
    )
    with pytest.raises(ValueError, match="Expected data, found none"):
        loaded.predict(held_out(screen))
    assert loaded.predict(held_out(screen), screen).shape == (len(held_out(screen)), screen.n_vars)


def test_neither_key_nor_prior_reach_a_file(keyed, tmp_path):
    model, key = keyed
    model.save(tmp_path / "locked", sealed=False)
    content = b"".join(path.read_bytes() for path in (tmp_path / "locked").iterdir())
    changes = model._priors[""].changes
    for row in changes:
        assert row.tobytes()[:64] not in content
        assert row.astype(np.float32).tobytes()[:32] not in content
    table = next(m for n, m in model.module.named_modules() if n == "readout")
    secret = key.coordinates("readout/rows", (3, 3 + 18), table.row_names[:3])
    assert secret.tobytes()[:32] not in content
    loaded = GEARS.load(tmp_path / "locked")
    assert loaded.shrinkage is None
    loaded.unlock(key)
    assert loaded.shrinkage == model.shrinkage


def test_predictions_are_control_plus_change_and_the_same_twice(keyed, screen):
    model, _ = keyed
    names = ["GENE01+ctrl", held_out(screen)[0]]
    names[0] = f"{model._agreed[-1].genes[0]}+ctrl"
    predicted = model.predict(names)
    assert list(predicted.obs_names) == names
    control = predicted.var["control_mean"].to_numpy()
    np.testing.assert_allclose(predicted.X, control + predicted.layers["delta"], atol=1e-5)
    used = (screen.obs["condition"] == "ctrl") & (screen.obs["infl_split"] == "train")
    np.testing.assert_allclose(control, np.asarray(screen.X[used.to_numpy()].mean(0)).ravel(), rtol=1e-5)
    np.testing.assert_array_equal(model.predict(names).X, predicted.X)
    assert predicted.obs["n_genes"].tolist() == [1, 2]


def test_the_order_of_genes_in_a_name_does_not_matter(keyed, screen):
    model, _ = keyed
    first, second = held_out(screen)[0].split("+")
    np.testing.assert_array_equal(
        model.predict_change([f"{first}+{second}"]), model.predict_change([f"{second}+{first}"])
    )


def test_three_genes_and_the_control_can_be_asked_for(keyed, screen):
    model, _ = keyed
    genes = sorted(screen.uns["gene_terms"])[:3]
    change = model.predict_change(["+".join(genes), "ctrl"])
    assert np.isfinite(change.to_numpy()).all()
    assert (change.loc["ctrl"] == 0).all()


def test_cells_are_predicted_one_by_one(keyed, screen):
    model, _ = keyed
    name = held_out(screen)[0]
    cells = model.predict_cells(name)
    control = screen[cells.obs_names].X.toarray()
    np.testing.assert_allclose(
        cells.X - control, model.predict_change([name]).to_numpy().repeat(len(cells), 0), atol=1e-5
    )


def test_a_measured_condition_is_what_was_measured_under_the_additive_prior(screen):
    model = make_model(screen, site_key=None, key_scheme=None)
    model.train(**QUICK)
    single = next(c.genes[0] for c in model._agreed if len(c.genes) == 1)
    train = screen.obs["infl_split"] == "train"
    cells, control = (
        np.asarray(screen.X[((screen.obs["infl_perturbation"] == name) & train).to_numpy()].mean(0)).ravel()
        for name in (single, "ctrl")
    )
    np.testing.assert_allclose(model.predict_change([single]).iloc[0], cells - control, atol=1e-5)


def test_interactions_are_scored_for_pairs(keyed, screen, monkeypatch):
    model, _ = keyed
    pairs = [tuple(name.split("+")) for name in held_out(screen)[:2]]
    table = model.predict_interaction(pairs)
    assert len(table) == 2
    assert set(table["type"]) <= {"synergy", "suppression", "neomorphism", "redundancy", "epistasis", "additive"}
    one, other = pairs[0]
    for spelled in (f"{one}+{other}", [[other, one]]):
        pd.testing.assert_series_equal(
            model.predict_interaction(spelled)["mag"].reset_index(drop=True),
            table["mag"].iloc[:1].reset_index(drop=True),
        )
    prior = model._priors[EVERYWHERE]
    known = [genes for genes in prior.conditions if len(genes) == 2][:4]  # of four pairs no usual size follows
    kept = [row for row, genes in enumerate(prior.conditions) if len(genes) == 1 or genes in known]
    fewer = replace(prior, conditions=tuple(prior.conditions[row] for row in kept), changes=prior.changes[kept])
    monkeypatch.setitem(model._priors, EVERYWHERE, fewer)
    assert model.predict_interaction(pairs)["type"].isna().all()
    assert model.predict_interaction(pairs, thresholds={"synergy": 2})["type"].notna().all()
    for wrong in ([one, other], f"{one}_{other}"):
        with pytest.raises(ValueError, match=rf"pairs of two different genes.*Write a pair as `\['{one}\+{other}'\]`"):
            model.predict_interaction(wrong)


@pytest.mark.parametrize("double", [1.0, 0.5])
def test_types_are_relative_to_what_pairs_of_the_data_usually_do(keyed, screen, monkeypatch, double):
    model, _ = keyed
    prior = model._priors[EVERYWHERE]
    rows = {genes: row for row, genes in enumerate(prior.conditions)}
    changes = prior.changes.copy()
    for genes, row in rows.items():
        if len(genes) == 2:
            changes[row] = double * sum(changes[rows[(gene,)]] for gene in genes)
    monkeypatch.setitem(model._priors, EVERYWHERE, replace(prior, changes=changes))
    pairs = ["+".join(genes) for genes in rows if len(genes) == 2]
    assert not {"synergy", "suppression"} & set(model.predict_interaction(pairs)["type"])


def test_a_prediction_states_its_error_and_what_was_measured_has_none(keyed, screen):
    model, _ = keyed
    new = held_out(screen)[0]
    found = model.predict([new, new.split("+")[0]])
    error = found.layers["error"]
    assert np.isfinite(error[0]).all()
    assert (error[0] > 0).any()
    assert np.isnan(error[1]).all()
    plain = make_model(screen, prior=None)
    plain.train(key=Key.generate(), **QUICK)
    assert "error" not in plain.predict([new]).layers


def test_conditions_that_were_drawn_to_validate_with_are_known_afterwards(screen):
    screen = screen.copy()
    screen.obs["infl_split"] = screen.obs["infl_split"].astype(str).replace("val", "train")
    model = make_model(screen)
    model.train(key=Key.generate(), validation_size=0.3, **QUICK)
    prior, trained = model._priors[EVERYWHERE], {condition.genes for condition in model._agreed}
    later = [genes for genes in prior.conditions if genes not in trained]
    assert later
    names = screen.obs["infl_perturbation"].astype(str).to_numpy()
    known = set(names[(screen.obs["infl_split"] == "train").to_numpy()]) - {"ctrl"}
    assert {"+".join(genes) for genes in prior.conditions} == known


def test_sites_share_sums_and_the_server_reads_none(screen, monkeypatch):
    seen = []
    combine = si.privacy.aggregation.Aggregator.combine

    def spy(self, encoded):
        seen.extend((update.purpose, update.state["masked"].copy()) for update in encoded)
        return combine(self, encoded)

    monkeypatch.setattr(si.privacy.aggregation.Aggregator, "combine", spy)
    model = make_model(screen)
    model.train(key=Key.generate(), **QUICK)
    purposes = {purpose for purpose, _ in seen}
    assert {"coexpression", "changes", "training cells", "training", "evaluation"} <= purposes
    for purpose, masked in seen:
        if len(masked) > 100:
            bits = np.unpackbits(masked.view(np.uint8))
            assert abs(bits.mean() - 0.5) < 0.02, purpose


def test_federated_sums_are_those_of_pooled_cells(screen):
    pooled, federated = (make_model(screen, site_key=site_key) for site_key in (None, "site"))
    for model in (pooled, federated):
        model.train(1, key=Key.generate(), local_epochs=1, loss="squared", progress=False, min_cells=1)
    graphs = []
    for model in (pooled, federated):
        edges, weights = model._coexpression[""]
        graphs.append(pd.Series(weights, index=pd.MultiIndex.from_arrays(edges)).sort_index())
    pd.testing.assert_series_equal(*graphs, rtol=1e-4)
    assert pooled._priors[""].conditions == federated._priors[""].conditions
    # every site compares with controls of its own, which differ by chance
    np.testing.assert_allclose(pooled._priors[""].changes, federated._priors[""].changes, atol=0.5)


def test_each_condition_weighs_one_over_all_sites(screen):
    from scinfl.model.gears._data import Design, SiteCells
    from scinfl.model.gears._sums import shares_of

    model = make_model(screen)
    design = Design.of(screen, model._setup_args(), {})
    sites = {name: SiteCells.of(design, "train", name, 1) for name in sorted(set(design.site))}
    shares = shares_of(sites, (), "training cells")
    totals: dict = {}
    for name, cells in sites.items():
        for condition, share in zip(cells.conditions, shares[name], strict=True):
            totals[condition] = totals.get(condition, 0) + share
    np.testing.assert_allclose(list(totals.values()), 1)


@pytest.mark.parametrize("form", ["sparse", "dense", "float64", "csc", "layer"])
def test_forms_of_values_give_the_same_model(screen, form):
    adata = screen.copy()
    setup = {}
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "float64":
        adata.X = adata.X.astype(np.float64)
    elif form == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif form == "layer":
        adata.layers["log"], adata.X = adata.X.copy(), adata.layers["counts"]
        setup = {"layer": "log"}
    results = []
    for data, arguments in ((screen, {}), (adata, setup)):
        model = make_model(data, site_key=None, key_scheme=None, setup=arguments)
        model.train(1, local_epochs=1, loss="squared", progress=False)
        results.append(model.predict_change(held_out(screen)).to_numpy())
    np.testing.assert_allclose(*results, atol=2e-4)


def test_covariates_have_controls_of_their_own(screen):
    adata = screen.copy()
    adata.obs["cell_type"] = np.where(np.arange(adata.n_obs) % 2, "K562", "RPE1")
    shifted = adata.X.toarray()
    shifted[adata.obs["cell_type"] == "RPE1"] += 1.0  # a batch effect that controls share
    adata.X = shifted
    model = make_model(adata, key_scheme=None, setup={"covariate_keys": ["cell_type"]})
    model.train(min_cells=1, **QUICK)
    name = held_out(adata)[0]
    one, other = (model.predict([name], covariates={"cell_type": level}) for level in ("K562", "RPE1"))
    assert (other.var["control_mean"] - one.var["control_mean"]).mean() == pytest.approx(1, abs=0.1)
    assert np.abs(one.layers["delta"]).mean() < 1
    with pytest.raises(ValueError, match="a level for each covariate"):
        model.predict([name])
    with pytest.raises(ValueError, match="HeLa"):
        model.predict([name], covariates={"cell_type": "HeLa"})


@pytest.mark.parametrize("uncertainty", ["gaussian", "published"])
def test_uncertainty_is_trained_on_the_processor(screen, uncertainty):
    model = make_model(screen, site_key=None, key_scheme=None, uncertainty=uncertainty)
    model.train(n_rounds=2, local_epochs=2, progress=False)
    predicted = model.predict(held_out(screen))
    assert (predicted.layers["uncertainty"] > 0).all()


def test_gaussian_uncertainty_is_the_spread_of_cells(screen):
    model = make_model(screen, site_key=None, key_scheme=None, uncertainty="gaussian", prior=None)
    model.train(20, lr=6e-3, progress=False)
    names = held_out(screen)
    measured = np.stack([screen[(screen.obs["infl_perturbation"] == n).to_numpy()].X.toarray().std(0) for n in names])
    predicted = model.predict(names).layers["uncertainty"]
    assert np.corrcoef(measured.ravel(), predicted.ravel())[0, 1] > 0.3


def test_both_losses_are_tried_and_the_better_kept(screen, tmp_path):
    model = make_model(screen, site_key=None, key_scheme=None)
    model.train(2, local_epochs=1, loss="auto", progress=False, journal=tmp_path / "journal")
    assert model.loss in {"squared", "quartic"}
    assert {path.name for path in (tmp_path / "journal").iterdir()} == {"squared", "quartic"}
    alone = make_model(screen, site_key=None, key_scheme=None)
    alone.train(2, local_epochs=1, loss=model.loss, progress=False)
    np.testing.assert_allclose(
        model.predict_change(held_out(screen)), alone.predict_change(held_out(screen)), atol=1e-5
    )


def test_meta_learners_alone_can_be_shared_and_sites_keep_models_of_their_own(screen, tmp_path):
    model, key = make_model(screen, train_meta=True), Key.generate()
    model.train(key=key, share="meta", **QUICK)
    name = held_out(screen)[0]
    one, other = (model.predict_change([name], site=site).to_numpy() for site in ("site_1", "site_2"))
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match="each has a model of its own"):
        model.predict_change([name])
    model.save(tmp_path / "site_1", site="site_1")
    loaded = GEARS.load(tmp_path / "site_1")
    loaded.unlock(key)
    np.testing.assert_allclose(loaded.predict_change([name]), one, atol=1e-5)


def test_a_run_resumes_from_its_journal(screen, tmp_path):
    key = Key(bytes(range(32)), federation="screen")
    options = {**QUICK, "n_rounds": 3, "protections": ()}
    whole = make_model(screen)
    whole.train(key=key, **options)

    class StopError(Exception):
        pass

    stopped = make_model(screen)
    fit, calls = si.model.base._local_training.LocalSite.fit, []

    def failing(self, round, state):
        calls.append(round)
        if round == 3:
            raise StopError
        return fit(self, round, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(si.model.base._local_training.LocalSite, "fit", failing)
        with pytest.raises(StopError):
            stopped.train(key=key, journal=tmp_path / "journal", **options)
    resumed = make_model(screen)
    resumed.train(key=key, journal=tmp_path / "journal", **options)
    np.testing.assert_allclose(
        resumed.predict_change(held_out(screen)), whole.predict_change(held_out(screen)), atol=1e-6
    )


def test_one_site_one_condition_a_site_and_sites_without_validation(screen):
    singles = [n for n in screen.obs["infl_perturbation"].cat.categories if n != "ctrl" and "+" not in n][:4]
    adata = screen[screen.obs["infl_perturbation"].isin(["ctrl", *singles]).to_numpy()].copy()
    where = {name: f"site_{number % 4}" for number, name in enumerate(singles)}
    sites = adata.obs["infl_perturbation"].astype(str).map(where)
    dealt = pd.Series([f"site_{number % 4}" for number in range(adata.n_obs)], index=adata.obs_names)
    adata.obs["site"] = sites.fillna(dealt)
    adata.obs["infl_split"] = "train"
    model = make_model(adata)
    model.train(key=Key.generate(), validation_size=0, **QUICK)
    assert model.predict(singles).shape == (4, adata.n_vars)
    assert model.shrinkage == {"single": 1.0, "combination": 1.0}


def test_without_an_ontology_coexpression_is_used_and_a_warning_says_so(screen):
    with pytest.warns(UserWarning, match="No gene ontology"):
        model = make_model(screen, gene_ontology=None, site_key=None, key_scheme=None)
    model.train(**QUICK)
    assert np.isfinite(model.predict_change(held_out(screen)).to_numpy()).all()


def test_genes_beside_the_measured_ones_can_be_perturbed(screen):
    model = make_model(screen, site_key=None, key_scheme=None, perturbation_genes=["TP53"])
    model.train(**QUICK)
    assert np.isfinite(model.predict_change(["TP53"]).to_numpy()).all()
    assert model.predict(["TP53"]).obs["n_unseen"].tolist() == [1]


def test_a_network_of_cell_gears_predicts_the_same_and_survives_saving(tmp_path):
    from safetensors.torch import save_file

    with np.load(Path(__file__).parents[2] / "module" / "cell_gears_reference.npz") as stored:
        tensors = {name[12:]: torch.from_numpy(stored[name]) for name in stored if name.startswith("plain/state/")}
        change = stored["plain/eval"]
    genes, perturbed = [f"g{number}" for number in range(9)], [f"p{number}" for number in range(5)]
    names = {"genes": json.dumps(genes), "perturbations": json.dumps(perturbed)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "gears.safetensors", names)
    X = np.random.default_rng(0).random((12, 9), dtype=np.float32)
    obs = pd.DataFrame({"condition": ["ctrl"] * 6 + ["p0+ctrl"] * 6}, index=[f"cell_{n}" for n in range(12)])
    adata = ad.AnnData(X, obs, pd.DataFrame(index=genes))
    GEARS.setup_anndata(adata)
    model = GEARS.from_cell_gears(tmp_path / "gears.safetensors", adata)
    first, rest = change[0], change[4]  # p0 as the first graph of a batch, and as a later one
    expected = (first + 299 * rest) / 300
    np.testing.assert_allclose(model.predict_change(["p0"]).iloc[0], expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(["p0+ctrl"]).X[0], X[:6].mean(0) + expected, atol=1e-5)
    model.save(tmp_path / "run")
    loaded = GEARS.load(tmp_path / "run", adata)
    np.testing.assert_allclose(loaded.predict_change(["p0"]).iloc[0], expected, atol=1e-5)
    assert "untrained" not in repr(loaded)
    other = adata[:, ::-1].copy()
    GEARS.setup_anndata(other)
    with pytest.raises(ValueError, match="found them in another order"):
        GEARS.from_cell_gears(tmp_path / "gears.safetensors", other)


def test_pickles_of_cell_gears_are_refused_with_the_lines_that_convert_them(screen, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"never reads them(.|\n)*save_file"):
        GEARS.from_cell_gears(tmp_path, screen)


# ---- mistakes


def broken(adata, **columns):
    adata = adata.copy()
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def test_data_without_controls_is_refused(screen):
    adata = screen[(screen.obs["condition"] != "ctrl").to_numpy()].copy()
    with pytest.raises(ValueError, match=r"control cells named 'ctrl'.*name the control with `control`"):
        GEARS.setup_anndata(adata)


def test_a_site_without_controls_is_named(screen):
    adata = screen[~((screen.obs["condition"] == "ctrl") & (screen.obs["site"] == "site_2")).to_numpy()].copy()
    with pytest.raises(ValueError, match="control cells to train on at site 'site_2'"):
        make_model(adata).train(key=Key.generate(), **QUICK)


def test_a_perturbed_gene_that_is_nowhere_is_named_and_trained_by_its_own_cells(screen):
    condition = screen.obs["condition"].astype(str).replace({screen.obs["condition"].iloc[-1]: "NOSUCH+ctrl"})
    adata = broken(screen, condition=condition, infl_split="train")
    with pytest.warns(UserWarning, match=r"1 in neither \(\d+ cells\): NOSUCH.*unknown='drop'"):
        model = make_model(adata)
    model.train(key=Key.generate(), **QUICK)
    measured = adata.obs["condition"] == "NOSUCH+ctrl"
    expected = adata.X[measured.to_numpy()].mean(0) - adata.X[(adata.obs["condition"] == "ctrl").to_numpy()].mean(0)
    found = model.predict_change(["NOSUCH"]).to_numpy()
    assert np.corrcoef(found.ravel(), np.asarray(expected).ravel())[0, 1] > 0.9  # the prior knows what was measured


def test_a_condition_of_one_cell_is_named_and_left_out(screen):
    condition = screen.obs["condition"].astype(str).to_numpy().copy()
    condition[-1] = "GENE01+GENE02+GENE03"
    adata = broken(screen, condition=condition, infl_split="train")
    with pytest.warns(UserWarning, match=r"at least 2 cells of every condition, found 1 of 1: GENE01\+GENE02\+GENE03"):
        model = make_model(adata)
    model.train(key=Key.generate(), **QUICK)
    assert np.isfinite(model.predict_change(["GENE01+GENE02+GENE03"]).to_numpy()).all()


def test_genes_that_are_zero_everywhere_are_named_and_stay_zero(screen):
    adata = screen.copy()
    adata.X = adata.X.toarray()
    adata.X[:, 3] = 0
    with pytest.warns(UserWarning, match=r"zero in all cells: GENE04.*filter_genes"):
        model = make_model(adata)
    model.train(12, key=Key.generate(), loss="squared", progress=False)
    change = model.predict_change(held_out(adata)).abs().mean()
    assert np.isfinite(change).all()
    assert change.iloc[3] == 0


def test_counts_are_warned_about(screen):
    with pytest.warns(UserWarning, match="raw counts"):
        GEARS.setup_anndata(screen.copy(), layer="counts")


def test_genes_in_another_order_are_taken_by_name_at_prediction(keyed, screen):
    model, _ = keyed
    found = model.predict(held_out(screen), screen[:, ::-1].copy())
    assert list(found.var_names) == list(screen.var_names)
    np.testing.assert_allclose(found.X, model.predict(held_out(screen), screen).X, rtol=1e-6)
    with pytest.raises(ValueError, match="1 of them missing"):
        model.predict(held_out(screen), screen[:, 1:].copy())


def test_a_gene_that_the_network_does_not_know_is_predicted_by_the_prior_with_a_warning(keyed):
    model, _ = keyed
    with pytest.warns(UserWarning, match=r"nothing of 1 perturbed genes: NOSUCH.*perturbation_genes"):
        found = model.predict_change(["NOSUCH", "NOSUCH+GENE01", "GENE01"]).to_numpy()
    prior = next(iter(model._priors.values()))
    np.testing.assert_allclose(
        found, prior.predict([("NOSUCH",), ("GENE01", "NOSUCH"), ("GENE01",)], leave_out=False, alike=model._alike)
    )
    with pytest.raises(ValueError, match="for example 'GENE01' for 'Gene01'"):
        model.predict(["Gene01"])
    one, other = model.perturbation_genes[:2]
    with pytest.raises(ValueError, match=rf"for example '{one}\+{other}' for '{one}_{other}'"):
        model.predict([f"{one}_{other}"])


def test_an_unknown_perturbation_is_refused_without_a_prior(screen):
    model = make_model(screen, prior=None)
    model.train(key=Key.generate(), **QUICK)
    with pytest.raises(ValueError, match=r"1 others: NOSUCH.*perturbation_genes"):
        model.predict(["NOSUCH"])


def test_names_that_are_none_are_refused_at_prediction(keyed):
    model, _ = keyed
    with pytest.raises(ValueError, match="at least one perturbation"):
        model.predict([])
    with pytest.raises(ValueError, match="Rename it"):
        model.predict(["A++B"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rounds": 0}, "`n_rounds`"),
        ({"batch_size": 1}, "`batch_size` to be a whole number from 2"),
        ({"loss": "huber"}, "`loss` to be one of"),
        ({"monitor": "validation_accuracy"}, "`monitor` to be one of"),
        ({"share": "projected", "key": Key.generate()}, "no first layer that reads cells"),
        ({"share": ["nothing"], "key": Key.generate()}, "trained layers"),
        ({"lr": -1}, "`lr`"),
    ],
)
def test_bad_settings_are_refused_before_training(screen, arguments, message):
    model = make_model(screen)
    with pytest.raises(ValueError, match=message):
        model.train(**{**QUICK, **arguments})
    assert not model.is_trained_


def test_a_split_that_cuts_through_a_perturbation_is_refused(screen):
    part = np.where(np.arange(screen.n_obs) % 2, "train", "test")
    with pytest.raises(ValueError, match="in one part"):
        make_model(broken(screen, infl_split=part)).train(**QUICK)
    with pytest.raises(ValueError, match="'train', 'val' and 'test', found elsewhere"):
        make_model(broken(screen, infl_split="elsewhere")).train(**QUICK)


def test_columns_that_do_not_exist_are_named(screen):
    with pytest.raises(KeyError, match="condition_key"):
        GEARS.setup_anndata(screen, condition_key="nothing")
    with pytest.raises(KeyError, match="gene_key"):
        GEARS.setup_anndata(screen, gene_key="nothing")
    with pytest.raises(KeyError, match="covariate_keys"):
        GEARS.setup_anndata(screen, covariate_keys=["nothing"])
    with pytest.raises(ValueError, match="found a view"):
        GEARS.setup_anndata(screen[:50])


def test_names_of_genes_may_stand_in_a_column(screen):
    adata = screen.copy()
    adata.var["gene_name"] = adata.var_names
    adata.var_names = [f"ENSG{number}" for number in range(adata.n_vars)]
    model = make_model(adata, site_key=None, key_scheme=None, setup={"gene_key": "gene_name"})
    model.train(**QUICK)
    assert model.genes == list(screen.var_names)
    assert list(model.predict(held_out(screen)).var_names) == list(adata.var_names)


def test_a_covariate_with_gaps_is_refused(screen):
    screen = screen.copy()
    screen.obs["cell_type"] = pd.Categorical([None if i % 10 == 0 else "T" for i in range(screen.n_obs)])
    with pytest.raises(ValueError, match=r"a level for every cell in adata.obs\['cell_type'\], found \d+ without"):
        GEARS.setup_anndata(screen, covariate_keys=["cell_type"])


def test_genes_may_be_listed_and_pandas_may_copy_on_write(keyed, screen):
    model, _ = keyed
    one, other = model.perturbation_genes[:2]
    expected = model.predict([one, f"{one}+{other}"], screen)
    with pd.option_context("mode.copy_on_write", True):
        found = model.predict([[one], (one, other)], screen.copy())
    assert list(found.obs_names) == [one, f"{one}+{other}"]
    np.testing.assert_array_equal(found.X, expected.X)


def test_names_that_were_given_once_are_remembered(screen):
    adata = screen.copy()
    adata.obs["guide"] = adata.obs.pop("condition").astype(str).replace({"ctrl": "NT"}).str.replace("+ctrl", "")
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{number}" for number in range(adata.n_vars)]
    with pytest.raises(ValueError, match=r"adata\.var\['symbol'\] has \d+ of them: pass `gene_key='symbol'`"):
        si.pp.perturbations(adata, "guide", control="NT")
    si.pp.perturbations(adata, "guide", control="NT", gene_key="symbol")
    si.model.GEARS.setup_anndata(adata, site_key="site")
    model = si.model.GEARS(adata, gene_ontology=adata.uns["gene_terms"])
    assert model.genes == list(screen.var_names)
    assert set(model.perturbation_genes) == set(make_model(screen).perturbation_genes)
