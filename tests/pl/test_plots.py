"""Figures hold what they say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tests.model.test_classifier import fit

from scinfl import pl, tl
from scinfl.model import Classifier
from scinfl.privacy import SampleDP


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_history_draws_losses_sites_and_the_best_round(cells):
    model = fit(cells, 3)
    ax = pl.history(model)
    assert [line.get_label() for line in ax.lines] == [
        "train loss",
        "validation loss",
        "best round, by validation balanced accuracy",
    ]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), model.history["train_loss"])
    assert ax.lines[-1].get_xdata()[0] == model.history.attrs["best_round"]
    assert len(pl.history(model, sites=True).lines) == 3 + 3
    ax = plt.subplots()[1]
    assert pl.history(model, "validation_accuracy", ax=ax) is ax
    assert ax.get_ylabel() == "validation accuracy"
    with pytest.raises(ValueError, match="train_loss"):
        pl.history(model, "elbo")


@pytest.mark.parametrize("validation_size", [0.0, 0.2])
def test_a_private_run_tells_no_loss_and_shows_what_was_spent(cells, validation_size):
    private = SampleDP(noise_multiplier=1.0, delta=1e-3, unnoised_validation=True)
    model = fit(cells, 3, protections=[private], validation_size=validation_size)
    ax = pl.history(model, sites=True)
    assert ax.get_ylabel() == "epsilon"
    assert len(ax.lines) == 3 + 2
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), model.history["epsilon"])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), model.site_history["epsilon"].unstack().iloc[:, 0])
    names = [line.get_label() for line in pl.history(model).lines]
    chosen = "best round, by validation balanced accuracy" if validation_size else "last round"
    assert names == ["validation loss" if validation_size else "epsilon", chosen]
    with pytest.raises(ValueError, match="no loss is reported"):
        pl.history(model, "n_sites", sites=True)


def test_sites_are_stacked_bars_in_the_colours_of_the_labels(cells):
    cells.uns["label_colors"] = ["#ff0000", "#00ff00", "#0000ff", "#888888"]
    ax = pl.sites(fit(cells, 1))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["hospital_0", "hospital_1", "hospital_2"]
    assert sum(bar.get_width() for bar in ax.patches) == 360
    assert ax.patches[0].get_facecolor() == (1, 0, 0, 1)


def test_confusion_has_rows_that_sum_to_one(cells):
    tl.annotate(cells, fit(cells, 1), min_confidence=0.6)
    ax = pl.confusion(cells, "label")
    shown = ax.images[0].get_array()
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert shown.shape == (len(labels), len(labels))  # what was not annotated has a column, and an empty row
    np.testing.assert_allclose(shown.sum(1)[:4], 1)
    n_first = (cells.obs["label"] == labels[0]).sum()
    assert ax.get_yticklabels()[0].get_text() == f"{labels[0]} (n = {n_first})"
    assert ax.get_xlabel() == "predicted (infl_label)"
    with pytest.raises(KeyError, match="predicted_key"):
        pl.confusion(cells, "label", predicted_key="guess")


def test_what_cannot_be_drawn_is_named(cells):
    Classifier.setup_anndata(cells, "label")
    model = Classifier(cells)
    with pytest.raises(RuntimeError, match="Call `train` first"):
        pl.history(model)
    with pytest.raises(ValueError, match="site_key="):
        pl.sites(model)
