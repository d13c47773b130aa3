"""The audit separates broken models from sound ones, in numbers and in words."""

from __future__ import annotations

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tests.conftest import make_cells

from scinfl import tl
from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._findings import ADVERSARIES, COLUMNS, finding, verdicts
from scinfl._audit.classifier import _plan as module_under_test
from scinfl._audit.classifier._target import split_by_group
from scinfl.model import GEARS, Classifier
from scinfl.privacy import Key

TRAIN = {"n_rounds": 6, "lr": 6e-3, "validation_size": 0, "protections": ()}


def trained(scheme, key, adata, **options):
    Classifier.setup_anndata(adata, "label", site_key="site", group_key="donor")
    settings = {"n_hidden": 32, "dropout": 0.0, "input_dropout": 0.0, **options}
    model = Classifier(adata, key_scheme=scheme, **settings)
    model.train(key=key if scheme else None, progress=False, **TRAIN)
    return model


def audited(scheme, key, **options):
    adata = make_cells(700, 24, noise=1.5)
    model = trained(scheme, key, adata)
    tl.audit(adata, model, key=key if scheme else None, train=TRAIN, quick=True, progress=False, **options)
    return adata


@pytest.fixture(scope="module", autouse=True)
def small_effort():
    """A tenth of the quick audit's effort."""
    effort = replace(
        module_under_test._QUICK,
        n_cells=6,
        n_batches=2,
        n_iterations=15,
        n_restarts=2,
        n_attack_steps=40,
        n_simulated=8,
        alignment=AlignmentEffort(2, 20, 2, 20_000),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "_QUICK", effort)
        yield


@pytest.fixture(scope="module")
def key_of_module():
    return Key(bytes(range(32)), federation="test-federation")


@pytest.fixture(scope="module")
def results(key_of_module):
    return {scheme: audited(scheme, key_of_module) for scheme in (None, "coordinate", "permuted", "pooled")}


def table_of(adata):
    return adata.uns["infl"]["audit"]["table"]


def best(adata, **which):
    table = table_of(adata)
    for column, value in which.items():
        table = table[table[column].str.contains(re.escape(value))]
    assert len(table), which
    return table


def test_every_finding_has_a_baseline_and_a_verdict(results):
    for adata in results.values():
        table = table_of(adata)
        assert list(table.columns) == list(COLUMNS)
        assert set(table["adversary"]) <= set(ADVERSARIES)
        assert table["baseline"].notna().all()
        assert set(table["verdict"]) <= {"leaks", "holds", "unclear", "insufficient data"}
        assert (table["low"].isna() | (table["low"] <= table["score"] + 1e-9)).all()
        assert not table.duplicated(["family", "adversary", "uploads", "attack", "setting", "metric"]).any()


@pytest.mark.parametrize("scheme", [None, "permuted", "pooled"])
def test_open_updates_give_a_cell_away_whatever_the_published_key(results, scheme):
    found = best(results[scheme], adversary="server", uploads="in the open", setting="one step on 1 cell, first")
    found = found[(found["metric"] == "Pearson") & (found["adversary"] == "server")]
    assert found["score"].item() > 0.999
    assert found["verdict"].item() == "leaks"


def test_keyed_sums_hold_at_the_mean_cell(results):
    for adata in results.values():
        masked = table_of(adata).query("family == 'reconstruction' and uploads == 'keyed sums'")
        assert len(masked) > 5
        # random cells under the mask, matched to true ones, may look as alike as random public cells
        assert not (masked["verdict"] == "leaks").any()
        one = masked.query("metric == 'Pearson' and setting.str.contains('1 cell,')", engine="python")
        assert (one["score"] <= one["baseline"].clip(lower=0.1) + 0.15).all()


def test_the_coordinate_scheme_hides_the_order_but_not_from_a_holder_of_the_key(results):
    adata = results["coordinate"]
    one = {"attack": "first layer", "setting": "one step on 1 cell, first"}
    server = best(adata, adversary="server", uploads="in the open", metric="Pearson", **one)
    scores = server.set_index("adversary")["score"]
    exact = table_of(adata).query("attack == 'first layer' and adversary == 'server'")
    assert exact.query("uploads == 'in the open' and metric == 'Pearson'")["score"].max() < 0.9
    assert scores["server + one site"] > 0.999


