"""What is left without the key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import make_cells
from tests.model.test_classifier import fit

from scinfl import metrics, tl
from scinfl.model import Classifier


@pytest.fixture
def model(cells, key):
    return fit(cells, 8, key=key)


def test_the_right_key_predicts_and_all_else_is_near_chance(cells, model):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    table = tl.ablate(cells, model, n_keys=30)
    scores = table.query("metric == 'balanced_accuracy' and label == 'all'").groupby("variant", observed=True)["value"]
    assert list(scores.mean().index) == ["right key", "wrong key", "modules removed", "untrained"]
    assert scores.mean()["right key"] > 0.9
    assert abs(scores.mean()["wrong key"] - 0.25) < 0.15
    assert scores.mean()["modules removed"] < 0.7
    np.testing.assert_array_equal(scores.count(), [1, 30, 1, 5])
    assert model.key_fingerprint is not None
    assert not model.is_locked
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_scores_are_those_of_the_metrics(cells, model):
    table = tl.ablate(cells, model, n_keys=1).query("variant == 'right key'")
    expected = metrics.classification(cells.obs["label"], model.predict(cells, soft=True), n_bootstrap=0)
    assert table["value"].tolist() == expected["value"].tolist()
    stripped = metrics.classification(cells.obs["label"], model.stripped().predict(cells, soft=True), n_bootstrap=0)
    removed = tl.ablate(cells, model, n_keys=1).query("variant == 'modules removed'")
    np.testing.assert_allclose(removed["value"], stripped["value"])


def test_models_without_a_key_to_take_away_are_refused(cells, model):
    with pytest.raises(ValueError, match="found a plain one"):
        tl.ablate(cells, fit(cells, 1))
    with pytest.raises(TypeError, match="found Linear"):
        tl.ablate(cells, torch.nn.Linear(2, 2))
    Classifier.setup_anndata(cells, "label")
    with pytest.raises(RuntimeError, match="Call `train` first"):
        tl.ablate(cells, Classifier(cells))
    other = make_cells(n_labels=5)
    with pytest.raises(ValueError, match="found 1 others: type_4"):
        tl.ablate(other, model)
    model.lock()
    with pytest.raises(RuntimeError, match="unlock"):
        tl.ablate(cells, model)


@pytest.mark.parametrize("share", ["meta", "projected", ["encoder"]])
def test_untrained_networks_know_nothing_whatever_the_sites_keep(cells, key, share):
    options = {"train_meta": True} if share == "meta" else {}
    model = fit(cells, 8, key=key, share=share, options=options)
    kept = {site: {name: array.copy() for name, array in own.items()} for site, own in model._local_states.items()}
    table = tl.ablate(cells, model, n_keys=3, n_untrained=20).query("metric == 'balanced_accuracy' and label == 'all'")
    means = table.groupby("variant", observed=True)["value"].mean()
    assert means["right key"] > 0.9
    assert abs(means["untrained"] - 0.25) < 0.12
    assert set(kept) == set(model._local_states)
    for site, own in kept.items():
        assert all((model._local_states[site][name] == array).all() for name, array in own.items())
