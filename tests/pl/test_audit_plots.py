"""Scores with intervals beside their baselines."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scinfl import pl


@pytest.fixture
def table():
    rows = [
        ("reconstruction", "server", "in the open", "Pearson", 1.0, 0.9, 1.0, 0.2, "leaks"),
        ("reconstruction", "server", "keyed sums", "Pearson", 0.0, -0.1, 0.1, 0.2, "holds"),
        ("reconstruction", "server", "in the open", "re-identified", 0.9, 0.8, 1.0, 0.0, "leaks"),
        ("membership", "outsider", "", "AUC", 0.6, np.nan, np.nan, 0.5, "unclear"),
        ("membership", "outsider", "", "TPR at 0.1% FPR", np.nan, np.nan, np.nan, 0.001, "insufficient data"),
    ]
    names = ["family", "adversary", "uploads", "metric", "score", "low", "high", "baseline", "verdict"]
    table = pd.DataFrame(rows, columns=names)
    table["attack"], table["setting"] = "first layer", ""
    return table


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(ax):
    return {(float(x), float(y)) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)}


def test_scores_and_baselines_stand_where_they_should(table):
    ax = pl.audit(table)
    assert ax.get_xlabel() == "Pearson"
    labels = {label.get_text(): tick for label, tick in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert labels == {"server (in the open)": 0, "server (keyed sums)": 2, "first layer": 3}  # twice: rows 1 and 3
    assert drawn(ax) == {(1.0, 1.0), (0.0, 3.0), (0.2, 1.0), (0.2, 3.0)}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["leaks", "holds", "baseline"]


def test_family_metric_and_axes_are_a_choice(table):
    _, own = plt.subplots()
    assert pl.audit(table, "reconstruction", metric="re-identified", ax=own) is own
    assert (0.9, 1.0) in drawn(own)
    assert pl.audit(table, "membership").get_xlabel() == "AUC"


def test_what_is_not_in_the_table_is_refused(table):
    with pytest.raises(ValueError, match="`family` to be one of"):
        pl.audit(table, "timing")
    with pytest.raises(ValueError, match="`metric` to be one of"):
        pl.audit(table, "membership", metric="TPR at 0.1% FPR")  # there are no data for it
    with pytest.raises(ValueError, match="found no verdict"):
        pl.audit(table.drop(columns="verdict"))