def test_the_known_breaks_are_found(results):
    extracted = best(results["pooled"], attack="rank-one extraction", metric="cosine")
    assert extracted["score"].item() > 0.999
    for scheme in ("pooled", "permuted"):
        wrong = best(results[scheme], attack="wrong keys, mean")
        right = results[scheme].uns["infl"]["audit"]["parameters"]["balanced_accuracy"]
        assert wrong["score"].item() > right - 0.3
        assert wrong["verdict"].item() == "leaks"
    assert best(results["permuted"], attack="modules removed")["verdict"].item() == "leaks"
    assert best(results["coordinate"], attack="wrong keys, mean")["score"].item() < 0.45  # of four labels


def test_words_follow_the_numbers(results):
    words = results[None].uns["infl"]["audit"]["verdicts"]
    assert set(words) == set(ADVERSARIES)
    assert words["server"].startswith("In the open: leaks reconstruction (")
    in_the_open, under_sums = words["server"].split("Keyed sums: ")
    assert "reconstruction" in under_sums
    assert "leaks" not in under_sums
    assert "nothing beyond" not in in_the_open.split("reconstruction")[0]
    assert "leaks cells by crafted weights" in words["malicious server"]
    assert "noticed at the site" in words["malicious server"]


def test_settings_repeat_an_audit(results, key_of_module):
    again = audited(None, key_of_module)
    first, second = (table_of(adata).query("uploads != 'keyed sums'") for adata in (results[None], again))
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    parameters = again.uns["infl"]["audit"]["parameters"]
    assert parameters["n_train"] + parameters["n_public"] + parameters["n_test"] == 700
    assert parameters["lr"] == TRAIN["lr"]


def test_the_key_is_written_nowhere(results, key_of_module, tmp_path):
    adata = results["coordinate"]
    adata.write_h5ad(tmp_path / "audited.h5ad")
    content = (tmp_path / "audited.h5ad").read_bytes()
    assert bytes(range(32)) not in content
    assert bytes(range(32)).hex().encode() not in content
    read = ad.read_h5ad(tmp_path / "audited.h5ad").uns["infl"]["audit"]
    assert read["parameters"]["key_fingerprint"] == key_of_module.fingerprint
    assert list(read["verdicts"]) == sorted(ADVERSARIES)
    assert len(read["table"]) == len(table_of(adata))


def test_held_out_cells_spare_the_twin():
    adata = make_cells(700, 24, noise=1.5)
    adata.obs["sex"] = np.where(adata.X[:, 0] > 0, "f", "m")
    train, aside = split_by_group(adata.obs["donor"], 0.4, 0)
    inside, outside = adata[train].copy(), adata[aside].copy()
    model = trained(None, None, inside)
    before = model.predict(outside)
    tl.audit(inside, model, held_out=outside, train=TRAIN, attributes=["sex"], quick=True, progress=False)
    audit = inside.uns["infl"]["audit"]
    assert audit["parameters"]["attacked"] == "the model itself"
    assert audit["parameters"]["n_train"] == len(train)
    assert (audit["table"]["metric"] == "balanced accuracy for 'sex'").sum() == 1
    shares = audit["table"].query("family == 'shares of a site'").set_index("metric")
    assert shares.loc["overlap of the shares of 'sex'", "score"] > 0.5
    assert 0 < shares.loc["overlap of the shares of classes", "baseline"] <= 1
    assert (model.predict(outside) == before).all()
    with pytest.raises(ValueError, match="share no row with the training data, found 140"):
        tl.audit(inside, model, held_out=inside[:140].copy(), train=TRAIN, quick=True)


def test_what_cannot_be_audited_is_refused(key):
    adata = make_cells(200, 12)
    model = trained("coordinate", key, adata)
    with pytest.raises(ValueError, match=r"found none \(fingerprint"):
        tl.audit(adata, model)
    with pytest.raises(ValueError, match=r"arguments of `Classifier\.train`"):
        tl.audit(adata, model, key=key, train={"rounds": 3})
    with pytest.raises(ValueError, match="Expected the key with fingerprint"):
        tl.audit(adata, model, key=Key.generate("other"))
    with pytest.raises(ValueError, match="at least 40 rows"):
        tl.audit(adata, model, key=key, held_out=adata[:20].copy())
    with pytest.raises(KeyError, match="attributes"):
        tl.audit(adata, model, key=key, attributes=["shoe size"])
    with pytest.raises(TypeError, match="Expected a Classifier"):
        tl.audit(adata, GEARS)
    few = adata[:90].copy()
    with pytest.raises(ValueError, match="at least 100 rows to hold some of them out, found 90"):
        tl.audit(few, model, key=key)
    untrained = Classifier(adata, key_scheme=None)
    with pytest.raises(RuntimeError, match="Expected a trained model"):
        tl.audit(adata, untrained)
    assert "infl" not in adata.uns


