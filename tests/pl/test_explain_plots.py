"""Explanations and ablations drawn."""

from __future__ import annotations

import io

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from scinfl import pl
from scinfl._colours import category_colours
from scinfl.pl._palette import BLUE, GREY, VERMILION, method_lines, method_styles


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def explained():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 6)).astype(np.float32)
    weights = np.array([[0.1, 2.0, 0, 0, -1.0, 0.5], [1.0, 0, 0, 0, 0, 0.2]])
    adata = ad.AnnData(values, obsm={"infl_shap": values[:, :, None] * weights.T})
    adata.var_names = [f"protein {i}" for i in range(6)]
    columns = ["label", "rank", "feature", "mean_abs_shap", "direction"]
    rows = [
        ("A/1", 1, "protein 1", 1.6, 1.0),
        ("A/1", 2, "protein 4", 0.8, -1.0),
        ("A/1", 3, "protein 5", 0.4, np.nan),
        ("B", 1, "protein 0", 0.9, 0.9),
        ("B", 2, "protein 5", 0.2, 0.1),
    ]
    adata.uns["infl"] = {
        "explain": {
            "labels": np.array(["A/1", "B"], dtype=object),
            "features": np.array(adata.var_names, dtype=object),
            "output": "logit",
            "top": pd.DataFrame(rows, columns=columns),
        }
    }
    return adata


def texts(labels):
    return [label.get_text() for label in labels]


def test_a_point_a_cell_stands_at_its_shap_value_in_the_row_of_its_feature(explained):
    ax = pl.explain(explained, "A/1", n_features=3)
    assert texts(ax.get_yticklabels()) == ["protein 1", "protein 4", "protein 5"]
    assert len(ax.collections) == 3
    for row, (name, dots) in enumerate(zip(texts(ax.get_yticklabels()), ax.collections, strict=True)):
        x, y = np.asarray(dots.get_offsets()).T
        column = explained.obsm["infl_shap"][:, explained.var_names.get_loc(name), 0]
        np.testing.assert_allclose(np.sort(x), np.sort(column))
        assert np.abs(y - row).max() <= 0.4
    x, shades = np.asarray(ax.collections[1].get_offsets())[:, 0], ax.collections[1].get_array()
    assert np.corrcoef(x, shades)[0, 1] < -0.9  # much of protein 4 speaks against it
    assert ax.get_title(loc="left") == "A/1"
    given = plt.subplots()[1]
    assert pl.explain(explained, "B", ax=given) is given


def test_points_of_one_value_do_not_cover_each_other(explained):
    explained.obsm["infl_shap"][:, 1, 0] = 5.0
    explained.X[:, 1] = 1.0
    dots = pl.explain(explained, "A/1", n_features=1).collections[0]
    assert len(np.unique(np.asarray(dots.get_offsets())[:, 1])) == 50
    np.testing.assert_array_equal(dots.get_array(), 0.5)


def test_values_come_from_the_layer_of_the_model(explained):
    explained.layers["other"] = -explained.X
    explained.uns["infl"]["explain"]["layer"] = "other"
    dots = pl.explain(explained, "A/1", n_features=1).collections[0]
    assert np.corrcoef(np.asarray(dots.get_offsets())[:, 0], dots.get_array())[0, 1] < -0.9


