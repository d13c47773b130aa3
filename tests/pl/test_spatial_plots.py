"""Sections side by side, and scores of integration."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy import sparse

from scinfl import pl


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def tissue():
    """Three sections of 5 × 10 spots, 2 units apart, all at the same place."""
    grid = 2.0 * np.stack(np.meshgrid(np.arange(5), np.arange(10)), axis=-1).reshape(-1, 2)
    adata = ad.AnnData(
        sparse.csr_matrix(np.arange(150, dtype=np.float32)[:, None]),
        pd.DataFrame(index=[f"spot_{i}" for i in range(150)]),
        pd.DataFrame(index=["gene"]),
    )
    adata.obs["slice"] = np.repeat(["a", "b", "c"], 50)
    adata.obs["infl_domain"] = pd.Categorical(np.where(np.arange(150) % 2, "0", "1"))
    adata.obsm["spatial"] = np.tile(grid, (3, 1))
    return adata


def dots(ax):
    ax.figure.canvas.draw()
    (collection,) = ax.collections
    return collection, np.asarray(collection.get_offsets())


def test_sections_stand_side_by_side_in_their_scale_and_orientation(tissue):
    ax = pl.sections(tissue, section_key="slice")
    _, spots = dots(ax)
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    boxes = [spots[start : start + 50] for start in (0, 50, 100)]
    for box in boxes:
        np.testing.assert_allclose(box - box[0], tissue.obsm["spatial"][:50])
    assert boxes[0][:, 0].max() < boxes[1][:, 0].min() < boxes[1][:, 0].max() < boxes[2][:, 0].min()
    assert ax.get_aspect() == 1
    assert ax.get_ylim()[0] > ax.get_ylim()[1] == 0
    assert not ax.axison
    _, spots = dots(pl.sections(tissue, section_key="slice", ncols=2))
    assert spots[:50, 1].max() < spots[100:, 1].min()
    np.testing.assert_allclose(spots[100:, 0], spots[:50, 0])


def test_a_scale_bar_is_drawn_where_the_unit_is_known(tissue):
    assert not [artist for artist in pl.sections(tissue, section_key="slice").artists if hasattr(artist, "dx")]
    ax = pl.sections(tissue, section_key="slice", microns=0.5)
    (bar,) = [artist for artist in ax.artists if hasattr(artist, "dx")]
    assert (bar.dx, bar.units) == (0.5, "um")


def test_domains_have_their_colours_and_one_legend(tissue):
    tissue.uns["infl_domain_colors"] = ["#ff0000", "#0000ff"]
    tissue.obs.loc["spot_7", "infl_domain"] = np.nan
    ax = pl.sections(tissue, section_key="slice")
    colours = dots(ax)[0].get_facecolor()
    assert tuple(colours[1]) == to_rgba("#ff0000")
    assert tuple(colours[0]) == to_rgba("#0000ff")
    assert tuple(colours[7]) == pytest.approx(to_rgba("0.85"), abs=0.01)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "missing"]
    tissue.obs["many"] = (np.arange(150) % 25).astype(str)
    assert len(pl.sections(tissue, "many", section_key="slice").get_legend().get_texts()) == 25
    tissue.obs["flag"] = np.arange(150) > 3
    legend = pl.sections(tissue, "flag", section_key="slice").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["False", "True"]


@pytest.mark.parametrize("dense", [False, True])
def test_genes_and_numbers_share_one_colour_bar(tissue, dense):
    if dense:
        tissue.X = tissue.X.toarray()
    ax = pl.sections(tissue, "gene", section_key="slice")
    collection = dots(ax)[0]
    np.testing.assert_array_equal(collection.get_array(), np.arange(150))
    assert collection.get_clim() == pytest.approx((1.49, 147.51))
    assert len(ax.figure.axes) == 2
    assert ax.get_legend() is None
    tissue.obs["score"] = np.nan
    dots(pl.sections(tissue, "score", section_key="slice"))
    tissue.obs["score"] = 1
    dots(pl.sections(tissue, "score", section_key="slice"))


def test_spots_fit_their_density(tissue):
    def diameter(adata, **settings):
        return 2 * dots(pl.sections(adata, section_key="slice", **settings))[0]._widths[0]

    own = diameter(tissue)
    assert 1.5 < own <= 2.1
    tissue.obsm["spatial"] *= 1000
    assert diameter(tissue) == pytest.approx(1000 * own)
    assert diameter(tissue, size=3) == pytest.approx(3)
    assert diameter(tissue[[0, 60]].copy()) > 0


def test_sections_are_drawn_on_given_axes_and_data_stays(tissue):
    ax = plt.subplots()[1]
    before = tissue.obsm["spatial"].copy()
    tissue.obsm["spatial"] = np.column_stack([before, np.zeros(150)])
    assert pl.sections(tissue[::2], section_key="slice", ax=ax) is ax
    np.testing.assert_array_equal(tissue.obsm["spatial"][:, :2], before)
    assert list(tissue.uns) == []


def test_what_cannot_be_drawn_is_named(tissue):
    with pytest.raises(KeyError, match=r"a column of adata.obs or a gene, found 'layer'"):
        pl.sections(tissue, "layer", section_key="slice")
    with pytest.raises(KeyError, match="section_key"):
        pl.sections(tissue, section_key="section")
    with pytest.raises(KeyError, match=r"found spatial\. Name others"):
        pl.sections(tissue, section_key="slice", spatial_key="xy")
    with pytest.raises(ValueError, match="ncols"):
        pl.sections(tissue, section_key="slice", ncols=0)
    with pytest.raises(ValueError, match="size"):
        pl.sections(tissue, section_key="slice", size=-1.0)
    tissue.obs.loc["spot_0", "slice"] = np.nan
    with pytest.raises(ValueError, match=r"a section for every spot in adata.obs\['slice'\], found none for 1 of 150"):
        pl.sections(tissue, section_key="slice")
    tissue.obsm["spatial"][3] = np.nan
    with pytest.raises(ValueError, match=r"finite coordinates .* found others for 1 of 150"):
        pl.sections(tissue, section_key="slice")


def scores():
    rows = [
        (method, seed, metric, (seed + 1) * (2 if method == "new" else 1) / 10)
        for method in ("old", "new")
        for seed in range(3)
        for metric in ("ari", "pas", "graph_connectivity")
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "metric", "value"])


def test_bars_are_means_and_points_are_seeds():
    ax = pl.integration_metrics(scores())
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "ARI",
        "PAS\N{NO-BREAK SPACE}↓",
        "graph\nconnectivity",
    ]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.2] * 3 + [0.4] * 3)
    assert sorted(ax.lines[0].get_ydata()) == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.3] * 3)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["old", "new"]
    table = scores().query("method == 'old' or metric == 'ari'")
    ax = pl.integration_metrics(table, ["pas", "ari"], ax=plt.subplots()[1])
    assert [bar.get_height() for bar in ax.patches][:2] == pytest.approx([0.2, 0.2])
    assert np.isnan(ax.patches[2].get_height())
    with pytest.raises(ValueError, match="`metrics` to be one of"):
        pl.integration_metrics(table, "nmi")
    with pytest.raises(ValueError, match="found no method"):
        pl.integration_metrics(table.drop(columns="method"))
    assert [bar.get_height() for bar in pl.integration_metrics(scores().drop(columns="seed")).patches][
        :3
    ] == pytest.approx([0.2] * 3)