def test_a_locked_model_is_locked_again(key):
    adata = make_cells(300, 12)
    model = trained("coordinate", key, adata)
    model.lock()
    tl.audit(adata, model, key=key, train=TRAIN, quick=True, progress=False)
    assert model.is_locked


def test_a_first_layer_that_stays_at_home_is_not_reconstructed(key):
    adata = make_cells(500, 24, noise=1.5)
    Classifier.setup_anndata(adata, "label", site_key="site")
    model = Classifier(adata, n_hidden=32, dropout=0.0, input_dropout=0.0)
    model.train(key=key, share="projected", progress=False, **TRAIN)
    tl.audit(adata, model, key=key, train={**TRAIN, "share": "projected"}, quick=True, progress=False)
    audit = adata.uns["infl"]["audit"]
    assert not audit["table"]["attack"].str.startswith("first layer").any()
    assert any("first layer" in words for words in audit["not_tested"])


@pytest.mark.parametrize(
    ("score", "baseline", "verdict"),
    [
        ([0.9, 0.92, 0.88], 0.2, "leaks"),
        ([0.9, -0.5, 0.7], 0.2, "unclear"),
        ([0.2, 0.21, 0.19], 0.2, "holds"),
        (0.3, 0.2, "leaks"),
        (0.24, 0.2, "holds"),
        (np.nan, 0.2, "insufficient data"),
    ],
)
def test_a_leak_is_what_lies_above_the_baseline_for_sure(score, baseline, verdict):
    row = finding("membership", "server", "attack", "AUC", score, baseline, baseline_name="random guess")
    assert row["verdict"] == verdict


def test_adversaries_that_were_not_evaluated_are_reported_as_not_tested():
    rows = [finding("membership", "model-stealing attacker", "attack", "AUC", 0.9, 0.5, baseline_name="random guess")]
    words = verdicts(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert words["outsider"] == "Not tested."
    assert words["model-stealing attacker"] == "Leaks membership (attack: AUC 0.90, random guess 0.50)."


def test_a_report_is_one_page_and_appears_whole(results, tmp_path):
    adata = results["coordinate"]
    for name in ("report.html", "report.md"):
        tl.audit_report(adata, tmp_path / name)
        text = (tmp_path / name).read_text()
        for adversary in ADVERSARIES:
            assert adversary.capitalize() in text
        assert "Not tested" in text
        assert text.count("<svg" if name.endswith("html") else "data:image/svg") == table_of(adata)["family"].nunique()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    with pytest.raises(FileExistsError, match=r"report.html"):
        tl.audit_report(adata, tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"end in '\.html' or '\.md'"):
        tl.audit_report(adata, tmp_path / "report.pdf")
    with pytest.raises(KeyError, match=r"Run `scinfl\.tl\.audit` first"):
        tl.audit_report(make_cells(20), tmp_path / "none.html")


def test_a_report_escapes_what_a_browser_would_run(results, tmp_path):
    adata = results[None].copy()
    table = table_of(adata).copy()
    table["attack"] = "<script>alert(1)</script>"
    adata.uns["infl"]["audit"]["table"] = table
    tl.audit_report(adata, tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_a_trained_meta_learner_hides_the_order_and_lists_what_was_left_out(key):
    adata = make_cells(500, 24, noise=1.5)
    model = trained("coordinate", key, adata, train_meta=True)
    tl.audit(adata, model, key=key, train=TRAIN, quick=True, progress=False)
    audit = adata.uns["infl"]["audit"]
    server = audit["table"].query("adversary == 'server' and uploads == 'in the open' and metric == 'Pearson'")
    exact = server[server["attack"] != "first layer, matched order"]
    assert len(exact) > 3
    assert exact["score"].max() < 0.95
    assert any("trained meta learner" in words for words in audit["not_tested"])
