"""What an audit reports of a model of perturbations."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl import tl
from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._findings import ADVERSARIES, COLUMNS
from scinfl._audit._settings import training_of
from scinfl._audit.gears import _plan as module_under_test
from scinfl._audit.gears._target import GEARSTarget, Responses, spared
from scinfl.cli import main
from scinfl.model import GEARS
from scinfl.privacy import Key, attacks

TRAIN = {"n_rounds": 2, "lr": 6e-3, "loss": "squared", "validation_size": 0}


@pytest.fixture(scope="module", autouse=True)
def small_effort():
    """A part of the quick audit's effort."""
    effort = replace(
        module_under_test._QUICK,
        n_keys=4,
        n_untrained=2,
        samples=(5,),
        n_attack_steps=8,
        alignment=AlignmentEffort(2, 20, 2, 20_000),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_QUICK", effort)
        yield


def make_screen(n_sites: int = 3):
    adata = si.datasets.perturbseq_simulated(60, n_singles=22, n_doubles=0, n_cells=12, n_controls=120, rng=0)
    si.pp.perturbations(adata)
    si.pp.split_sites(adata, n_sites, by="infl_perturbation", alpha=0.1, everywhere=["ctrl"])
    return adata


def trained(adata, key, *, site_key="site", **options):
    genes = adata.uns["gene_terms"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        GEARS.setup_anndata(adata, "condition", site_key=site_key, **options)
        model = GEARS(
            adata,
            gene_ontology={
                gene: [f"term of {gene}"] for gene in genes
            },  # none alike, so that no row moves with another
            n_hidden=16,
            key_scheme="coordinate" if key else None,
        )
        model.train(key=key, progress=False, **TRAIN)
    return model


def audited(key):
    adata = make_screen()
    model = trained(adata, key)
    tl.audit(adata, model, key=key, train=TRAIN, quick=True, progress=False)
    return adata


@pytest.fixture(scope="module")
def results():
    return {"plain": audited(None), "keyed": audited(Key(bytes(range(32)), federation="test-federation"))}


def rows(adata, **which):
    table = adata.uns["infl"]["audit"]["table"]
    for column, value in which.items():
        table = table[table[column] == value]
    assert len(table), which
    return table


def test_every_finding_has_a_baseline_and_a_verdict(results):
    for adata in results.values():
        table = rows(adata)
        assert list(table.columns) == list(COLUMNS)
        assert set(table["adversary"]) <= set(ADVERSARIES)
        assert table[["score", "baseline"]].notna().all(axis=None)
        assert not table.duplicated(["family", "adversary", "uploads", "attack", "setting", "metric"]).any()
        assert set(adata.uns["infl"]["audit"]["verdicts"]) == set(ADVERSARIES)


@pytest.mark.parametrize("kind", ["plain", "keyed"])
def test_a_server_counts_perturbations_in_the_open_and_not_under_keyed_sums(results, kind):
    adata = results[kind]
    for attack, which in (
        ("sums before training", "balanced accuracy of which"),
        ("rows that moved", "AUC of which"),
    ):
        exact = rows(adata, adversary="server", attack=attack, metric="number is exact")
        assert (exact.loc[exact["uploads"] == "in the open", "score"] == 1).all()
        # a count of random numbers is the true one now and then, but does not name the perturbations
        masked = rows(adata, adversary="server", attack=attack, metric=which, uploads="keyed sums")
        assert (masked["score"] < 0.85).all()


def test_the_key_hides_whose_rows_moved_from_the_server_alone(results):
    which = {"attack": "rows that moved", "metric": "AUC of which"}
    assert (rows(results["plain"], adversary="server", uploads="in the open", **which)["score"] == 1).all()
    assert (rows(results["keyed"], adversary="server + one site", **which)["score"] == 1).all()
    locked = rows(results["keyed"], adversary="server", uploads="in the open", **which)
    assert (locked["score"] < 0.8).all()
    counts = rows(results["keyed"], adversary="server", uploads="in the open", attack="sums before training")
    assert counts.set_index("metric").loc["balanced accuracy of which", "score"] == 1  # sums are not locked


@pytest.mark.parametrize("words", ["genes read by one layer", "embedded genes"])
def test_offsets_hide_which_gene_is_which_in_one_file_in_two_and_across_a_rekey(results, words):
    found = rows(results["keyed"], attack="Gram alignment")
    found = found[found["setting"].str.startswith(words)]
    assert len(found) == 2 * 3
    share = found[found["metric"] == "share of the order"]
    assert (share["score"] < 0.15).all()
    assert (found[found["metric"] == "score of the true order"]["score"] < 0.7).all()
    assert (found["verdict"] == "holds").all()
    assert "Gram alignment" not in set(results["plain"].uns["infl"]["audit"]["table"]["attack"])


def test_one_step_on_one_perturbation_shows_what_it_did(results):
    which = {"attack": "last bias", "setting": "one step on one perturbation", "metric": "Pearson"}
    plain = rows(results["plain"], adversary="server", uploads="in the open", **which)
    assert plain["score"].item() > 0.99  # genes that no cell of a perturbation shows have no gradient
    assert plain["verdict"].item() == "leaks"
    keyed = rows(results["keyed"], adversary="server", **which)
    assert (keyed["verdict"] == "holds").all()
    assert rows(results["keyed"], adversary="server + one site", **which)["score"].item() > 0.99


def test_sums_before_training_show_means_to_sites_and_to_nobody_else(results):
    which = {"attack": "sums before training", "metric": "Pearson"}
    for adata in results.values():
        assert rows(adata, adversary="honest-but-curious site", **which)["score"].item() > 0.999
        assert rows(adata, adversary="server + one site", **which)["score"].item() > 0.999
        masked = rows(adata, uploads="keyed sums", **which)
        assert set(masked["adversary"]) == {"server", "outsider"}
        assert (masked["score"].abs() < 0.2).all()


def test_stealing_a_locked_network_gains_no_more_than_training_without_it(results):
    use = rows(results["keyed"], family="use of the model")
    assert {"wrong keys, mean", "wrong keys, best", "modules removed", "fine-tuning", "surrogate key"} <= set(
        use["attack"]
    )
    assert (use.query("attack == 'wrong keys, mean'")["verdict"] != "leaks").all()
    assert set(rows(results["plain"], family="use of the model")["attack"]) == {"the model as it is"}


def test_a_holder_of_model_and_prior_knows_what_was_trained_on(results):
    for adata, holder in ((results["plain"], "model-stealing attacker"), (results["keyed"], "honest-but-curious site")):
        area = rows(adata, family="membership", metric="AUC").set_index("setting")
        assert area.loc["network and prior", "score"] == 1
        assert area.loc["network and prior", "adversary"] == holder
        assert area.loc["no network", "adversary"] == "model-stealing attacker"
    assert area.loc["no key", "low"] <= 0.6  # of 22 perturbations


def test_settings_are_written_and_repeat_the_audit(results, tmp_path):
    again = audited(None)
    first, second = (
        adata.uns["infl"]["audit"]["table"].query("uploads != 'keyed sums'") for adata in (results["plain"], again)
    )
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    parameters = again.uns["infl"]["audit"]["parameters"]
    assert parameters["attacked"].startswith("a twin")
    assert parameters["n_train"] + parameters["n_public"] + parameters["n_test"] == 22
    tl.audit_report(again, tmp_path / "report.html")
    assert parameters["summary"] in (tmp_path / "report.html").read_text().replace("&#x27;", "'")
    assert si.pl.audit(again.uns["infl"]["audit"]["table"], "mean changes").get_xlabel() == "Pearson"


def test_the_test_part_of_a_split_spares_the_twin():
    adata = make_screen()
    names = adata.obs["infl_perturbation"].astype(str)
    aside = sorted(set(names) - {"ctrl"})[:9]
    adata.obs["infl_split"] = np.where(names.isin(aside), "test", "train")
    model = trained(adata, None)
    before = model.predict_change(aside)
    tl.audit(adata, model, train=TRAIN, quick=True, progress=False)
    parameters = adata.uns["infl"]["audit"]["parameters"]
    assert parameters["attacked"] == "the model itself"
    assert parameters["n_public"] + parameters["n_test"] == 9
    pd.testing.assert_frame_equal(model.predict_change(aside), before)


def test_held_out_perturbations_come_with_controls_of_their_own():
    adata = make_screen()
    names = adata.obs["infl_perturbation"].astype(str)
    aside = names.isin(sorted(set(names) - {"ctrl"})[:9])
    spared_controls = (names == "ctrl") & (np.arange(adata.n_obs) % 4 == 0)
    inside, outside = adata[~(aside | spared_controls)].copy(), adata[aside | spared_controls].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        GEARS.setup_anndata(inside, "condition", site_key="site")
        terms = {gene: [f"term of {gene}"] for gene in adata.uns["gene_terms"]}
        model = GEARS(inside, gene_ontology=terms, n_hidden=16, key_scheme=None)
        model.train(progress=False, **TRAIN)
    target = GEARSTarget.of(model, None, inside, outside, training_of(model, TRAIN), 0)
    assert len(target.public) + len(target.test) == 9
    first = target.public.conditions[0].genes[0]
    cells = outside.obs["infl_perturbation"].astype(str) == first
    controls = outside.obs["infl_perturbation"].astype(str) == "ctrl"
    x = outside.X.toarray()
    np.testing.assert_allclose(target.public.change[0], x[cells].mean(0) - x[controls].mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="control cells"):
        tl.audit(inside, model, held_out=outside[~controls.to_numpy()].copy())
    with pytest.raises(ValueError, match="share no row"):
        tl.audit(inside, model, held_out=inside[:300].copy())


def test_spared_error_is_that_of_the_most_differential_genes():
    adata = make_screen()
    model = trained(adata, None)
    target = GEARSTarget.of(model, None, adata, adata.copy(), training_of(model, TRAIN), 0)
    responses: Responses = target.test
    guess = 0.5 * responses.change
    found = spared(guess, responses)
    for row, top in enumerate(responses.moments.top):
        own = top[top >= 0]
        error = (
            np.square(guess[row, own] - responses.change[row, own]).mean()
            / np.square(responses.change[row, own]).mean()
        )
        assert found[row] == pytest.approx(1 - error)


def test_what_cannot_be_audited_is_refused_before_any_attack(key):
    adata = make_screen()
    model = trained(adata, key)
    with pytest.raises(ValueError, match="no `attributes` for GEARS"):
        tl.audit(adata, model, key=key, attributes=["site"])
    with pytest.raises(ValueError, match="found none"):
        tl.audit(adata, model)
    with pytest.raises(ValueError, match=r"arguments of `GEARS\.train`"):
        tl.audit(adata, model, key=key, train={"rounds": 3})
    few = adata[adata.obs["infl_perturbation"].isin(["ctrl", *model.perturbation_genes[:12]])].copy()
    with pytest.raises(ValueError, match="at least 8 perturbations outside of training"):
        tl.audit(few, model, key=key)
    strange = adata.copy()
    strange.obs["condition"] = strange.obs["condition"].astype(str).replace("GENE01+ctrl", "unheard")
    strange.obs_names = [f"{name} again" for name in strange.obs_names]
    with pytest.raises(ValueError, match="that the model knows, found 1 others: unheard"):
        tl.audit(adata, model, key=key, held_out=strange, quick=True)
    assert "audit" not in adata.uns["infl"]


def test_a_saved_model_is_audited_on_the_command_line(key, tmp_path, capsys):
    adata = make_screen()
    del adata.uns["gene_terms"], adata.uns["true_change"]
    genes = make_screen().uns["gene_terms"]
    adata.uns["gene_terms"] = genes
    model = trained(adata, key)
    model.save(tmp_path / "model")
    del adata.uns["gene_terms"]
    adata.write_h5ad(tmp_path / "data.h5ad")
    key.save(tmp_path / "a.key")
    arguments = ["audit", "model", "data.h5ad", "--key", "a.key", "--quick", "--out", "audit.md"]
    paths = [str(tmp_path / part) if "." in part or part == "model" else part for part in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert main(paths) == 0, capsys.readouterr().err
    assert "server: In the open: leaks" in capsys.readouterr().out
    text = (tmp_path / "audit.md").read_text()
    assert "Attacked: GEARS" in text
    assert key._secret.hex() not in text


def test_rows_shrunk_by_decay_did_not_move():
    generator = np.random.default_rng(0)
    before = generator.normal(size=(6, 64))
    change = -0.01 * before
    change[2] = 0
    change[4] = 0.01 * generator.normal(size=64)
    assert attacks.moved_rows(before, change).tolist() == [False] * 4 + [True, False]
    with pytest.raises(ValueError, match="a table and its change"):
        attacks.moved_rows(before, change[:3])


def test_the_number_of_perturbed_genes_is_inferred_from_the_rows_they_move():
    generator = np.random.default_rng(0)
    graph = np.eye(200)
    graph[np.arange(200), generator.integers(200, size=200)] = 0.5
    perturbed = generator.choice(200, 40, replace=False)
    moved = (graph[perturbed] != 0).any(0).sum()
    assert abs(attacks.number_of_perturbed(int(moved), graph) - 40) <= 4
    strength = attacks.undo_propagation(graph.T @ np.isin(np.arange(200), perturbed)[:, None].astype(float), graph)
    assert set(np.flatnonzero(strength > 1e-6)) == set(perturbed)


def test_missed_changes_follow_from_gradients_of_both_losses():
    generator = np.random.default_rng(0)
    d, variance = 0.01 * generator.normal(size=50), generator.uniform(0.5, 2, size=50)
    np.testing.assert_allclose(attacks.missed_change(2 * d / 50), -d)
    quartic = (4 * d**3 + 12 * variance * d) / 50
    np.testing.assert_allclose(attacks.missed_change(quartic, variance), -d, rtol=1e-3)
