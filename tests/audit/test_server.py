"""What the audit reports of servers that search for the key, and that craft weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.conftest import make_cells

from scinfl._audit._settings import training_of
from scinfl._audit.classifier._inversion import invert, invert_jointly
from scinfl._audit.classifier._server import malicious
from scinfl._audit.classifier._target import Rows, Target
from scinfl.model import Classifier
from scinfl.privacy import Key

TRAIN = {"n_rounds": 2, "lr": 6e-3, "validation_size": 0, "protections": ()}
WAYS = {
    "plain": ({"key_scheme": None}, {}),
    "permuted": ({"key_scheme": "permuted"}, {}),
    "pooled": ({"key_scheme": "pooled"}, {}),
    "coordinate": ({"key_scheme": "coordinate"}, {}),
    "projected": ({"key_scheme": "coordinate"}, {"share": "projected"}),
    "trained": ({"key_scheme": "coordinate", "train_meta": True}, {}),
}


@pytest.fixture(scope="module")
def targets():
    adata = make_cells(600, 24, noise=1.5)
    train, public, test = (adata[200 * part : 200 * (part + 1)].copy() for part in range(3))
    found = {}
    for name, (init, arguments) in WAYS.items():
        Classifier.setup_anndata(train, "label", site_key="site", group_key="donor")
        model = Classifier(train, n_hidden=64, dropout=0.0, input_dropout=0.0, **init)
        key = Key(bytes(range(32)), federation="test-federation") if init["key_scheme"] else None
        model.train(key=key, progress=False, **TRAIN, **arguments)
        rows = (Rows.of(part, model) for part in (train, public, test))
        found[name] = Target(model, key, *rows, training_of(model, {**TRAIN, **arguments}), 0)
    return found


def crafted(target):
    table = pd.DataFrame(malicious(target, n_cells=8, n_trials=3))
    assert (table["baseline_name"] == "honest weights").all()
    assert table["setting"].str.contains("8 cells, noticed at the site").all()
    return table.set_index(["adversary", "metric"])["score"]


def test_modules_that_act_inside_stop_no_malicious_server(targets):
    least = crafted(targets["plain"])["malicious server", "share of cells recovered"] - 0.15
    assert least > 0.3
    for name in ("permuted", "pooled"):
        score = crafted(targets[name])
        assert score["malicious server", "share of cells recovered"] > least
        assert score["server + one site", "share of cells recovered"] > least


def test_the_coordinate_key_and_a_projection_take_a_colluding_site(targets):
    for name in ("coordinate", "projected"):
        score = crafted(targets[name])
        assert score["malicious server", "share of cells recovered"] == 0
        assert score["server + one site", "Pearson with the most similar"] > score["malicious server"].iloc[1] + 0.2
    assert score["server + one site", "share of cells recovered"] > 0.3  # 24 features behind 64 units


def test_a_trained_meta_learner_is_left_out_and_reported(targets):
    assert malicious(targets["trained"], n_cells=8, n_trials=2) == []


@pytest.mark.parametrize("name", ["permuted", "pooled", "coordinate", "trained"])
def test_a_server_that_searches_for_the_key_finds_what_the_scheme_allows(targets, name):
    table = pd.DataFrame(invert_jointly(targets[name], n_updates=3, n_iterations=60, n_restarts=3, size=2))
    pearson = table[table["metric"] == "Pearson"].set_index("attack")
    assert (table["setting"] == "3 updates of one step on 2 cells").all()
    assert set(table["adversary"]) == {"server"}
    assert set(table["uploads"]) == {"in the open"}
    cold = pearson.loc["optimisation of cells and key"]
    if name in ("permuted", "pooled"):
        assert len(pearson) == 1
        assert cold["score"] > cold["baseline"] + 0.2
    else:
        assert set(pearson.index[1:]) == {"optimisation of cells and key, matched start"}
        assert cold["score"] < cold["baseline"] + 0.2


def test_without_a_key_or_a_first_layer_there_is_no_key_to_search_for(targets):
    for name in ("plain", "projected"):
        assert invert_jointly(targets[name], n_updates=2, n_iterations=2, n_restarts=1) == []


def test_a_search_of_a_server_does_not_use_a_key_that_it_lacks(targets):
    for name in ("permuted", "pooled", "coordinate"):
        table = pd.DataFrame(invert(targets[name], n_batches=2, n_iterations=3, site_sizes=()))
        attacks = table.groupby("adversary")["attack"].unique().map(list)
        assert attacks["server"] == ["optimisation without key"]
        assert attacks["server + one site"] == ["optimisation with priors"]
    table = pd.DataFrame(invert(targets["plain"], n_batches=2, n_iterations=3, site_sizes=()))
    assert set(table["attack"]) == {"optimisation with priors"}
    assert np.isfinite(table["score"]).all()
