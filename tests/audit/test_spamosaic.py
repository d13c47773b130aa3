"""What an audit reports of a model of tissue."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl import tl
from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._findings import ADVERSARIES, COLUMNS, CURIOUS, STEALING
from scinfl._audit._settings import training_of
from scinfl._audit.spamosaic import _plan as module_under_test
from scinfl._audit.spamosaic._target import SpaMosaicTarget, fit_of
from scinfl.cli import main
from scinfl.model import SpaMosaic
from scinfl.privacy import Key

TRAIN = {"n_rounds": 8, "validation_size": 0.3}


@pytest.fixture(scope="module", autouse=True)
def small_effort():
    """A part of the quick audit's effort."""
    effort = replace(
        module_under_test._QUICK,
        n_spots=6,
        n_batches=2,
        batch_sizes=(),
        n_keys=4,
        n_untrained=4,
        n_attack_steps=20,
        alignment=AlignmentEffort(2, 20, 2, 20_000),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_QUICK", effort)
        yield


def make_tissue(n_sections: int = 4, n_spots: int = 80, rng: int = 0):
    """Sections with two layers, at a site each."""
    generator = np.random.default_rng(rng)
    parts = []
    loadings = generator.normal(size=(2, 40))
    for number in range(n_sections):
        place = generator.uniform(size=(n_spots, 2))
        layer = (place[:, 0] > 0.5).astype(int)
        level = loadings[layer] + 0.4 * np.sin(6 * place[:, [1]]) * loadings[::-1][layer]
        x = np.exp(1 + 0.4 * level + 0.1 * generator.normal(size=(n_spots, 40)) + 0.1 * generator.normal(size=40))
        obs = pd.DataFrame(
            {"section": f"section_{number}", "layer": np.where(layer, "deep", "upper")},
            index=[f"spot_{number}_{spot}" for spot in range(n_spots)],
        )
        part = ad.AnnData(np.log1p(x).astype(np.float32), obs, obsm={"spatial": place})
        part.var_names = [f"gene_{gene}" for gene in range(40)]
        parts.append(part)
    return ad.concat(parts)


def trained(data, key, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        SpaMosaic.setup_anndata(data, "section", site_key="section")
        model = SpaMosaic(data, key_scheme="coordinate" if key else None, n_hidden=32, n_neighbours=6, **options)
        model.train(key=key, progress=False, **TRAIN)
    return model


def audited(key):
    adata = make_tissue()
    model = trained(adata, key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_QUICK", replace(module_under_test._QUICK, n_sections=3))
        tl.audit(adata, model, key=key, train=TRAIN, attributes=["layer"], quick=True, progress=False)
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
        assert table["baseline"].notna().all()
        assert not table.duplicated(["family", "adversary", "uploads", "attack", "setting", "metric"]).any()
        assert any("clusters are in the input" in words for words in adata.uns["infl"]["audit"]["not_tested"])


@pytest.mark.parametrize("when", ["first round", "last round"])
def test_one_spot_is_read_off_the_first_layer_by_an_attacker_who_knows_its_order(results, when):
    which = {"attack": "first layer", "setting": f"one step on 1 spot, {when}"}
    plain = rows(results["plain"], adversary="server", uploads="in the open", **which).set_index("metric")
    assert plain.loc["Pearson", "score"] > 0.999
    assert plain.loc["re-identified", "score"] == 1
    assert (plain["verdict"] == "leaks").all()
    keyed = rows(results["keyed"], adversary="server", metric="Pearson", **which)
    assert (keyed["score"] < 0.9).all()
    assert (keyed["verdict"] != "leaks").all()
    colluder = rows(results["keyed"], adversary="server + one site", metric="Pearson", **which)
    assert colluder["score"].item() > 0.999


def test_offsets_hide_the_order_of_the_inputs_in_one_file_in_two_and_across_a_rekey(results):
    found = rows(results["keyed"], attack="Gram alignment")
    assert len(found) == 2 * 3
    assert (found["verdict"] == "holds").all()
    assert (found.loc[found["metric"] == "share of the order", "score"] < 0.2).all()
    assert "Gram alignment" not in set(results["plain"].uns["infl"]["audit"]["table"]["attack"])


def test_keyed_sums_show_less_than_public_spots(results):
    for adata in results.values():
        masked = rows(adata, uploads="keyed sums", family="reconstruction")
        assert not (masked["verdict"] == "leaks").any()
        assert (masked.query("metric == 'Pearson'")["score"] < 0.6).all()


def test_features_are_reconstructed_as_far_as_directions_go(results):
    which = {"attack": "first layer, then features", "setting": "one step on 1 spot, last round", "metric": "Pearson"}
    found = rows(results["plain"], adversary="server", uploads="in the open", **which)
    assert 0.5 < found["score"].item() < 0.9999


def test_the_mean_spot_of_a_site_is_sent_before_training(results):
    for adata in results.values():
        found = rows(adata, family="mean spot of a site").set_index(["adversary", "uploads"])
        assert found.loc[("server", "in the open"), "score"] == pytest.approx(1, abs=1e-6)
        assert found.loc[("server + one site", "in the open or keyed sums"), "verdict"] == "leaks"
        assert abs(found.loc[("server", "keyed sums"), "score"]) < 0.4  # of 40 features at three sites


def test_the_lock_is_compared_with_untrained_networks(results):
    use = rows(results["keyed"], family="use of the model")
    assert set(use["metric"]) == {
        "Pearson with the neighbourhood",
        "label transfer of 'layer'",
        "balanced accuracy for 'layer'",
    }
    wrong = use[use["attack"].str.startswith("wrong keys")]
    assert (wrong["baseline_name"] == "untrained network").all()
    parameters = results["keyed"].uns["infl"]["audit"]["parameters"]
    fits = wrong[wrong["metric"] == "Pearson with the neighbourhood"]["score"]
    assert (fits < parameters["fit_X"] - 0.2).all()
    plain = rows(results["plain"], family="use of the model", metric="Pearson with the neighbourhood")
    assert plain["attack"].item() == "the model as it is"
    assert plain["verdict"].item() == "leaks"


def test_membership_of_spots_and_sections_is_asked(results):
    for kind, adversaries in (("plain", {STEALING}), ("keyed", {STEALING, CURIOUS})):
        area = rows(results[kind], attack="error of a spot", metric="AUC")
        assert set(area["adversary"]) == adversaries
        assert area["score"].between(0.3, 0.7).all()  # a code of 16 remembers no spot
        found = rows(results[kind], attack="fit of a section")
        assert set(found["adversary"]) == adversaries
        assert found["score"].isin([0, 1 / 3, 2 / 3, 1]).all()
        assert (found["verdict"] != "leaks").all()  # three sections prove nothing


def test_settings_are_written_and_repeat_the_audit(results, tmp_path):
    again = audited(None)
    first, second = (
        one.uns["infl"]["audit"]["table"].query("uploads != 'keyed sums'") for one in (results["plain"], again)
    )
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    parameters = again.uns["infl"]["audit"]["parameters"]
    assert parameters["attacked"] == "a twin trained without some sections"
    assert parameters["n_sites"] == 3
    tl.audit_report(again, tmp_path / "report.md")
    assert parameters["summary"] in (tmp_path / "report.md").read_text()


def test_held_out_sections_spare_the_twin():
    adata = make_tissue()
    aside = (adata.obs["section"] == "section_3").to_numpy()
    inside, outside = adata[~aside].copy(), adata[aside].copy()
    model = trained(inside, None)
    before = model.get_latent_representation(outside)
    tl.audit(inside, model, held_out=outside, train=TRAIN, quick=True, progress=False)
    audit = inside.uns["infl"]["audit"]
    assert audit["parameters"]["attacked"] == "the model itself"
    assert audit["parameters"]["n_public"] + audit["parameters"]["n_test"] == aside.sum()
    np.testing.assert_array_equal(model.get_latent_representation(outside), before)
    assert any("name columns in `attributes`" in words for words in audit["not_tested"])


def test_the_fit_is_the_correlation_of_components():
    adata = make_tissue()
    outside = make_tissue(1, rng=1)
    outside.obs["section"] = "another"
    model = trained(adata, None)
    target = SpaMosaicTarget.of(model, None, adata, outside, training_of(model, TRAIN), (), 0)
    spots = target.train["X"]
    found = model.get_latent_representation(adata)[spots.rows]
    n_directions = len(model._bases["X"].strength)
    last = model._bases["X"].neighbourhoods(spots.inputs.numpy())
    expected = np.corrcoef((found - found.mean(0)).ravel(), (last - last.mean(0)).ravel())[0, 1]
    assert fit_of(target.view, target.predictor("X"), "X", spots) == pytest.approx(expected, abs=1e-5)
    inputs = spots.inputs.numpy()
    known = model._bases["X"].scores(target.measured["X"]) @ model._bases["X"].rotation
    np.testing.assert_allclose(inputs[:, :n_directions] * model._bases["X"].scale[:n_directions], known, atol=1e-4)


def test_what_cannot_be_audited_is_refused_before_any_attack(key):
    adata = make_tissue(3)
    model = trained(adata, key)
    with pytest.raises(KeyError, match="attributes"):
        tl.audit(adata, model, key=key, attributes=["shoe size"], quick=True)
    with pytest.raises(ValueError, match="took no part in training, found section_0"):
        tl.audit(adata, model, key=key, held_out=make_tissue(1), quick=True)
    few = make_tissue(1, n_spots=30)
    few.obs["section"] = "another"
    with pytest.raises(ValueError, match="at least 40 spots in `held_out`, found 30"):
        tl.audit(adata, model, key=key, held_out=few, quick=True)
    with pytest.raises(ValueError, match=r"arguments of `SpaMosaic\.train`"):
        tl.audit(adata, model, key=key, train={"rounds": 3}, quick=True)
    two = make_tissue(2)
    with pytest.raises(ValueError, match="Expected a section that can be held out, found 2"):
        tl.audit(two, trained(two, key), key=key, quick=True)
    assert "audit" not in adata.uns.get("infl", {})


def test_a_saved_mosaic_is_audited_on_the_command_line(key, tmp_path, capsys):
    mdata = si.datasets.mosaic_simulated(5, n_spots=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SpaMosaic.setup_mudata(mdata, section_key="section", site_key="site")
        model = SpaMosaic(mdata, n_components=10, n_hidden=16)
        model.train(n_rounds=2, key=key, progress=False)
        model.save(tmp_path / "model")
        key.save(tmp_path / "a.key")
        mdata.write(tmp_path / "data.h5mu")
        options = ["--key", str(tmp_path / "a.key"), "--quick", "--out", str(tmp_path / "audit.md")]
        code = main(["audit", str(tmp_path / "model"), str(tmp_path / "data.h5mu"), *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    text = (tmp_path / "audit.md").read_text()
    assert "Attacked: SpaMosaic" in text
    assert "first layer of '" in text
    assert key._secret.hex() not in text
    assert main(["audit", str(tmp_path / "model"), str(tmp_path / "none.h5mu")]) == 1
    assert "Expected an h5mu file" in capsys.readouterr().err


def test_real_tissue_is_read_as_well(shared, key):
    adata = ad.read_h5ad(shared("spatial/starmap_mpfc_3slices_labelled.h5ad"))
    adata.obs = adata.obs[["z", "slice"]].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        SpaMosaic.setup_anndata(adata, "slice", site_key="slice")
        model = SpaMosaic(adata)
        model.train(n_rounds=4, key=key, progress=False)
        tl.audit(adata, model, key=key, quick=True, progress=False)
    which = {"attack": "first layer", "setting": "one step on 1 spot, last round", "metric": "Pearson"}
    assert rows(adata, adversary="server + one site", **which)["score"].item() > 0.999
    assert rows(adata, adversary="server", uploads="keyed sums", **which)["verdict"].item() == "holds"
