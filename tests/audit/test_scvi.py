"""Audit of models of scvi-tools."""

from __future__ import annotations

from hashlib import sha256
from itertools import count

import numpy as np
import pytest
from tests.model.scvi.test_scvi_models import KEY, cells_of, make, make_counts

import scinfl as si
from scinfl.model import from_scvi

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:scvi")
TRAIN = {"lr": 0.01}
QUICK = {"quick": True, "progress": False}


@pytest.fixture(scope="module")
def audited():
    cells, held_out = make_counts(n_cells=360), make_counts(n_cells=120, rng=9)
    held_out.obs_names = [f"new_{name}" for name in held_out.obs_names]
    model = make(cells=cells, n_rounds=12, train=TRAIN)
    keys = (si.privacy.Key(sha256(bytes([number])).digest(), federation="test-federation") for number in count())
    with pytest.MonkeyPatch.context() as patch:  # the same wrong keys in every run: few are tried
        patch.setattr(si.privacy.Key, "generate", lambda *_, **__: next(keys))
        si.tl.audit(cells, model, held_out=held_out, key=KEY, train=TRAIN, attributes=["label"], **QUICK)
    return cells.uns["infl"]["audit"]


def rows(table, attack, metric=""):
    return table[table["attack"].str.startswith(attack) & table["metric"].str.contains(metric)]


def test_without_the_key_encoder_and_decoder_are_no_better_than_untrained(audited):
    table = audited["table"]
    for attack in ("wrong keys, mean", "modules removed"):
        for metric in ("lower bound", "observed counts", "label transfer"):
            (row,) = rows(table, attack, metric).itertuples()
            assert row.verdict == "holds", (attack, metric, row.score, row.baseline)
    assert audited["parameters"]["label_transfer_label"] > 0.9
    assert audited["parameters"]["loss"] < audited["parameters"]["loss_untrained"]


def test_a_stolen_network_trained_on_unlabelled_cells_gains_no_more_than_one_from_scratch(audited):
    stolen = rows(audited["table"], "fine-tuning")
    assert len(stolen) == 1
    assert (stolen["verdict"] == "holds").all(), stolen


def test_membership_is_judged_with_and_without_the_key(audited):
    own = rows(audited["table"], "bound of a cell")
    assert set(own["adversary"]) == {"model-stealing attacker", "honest-but-curious site"}
    areas = own[own["metric"] == "AUC"]
    assert areas["score"].between(0, 1).all()
    assert (areas[areas["setting"] == "no key"]["score"] < 0.75).all()


def test_what_was_not_tested_is_said(audited):
    words = " ".join(audited["not_tested"])
    assert "donors" in words
    assert "SCVI trained on" in audited["parameters"]["summary"]


@pytest.mark.parametrize("kind", ["PEAKVI", "TOTALVI", "MULTIVI", "CondSCVI"])
def test_models_of_other_kinds_are_audited_by_a_twin(kind):
    cells = cells_of(kind)
    model = make(kind, cells, train=TRAIN)
    si.tl.audit(cells, model, key=KEY, train=TRAIN, **QUICK)
    own = cells.uns["infl"]["audit"]
    assert own["parameters"]["attacked"].startswith("a twin")
    assert np.isfinite(own["table"]["score"]).all()
    assert len(rows(own["table"], "wrong keys, mean")) == 2


def test_a_model_without_a_key_is_the_attackers_as_it_is():
    cells, held_out = make_counts(), make_counts(rng=9)
    held_out.obs_names = [f"new_{name}" for name in held_out.obs_names]
    model = make(cells=cells, key=None, n_rounds=6, train=TRAIN)
    si.tl.audit(cells, model, held_out=held_out, train=TRAIN, **QUICK)
    table = cells.uns["infl"]["audit"]["table"]
    assert (rows(table, "the model as it is")["verdict"] == "leaks").any()


def test_held_out_cells_that_cannot_be_used_are_refused():
    cells = make_counts()
    model = make(cells=cells)
    with pytest.raises(ValueError, match="share no row"):
        si.tl.audit(cells, model, held_out=make_counts(), key=KEY, **QUICK)
    few = make_counts(n_cells=20, rng=9)
    few.obs_names = [f"new_{name}" for name in few.obs_names]
    with pytest.raises(ValueError, match="at least 40 held-out"):
        si.tl.audit(cells, model, held_out=few, key=KEY, **QUICK)
    with pytest.raises(RuntimeError, match="untrained"):
        si.tl.audit(cells, from_scvi("SCVI", make_counts(), site_key="site"), key=KEY, **QUICK)
