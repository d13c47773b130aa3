"""Methods side by side on the same splits."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tests.conftest import make_cells

from scinfl import pl, tl
from scinfl.tl._compare._methods import method_of

STEALING = "model stealing, 30 labelled samples"
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
        n_seeds=1,
        thief_samples=[30],
        **SETTINGS,
    )


@pytest.fixture(scope="module")
def private():
    """What guards single cells, sites and updates, in one table."""
    return tl.compare(
        make_cells(600, 40),
        "label",
        site_key="site",
        methods=["local-only", "coordinate + keyed sums", *[name for name in tl.METHODS if "epsilon" in name]],
        n_seeds=2,
        thief_samples=(),
        init=SETTINGS["init"],
        train={"n_rounds": 12, "class_weight": "balanced", "early_stopping": 8},
        delta=1e-3,
        n_keys=2,
        progress=False,
    )


def mean(table, method, metric, label="all", site="all"):
    return table.query("method == @method and metric == @metric and label == @label and site == @site")["value"].mean()


def test_every_method_is_rated_on_every_seed_class_and_site(table):
    assert list(table["method"].cat.categories) == list(tl.METHODS)
    assert set(table["seed"]) == {0}
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
    assert mean(table, "permuted", STEALING) > mean(table, "coordinate", STEALING)
    assert mean(table, "coordinate + keyed sums", "bytes") > 1.9 * mean(table, "FedAvg", "bytes")
    assert mean(table, "meta only", "bytes") < mean(table, "coordinate, trained", "bytes")
    assert mean(table, "projected", "bytes") < mean(table, "coordinate", "bytes")
    assert mean(table, "coordinate + keyed sums", "key recovered by the server") < 0.2
    assert not np.isnan(mean(table, "coordinate", "key recovered by the server"))
    assert table.attrs["server_sees"]["coordinate + keyed sums"] == "nothing but sizes"


def test_plots_show_seeds_as_points_and_classes_as_spokes(table):
    ax = pl.compare(table, ["balanced_accuracy", STEALING])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(tl.METHODS)
    assert len(ax.lines[0].get_xdata()) == len(tl.METHODS)
    np.testing.assert_allclose(ax.patches[2].get_width(), mean(table, "centralised", "balanced_accuracy"))
    with pytest.raises(ValueError, match="balanced_accuracy"):
        pl.compare(table, "speed")
    ax = pl.radar(table, methods=["FedAvg", "coordinate"])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["type_0", "type_1", "type_2", "type_3"]
    assert len(ax.lines) == 2
    assert len(pl.radar(table, "f1").lines) == len(tl.METHODS)
    ax = pl.tradeoff(table, privacy=STEALING)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        method for method in tl.METHODS if not np.isnan(mean(table, method, STEALING))
    ]
    with pytest.raises(ValueError, match="privacy"):
        pl.tradeoff(table, privacy="model stealing, 9 labelled samples")
    flat = plt.subplots()[1]
    with pytest.raises(ValueError, match="polar"):
        pl.radar(table, ax=flat)
    plt.close("all")


def test_noise_costs_what_it_says_and_masks_cost_nothing(private):
    right = {method: mean(private, method, "balanced_accuracy") for method in private["method"].cat.categories}
    assert right["coordinate + keyed sums"] > 0.95
    assert right["SampleDP, epsilon 8"] > 0.9  # these cells are easy
    for kind in ("UpdateDP", "Shuffle"):
        assert right[f"{kind}, epsilon 8"] < 0.6 < right["local-only"]
    for name in right:
        if "epsilon" in name:
            spent = private.query("method == @name and metric == 'epsilon'")["value"]
            assert len(spent) == 2
            assert spent.between(0.98 * float(name.split()[-1]), 1.0001 * float(name.split()[-1])).all(), name
    assert np.isnan(mean(private, "coordinate + keyed sums", "epsilon"))
    assert private.query("metric == 'membership advantage'")["value"].between(-1, 1).all()
    ax = pl.tradeoff(private, privacy="epsilon", cost="seconds")
    assert ax.get_xlabel() == "epsilon"
    assert len(ax.collections) == 5
    plt.close("all")


def test_who_reads_what_stands_beside_the_numbers(table):
    seen, helped = table.attrs["server_sees"], table.attrs["helped_server_sees"]
    assert list(seen) == list(helped) == list(tl.METHODS)
    sums = [f"coordinate + {kind} sums" for kind in ("keyed", "pairwise", "homomorphic")]
    assert {seen[name] for name in sums} == {"nothing but sizes"}
    assert [helped[name] for name in sums] == ["updates of every site", "their mean", "updates of every site"]
    assert seen["SampleDP, epsilon 1"] == helped["SampleDP, epsilon 1"] == "noisy updates of every site"
    assert mean(table, sums[2], "bytes") > 10 * mean(table, sums[0], "bytes") == 10 * mean(table, sums[1], "bytes")


def test_members_are_inferred_by_a_threshold_on_the_loss(cells):
    from scinfl.tl._compare._job import Job, Split

    split = Split.draw(cells, None, 0.3, False, 0)
    settings = {"labels_key": "label", "group_key": None, "layer": None}
    job = Job(cells, split, settings, "site", {"n_hidden": 16}, {"n_rounds": 2}, {}, 1e-5, (), 1, 0)
    found = {row["metric"]: row["value"] for row in job.run("FedAvg") if row["label"] == row["site"] == "all"}
    train, test = cells[split.train].copy(), cells[split.test].copy()
    model = job._fit(train, method_of("FedAvg"), None, pooled=False)
    losses = []
    for part in (train, test):
        soft = model.predict(part, soft=True).to_numpy()
        losses.append(-np.log(soft[np.arange(len(soft)), part.obs["label"].cat.codes]))
    threshold = losses[0].mean()
    expected = np.mean(losses[0] <= threshold) - np.mean(losses[1] <= threshold)
    assert found["membership advantage"] == pytest.approx(expected)


def test_methods_whose_extra_is_missing_are_left_out_by_default_alone(cells, monkeypatch, caplog):
    monkeypatch.setattr("scinfl.tl._compare._compare.find_spec", lambda _: None)
    monkeypatch.setattr("scinfl.tl._compare._compare.METHODS", ("majority", "coordinate + homomorphic sums"))
    few = tl.compare(cells, "label", site_key="site", n_seeds=1, thief_samples=(), **SETTINGS)
    assert list(few["method"].cat.categories) == ["majority"]
    assert "pip install 'tenseal" in caplog.text


def test_too_few_sites_for_a_sum_are_refused_before_training():
    cells = make_cells(n_sites=2)
    for name in ("coordinate + keyed sums", "coordinate + pairwise sums", "coordinate + homomorphic sums"):
        with pytest.raises(ValueError, match=rf"at least 3 sites for '{re.escape(name)}', found 2.*Leave it out"):
            tl.compare(cells, "label", site_key="site", methods=["majority", name], **SETTINGS)


def test_methods_share_their_splits_and_model_stealing_can_be_left_out(cells):
    few = tl.compare(
        cells, "label", site_key="site", methods=["majority", "FedAvg"], n_seeds=1, thief_samples=(), **SETTINGS
    )
    assert not any("stealing" in metric or "scratch" in metric for metric in few["metric"])
    again = tl.compare(cells, "label", site_key="site", methods=["FedAvg"], n_seeds=1, thief_samples=(), **SETTINGS)
    assert mean(few, "FedAvg", "accuracy") == mean(again, "FedAvg", "accuracy")


def test_the_attacker_owns_a_random_sample_and_no_row_is_used_twice(cells):
    from scinfl.tl._compare._job import Split

    split = Split.draw(cells[np.argsort(cells.obs["label"].cat.codes)], "donor", 0.2, True, 0)
    rows = [*split.train, *split.attacker, *split.test]
    assert sorted(rows) == list(range(360))
    ordered = cells.obs["label"].cat.codes.to_numpy()[np.argsort(cells.obs["label"].cat.codes)]
    assert len(set(ordered[split.attacker[:30]])) == 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"methods": ["FedAvg", "SuperFed"]}, ValueError),
        ({"methods": []}, ValueError),
        ({"n_seeds": 0}, ValueError),
        ({"test_size": 0.9}, ValueError),
        ({"delta": 0.0}, ValueError),
        ({"group_key": "patient"}, KeyError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_training(cells, arguments, error):
    with pytest.raises(error, match="Expected"):
        tl.compare(cells, "label", site_key="site", **{**SETTINGS, **arguments})
