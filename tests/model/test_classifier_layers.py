"""How many hidden layers a Classifier has, where validation rows decide."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from tests.conftest import make_cells

from scinfl.model import Classifier, ClassifierOptions
from scinfl.privacy import UpdateDP

QUICK = {"n_rounds": 6, "progress": False}


def chosen(adata, *, key=None, n_layers="auto", **options):
    Classifier.setup_anndata(adata, "label", site_key="site")
    model = Classifier(adata, n_layers=n_layers, n_hidden=16, key_scheme="coordinate" if key else None)
    model.train(**{**QUICK, "run": "r" if key else None, **options}, key=key)
    return model


def in_circles(n=600):
    """Two features whose sum of squares is the label: no linear rule does better than guessing."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 2))
    label = np.where((x**2).sum(1) > np.log(4), "out", "in")
    obs = pd.DataFrame({"label": label, "site": np.arange(n) % 3}, index=[f"c{i}" for i in range(n)]).astype(str)
    return AnnData(x.astype(np.float32), obs.astype("category"))


def test_where_neither_is_better_there_is_no_hidden_layer(key, tmp_path):
    cells = make_cells(120, noise=0.3)
    model = chosen(cells, key=key, lr=0.02)
    assert "no hidden units" in repr(model)
    expected = chosen(cells, key=key, lr=0.02, n_layers=0)
    np.testing.assert_array_equal(model.predict(soft=True), expected.predict(soft=True))
    model.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model", cells)
    loaded.unlock(key)
    np.testing.assert_array_equal(loaded.predict(soft=True), model.predict(soft=True))
    loaded.train(**QUICK, key=key)  # goes on with what was chosen
    assert "no hidden units" in repr(loaded)


def test_what_no_linear_rule_does_keeps_hidden_layers():
    circles = in_circles()
    model = chosen(circles, n_rounds=25)
    assert "2 × 16 hidden units" in repr(model)
    np.testing.assert_array_equal(model.predict(), chosen(circles, n_rounds=25, n_layers=2).predict())
    assert (model.predict() == circles.obs["label"]).mean() > 0.75


def test_a_dry_run_lists_what_leaves_for_both_and_chooses_nothing(key):
    cells = make_cells(120)
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_layers="auto", n_hidden=16)
    model.train(**QUICK, key=key, dry_run=True)
    shapes = model.payload["shape"].astype(str)
    assert shapes.isin(["4 × 30"]).any()
    assert shapes.isin(["16 × 30"]).any()
    assert not model.is_trained_
    assert "2 × 16 hidden units" in repr(model)


def test_a_journal_holds_both_trainings(tmp_path):
    chosen(make_cells(120), journal=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0_layers", "2_layers"]


def test_without_validation_rows_there_is_no_choice():
    with pytest.raises(ValueError, match="Expected validation rows to choose"):
        chosen(make_cells(60), validation_size=0)


def test_a_privacy_budget_is_not_spent_twice(caplog):
    noise = UpdateDP(max_norm=1.0, noise_multiplier=1.0)
    from scinfl.model._classifier_layers import check_choice

    assert not check_choice(ClassifierOptions(protections=[noise]))
    assert "spend the budget twice" in caplog.text
