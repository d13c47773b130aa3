"""Methods side by side on the same splits."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tests.conftest import make_cells

from scinfl import pl, tl

SETTINGS = {
    "init": {"n_hidden": 16, "dropout": 0.0, "input_dropout": 0.0},
    "train": {"n_rounds": 4},
    "n_keys": 5,
    "progress": False,
}


@pytest.fixture(scope="module")
def table():
    return tl.compare(
        make_cells(600, 40, noise=2.5),
        "label",
        site_key="site",
        group_key="donor",
        n_seeds=2,
        thief_samples=[30],
        **SETTINGS,
    )


def mean(table, method, metric, label="all", site="all"):
    return table.query("method == @method and metric == @metric and label == @label and site == @site")["value"].mean()


def test_every_method_is_rated_on_every_seed_class_and_site(table):
    assert list(table["method"].cat.categories) == list(tl.METHODS)
    assert set(table["seed"]) == {0, 1}
    for method in tl.METHODS:
        chosen = table[(table["method"] == method) & (table["metric"] == "balanced_accuracy")]
        assert set(chosen["site"]) == {"all", "hospital_0", "hospital_1", "hospital_2"}
        assert chosen["value"].between(0, 1).all()
        assert set(table[(table["method"] == method) & (table["metric"] == "f1")]["label"]) == {
            "all",
            *["type_0", "type_1", "type_2", "type_3"],
        }
    assert table.groupby(["method", "seed", "metric", "label", "site"], observed=True).size().eq(1).all()


def test_the_numbers_tell_the_known_story(table):
    assert mean(table, "majority", "balanced_accuracy") == pytest.approx(0.25)
    right = {method: mean(table, method, "balanced_accuracy") for method in tl.METHODS}
    assert right["FedAvg"] > 0.7
    assert right["coordinate"] > 0.6  # keys, and with them initial weights, are new ones each time
    assert right["coordinate + keyed sums"] == pytest.approx(right["coordinate"], abs=0.2)
    assert mean(table, "coordinate", "wrong key, mean") < right["coordinate"] - 0.15
    assert mean(table, "permuted", "wrong key, mean") > right["permuted"] - 0.25
    assert mean(table, "permuted", "thief, 30") > mean(table, "coordinate", "thief, 30")
    assert mean(table, "coordinate + keyed sums", "bytes") > 1.9 * mean(table, "coordinate", "bytes")
    assert mean(table, "meta only", "bytes") < mean(table, "coordinate, trained", "bytes")
    assert mean(table, "projected", "bytes") < mean(table, "coordinate", "bytes")
    assert mean(table, "coordinate + keyed sums", "key recovered by the server") < 0.2
    assert not np.isnan(mean(table, "coordinate", "key recovered by the server"))
    assert table.attrs["server_sees"]["coordinate + keyed sums"] == "nothing but sizes"


def test_plots_show_seeds_as_points_and_classes_as_spokes(table):
    ax = pl.compare(table, ["balanced_accuracy", "thief, 30"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(tl.METHODS)
    assert len(ax.lines[0].get_xdata()) == 2 * len(tl.METHODS)
    np.testing.assert_allclose(ax.patches[2].get_width(), mean(table, "centralised", "balanced_accuracy"))
    with pytest.raises(ValueError, match="balanced_accuracy"):
        pl.compare(table, "speed")
    ax = pl.radar(table, methods=["FedAvg", "coordinate"])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["type_0", "type_1", "type_2", "type_3"]
    assert len(ax.lines) == 2
    assert len(pl.radar(table, "f1").lines) == len(tl.METHODS)
    ax = pl.tradeoff(table, privacy="thief, 30")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        method for method in tl.METHODS if not np.isnan(mean(table, method, "thief, 30"))
    ]
    with pytest.raises(ValueError, match="privacy"):
        pl.tradeoff(table, privacy="thief, 9")
    flat = plt.subplots()[1]
    with pytest.raises(ValueError, match="polar"):
        pl.radar(table, ax=flat)
    plt.close("all")


def test_methods_share_their_splits_and_thieves_may_be_left_out(cells):
    few = tl.compare(
        cells, "label", site_key="site", methods=["majority", "FedAvg"], n_seeds=1, thief_samples=(), **SETTINGS
    )
    assert not any("thief" in metric or "scratch" in metric for metric in few["metric"])
    again = tl.compare(cells, "label", site_key="site", methods=["FedAvg"], n_seeds=1, thief_samples=(), **SETTINGS)
    assert mean(few, "FedAvg", "accuracy") == mean(again, "FedAvg", "accuracy")


def test_the_thief_owns_a_random_sample_and_no_row_is_used_twice(cells):
    from scinfl.tl._compare import _Split

    split = _Split.draw(cells[np.argsort(cells.obs["label"].cat.codes)], "donor", 0.2, True, 0)
    rows = [*split.train, *split.thief, *split.test]
    assert sorted(rows) == list(range(360))
    ordered = cells.obs["label"].cat.codes.to_numpy()[np.argsort(cells.obs["label"].cat.codes)]
    assert len(set(ordered[split.thief[:30]])) == 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"methods": ["FedAvg", "SuperFed"]}, ValueError),
        ({"methods": []}, ValueError),
        ({"n_seeds": 0}, ValueError),
        ({"test_size": 0.9}, ValueError),
        ({"group_key": "patient"}, KeyError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_training(cells, arguments, error):
    with pytest.raises(error, match="Expected"):
        tl.compare(cells, "label", site_key="site", **{**SETTINGS, **arguments})