def test_bars_of_each_label_tell_size_and_side(explained):
    ax = pl.top_features(explained, n_features=2)
    assert [round(float(bar.get_width()), 1) for bar in ax.patches] == [1.6, 0.8, 0.9, 0.2]
    assert [to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [VERMILION, BLUE, VERMILION, GREY]
    assert texts(ax.texts) == [" A/1", " B"]
    assert texts(ax.get_yticklabels()) == ["protein 1", "protein 4", "protein 0", "protein 5"]
    given = plt.subplots()[1]
    assert pl.top_features(explained, "A/1", n_features=3, ax=given) is given
    assert to_hex(given.patches[2].get_facecolor()).upper() == GREY  # nothing to correlate


def test_what_was_not_explained_is_refused(explained):
    with pytest.raises(ValueError, match="`label` to be one of"):
        pl.explain(explained, "C")
    with pytest.raises(ValueError, match="`labels` to be one of"):
        pl.top_features(explained, ["A/1", "C"])
    with pytest.raises(ValueError, match="n_features"):
        pl.explain(explained, "B", n_features=0)
    with pytest.raises(KeyError, match="found no protein 1"):
        pl.explain(explained[:, 2:].copy(), "A/1")
    with pytest.raises(KeyError, match=r"Run `scinfl.tl.explain` first"):
        pl.top_features(ad.AnnData(np.zeros((2, 2))))


@pytest.fixture
def ablated():
    rows = [
        (variant, repeat, metric, label, value + 0.01 * repeat)
        for variant, value, n in (("right key", 0.8, 1), ("wrong key", 0.1, 5), ("modules removed", 0.15, 1))
        for repeat in range(n)
        for metric in ("accuracy", "balanced_accuracy", "f1", "auroc")
        for label in ("all", "A")
    ]
    return pd.DataFrame(rows, columns=["variant", "repeat", "metric", "label", "value"])


def test_ablations_are_bars_of_means_with_every_key_as_a_point(ablated):
    ax = pl.ablation(ablated, ["f1", "auroc"])
    assert [round(float(bar.get_height()), 2) for bar in ax.patches] == [0.8, 0.8, 0.12, 0.12, 0.15, 0.15]
    assert len(ax.lines[0].get_xdata()) == 10  # wrong keys; the right key and removed modules have one run each
    assert texts(ax.get_xticklabels()) == ["f1", "AUROC"]
    assert texts(ax.get_legend().get_texts()) == ["right key", "wrong key", "modules removed"]
    given = plt.subplots()[1]
    assert pl.ablation(ablated, ax=given) is given
    with pytest.raises(ValueError, match="`metrics` to be one of"):
        pl.ablation(ablated, "kappa")
    with pytest.raises(ValueError, match="found no variant"):
        pl.ablation(ablated.drop(columns="variant"))


@pytest.fixture
def compared():
    rows = [
        (seed, method, metric, label, "all", 0.5 + number / 40 + seed / 100)
        for seed in range(2)
        for number, method in enumerate(f"method {i}" for i in range(8))
        for metric, label in (("f1", "all"), ("stealing", "all"), ("bytes", "all"), ("auroc", "A"), ("auroc", "B"))
    ]
    table = pd.DataFrame(rows, columns=["seed", "method", "metric", "label", "site", "value"])
    return table.assign(method=table["method"].astype("category"))


def test_methods_keep_apart_where_colours_repeat(compared):
    lines = pl.radar(compared).lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    points = pl.tradeoff(compared, privacy="stealing", utility="f1").collections
    symbols = {(to_hex(dot.get_facecolor()[0]), len(dot.get_paths()[0])) for dot in points}
    assert len(symbols) > 6
    bars = pl.compare(compared, ["f1", "stealing"])
    assert {to_hex(bar.get_facecolor()).upper() for bar in bars.patches} == {VERMILION, BLUE}
    assert len(set(method_styles(map(str, range(18))).values())) == 18
    assert len(set(method_lines(map(str, range(12))).values())) == 12
    for n in (1, 9, 10, 20, 40):
        assert len(set(category_colours(n))) == n


def test_figures_of_one_column_are_vectors_and_cut_nothing_off(explained, ablated, compared):
    figures = {
        "explain": pl.explain(explained, "A/1"),
        "top_features": pl.top_features(explained),
        "ablation": pl.ablation(ablated),
    }
    for name, ax in figures.items():
        figure = ax.figure
        assert figure.get_figwidth() <= 3.5, name
        figure.savefig(image := io.BytesIO(), format="svg")
        box = figure.get_tightbbox()
        assert box.x0 > -0.02, name
        assert box.x1 < figure.get_figwidth() + 0.02, name
        assert b"<text" in image.getvalue() or b"<use" in image.getvalue()
        assert not any(artist.get_rasterized() for artist in ax.findobj()), name
