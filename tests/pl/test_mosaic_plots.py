"""Plots of modalities in one embedding and of imputed values."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl import metrics, pl


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def scores():
    """Three seeds of two pairs of modalities, one of 50 and one of 20 spots."""
    tables = []
    for pair, n in (("rna, adt", 50), ("rna, atac", 20)):
        for seed in range(3):
            x, noise = np.random.default_rng(seed).normal(size=(2, n, 6))
            tables.append(metrics.modality_alignment(x, x + 0.5 * noise).assign(modalities=pair, seed=seed))
    return pd.concat(tables)


@pytest.fixture
def imputed():
    """Two sections of 5 × 8 spots at the same place; values are the numbers of the spots."""
    grid = 2.0 * np.stack(np.meshgrid(np.arange(5), np.arange(8)), axis=-1).reshape(-1, 2)
    adata = ad.AnnData(
        np.column_stack([np.arange(80.0), np.zeros(80)]),
        pd.DataFrame({"section": np.repeat(["s1", "s2"], 40)}, index=[f"spot_{i}" for i in range(80)]),
        pd.DataFrame(index=["CD3", "CD8"]),
    )
    adata.layers["std"] = np.full((80, 2), 0.5)
    adata.obsm["spatial"] = np.tile(grid, (2, 1))
    return adata


@pytest.fixture
def measured(imputed):
    """The same spots in another order, with others among them, and sparse."""
    values = np.column_stack([np.arange(100.0) * 2, np.ones(100)])
    obs = pd.DataFrame(index=[f"spot_{i}" for i in range(100)])
    return ad.AnnData(sparse.csr_matrix(values), obs, imputed.var[[]])[::-1].copy()


def texts(labels):
    return [label.get_text() for label in labels]


def dots(ax):
    ax.figure.canvas.draw()
    (collection,) = ax.collections
    return collection.get_array(), np.asarray(collection.get_offsets())


def test_bars_are_means_points_are_rows_and_lines_are_chance(scores):
    ax = pl.modality_alignment(scores)
    assert texts(ax.get_xticklabels()) == ["matching\nscore", "FOSCTTM\N{NO-BREAK SPACE}↓", "cosine"]
    assert texts(ax.get_legend().get_texts()) == ["rna, adt", "rna, atac", "by chance"]
    means = scores.groupby(["modalities", "metric"])["value"].mean()
    found = [bar.get_height() for bar in ax.patches]
    order = [(pair, name) for pair in ("rna, adt", "rna, atac") for name in ("matching_score", "foscttm", "cosine")]
    assert found == pytest.approx(means[order].tolist())
    lines = [segment for collection in ax.collections for segment in collection.get_segments()]
    assert [line[0, 1] for line in lines][:2] == pytest.approx([1 / 50, 0.5])
    assert lines[3][0, 1] == pytest.approx(1 / 20)
    for bar, line in zip(ax.patches, lines, strict=True):
        assert line[0, 0] <= bar.get_x() < bar.get_x() + bar.get_width() <= line[1, 0]


def test_scores_are_chosen_and_coloured_by_another_column(scores):
    given = plt.subplots()[1]
    ax = pl.modality_alignment(scores.drop(columns="chance").assign(method="new"), "cosine", by="method", ax=given)
    assert ax is given
    assert texts(ax.get_legend().get_texts()) == ["new"]
    assert len(ax.patches) == 1
    assert len(ax.lines[0].get_xdata()) == 6
    lacking = scores[(scores["metric"] != "cosine") | (scores["modalities"] == "rna, adt")]
    assert np.isnan(pl.modality_alignment(lacking, ["cosine"]).patches[1].get_height())
    with pytest.raises(ValueError, match="`metrics` to be one of"):
        pl.modality_alignment(scores, "ari")
    with pytest.raises(ValueError, match="found no method"):
        pl.modality_alignment(scores, by="method")


def test_measured_and_imputed_spots_stand_side_by_side_on_one_scale(imputed, measured):
    ax = pl.imputation(imputed[:40], "CD3", measured=measured)
    assert texts(ax.texts) == ["measured", "imputed"]
    values, spots = dots(ax)
    np.testing.assert_array_equal(values, np.concatenate([2 * np.arange(40), np.arange(40)]))
    left, right = spots[:40], spots[40:]
    assert left[:, 0].max() < right[:, 0].min()
    np.testing.assert_allclose(right - right[0], left - left[0])
    assert len(ax.figure.axes) == 2
    assert ax.figure.axes[1].get_ylabel() == "CD3"


def test_sections_are_rows_of_panels(imputed, measured):
    ax = pl.imputation(imputed, "CD3", measured=measured, section_key="section")
    assert texts(ax.texts) == ["s1, measured", "s1, imputed", "s2, measured", "s2, imputed"]
    values, spots = dots(ax)
    assert len(values) == 160
    assert spots[:40, 1].max() < spots[40:80, 1].min()
    np.testing.assert_allclose(spots[:40, 1], spots[80:120, 1])
    alone = pl.imputation(imputed, "CD3", section_key="section")
    assert texts(alone.texts) == ["s1, imputed", "s2, imputed"]


def test_the_uncertainty_is_a_layer_and_data_stay(imputed):
    given = plt.subplots()[1]
    before = imputed.copy()
    ax = pl.imputation(imputed, "CD8", layer="std", section_key="section", size=1.0, ax=given)
    assert ax is given
    assert texts(ax.texts) == ["s1, std", "s2, std"]
    assert (dots(ax)[0] == 0.5).all()
    assert (imputed.X == before.X).all()
    assert list(imputed.obs) == ["section"]
    assert not imputed.uns


@pytest.mark.parametrize("many", [False, True])
def test_a_scatter_has_equal_axes_and_the_correlation(imputed, measured, many, monkeypatch):
    if many:
        monkeypatch.setitem(pl.imputation_scatter.__globals__, "_MANY", 10)
    given = plt.subplots()[1]
    imputed.X = imputed.X + 20 * np.random.default_rng(0).normal(size=imputed.shape)
    ax = pl.imputation_scatter(imputed, "CD3", measured=measured, ax=given)
    assert ax is given
    expected = np.corrcoef(2 * np.arange(80), imputed.X[:, 0])[0, 1]
    assert ax.get_title(loc="left") == f"CD3\nPearson {expected:.2f}"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured", "imputed")
    assert ax.get_xlim() == ax.get_ylim()
    assert len(ax.figure.axes) == 1 + many
    drawn = ax.collections[0]
    if many:
        assert drawn.get_array().sum() == 80
    else:
        np.testing.assert_allclose(
            np.asarray(drawn.get_offsets()), np.column_stack([2 * np.arange(80), imputed.X[:, 0]])
        )


def test_constant_features_have_no_correlation(imputed, measured):
    ax = pl.imputation_scatter(imputed, "CD8", measured=measured)
    assert ax.get_title(loc="left") == "CD8\nPearson undefined"
    dots(pl.imputation(imputed[:40], "CD8", measured=measured))


def test_what_cannot_be_drawn_is_named(imputed, measured):
    for draw in (pl.imputation, pl.imputation_scatter):
        with pytest.raises(KeyError, match="`feature` to be one of 2 features, found 'CD4'"):
            draw(imputed, "CD4", measured=measured)
        with pytest.raises(KeyError, match="found 'CD8'"):
            draw(imputed, "CD8", measured=measured[:, ["CD3"]])
        with pytest.raises(KeyError, match="`layer` to be one of"):
            draw(imputed, "CD3", measured=measured, layer="raw")
        with pytest.raises(ValueError, match="every imputed spot in `measured`, found 80 of 80 missing: spot_0"):
            draw(imputed, "CD3", measured=measured[:20])
    with pytest.raises(KeyError, match="section_key"):
        pl.imputation(imputed, "CD3", section_key="slice")
    with pytest.raises(KeyError, match=r"coordinates in adata.obsm\['xy'\]"):
        pl.imputation(imputed, "CD3", spatial_key="xy")
    imputed.obs.loc["spot_3", "section"] = np.nan
    with pytest.raises(ValueError, match=r"a section for every spot in adata.obs\['section'\], found none for 1 of 80"):
        pl.imputation(imputed, "CD3", section_key="section")
