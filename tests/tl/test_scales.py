"""Scales of sections, compared without labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scinfl import pl, tl

QUICK = {"section_key": "section", "scales": ("cell", "niche", 12), "n_clusters": (3,), "n_halvings": 1}


def sections(follow, *, n=400, rng=0):
    """Two sections of cells of three types; these lie in stripes, or anywhere."""
    generator = np.random.default_rng(rng)
    places = generator.random((n, 2)) * 20
    kind = (places[:, 0] // 7).astype(int) if follow else generator.integers(0, 3, n)
    rates = generator.gamma(2.0, 2.0, (3, 40)) + 0.1
    rates *= 60 / rates.sum(1, keepdims=True)
    obs = pd.DataFrame({"section": np.repeat(["a", "b"], n // 2)}, index=[f"c{i}" for i in range(n)])
    counts = generator.poisson(rates[kind]).astype(np.float32)
    counts[0, 0] = 40
    return AnnData(counts, obs, obsm={"spatial": places})


def compared(adata, **options):
    tl.scales(adata, **{**QUICK, **options})
    return adata.uns["infl"]["scales"]


def test_stripes_are_stable_and_predicted_where_neighbourhoods_are_wide():
    table = compared(sections(follow=True))
    assert table.index.tolist() == ["cell", "niche", "12"]
    assert table["spots"].is_monotonic_increasing
    assert table["spots"].iloc[0] == 1
    assert table.loc["niche", "stability"] > table.loc["cell", "stability"] + 0.2
    assert table.loc["niche", "held_out"] > table.loc["cell", "held_out"]


def test_types_that_lie_anywhere_are_lost_by_averaging():
    table = compared(sections(follow=False))
    assert table["held_out"].idxmax() == "cell"
    assert table.loc["cell", "held_out"] > table.loc["12", "held_out"] + 0.05


def test_values_that_are_no_counts_are_halved_by_features():
    adata = sections(follow=True)
    adata.X = np.log1p(adata.X)
    table = compared(adata)
    assert table.loc["niche", "stability"] > table.loc["cell", "stability"]
    assert compared(adata).equals(table)


def test_the_scale_that_chooses_a_width_is_refused():
    with pytest.raises(ValueError, match="found 'domain'"):
        compared(sections(follow=True, n=60), scales=("domain",))
    with pytest.raises(ValueError, match="Expected `scale` to be one of"):
        compared(sections(follow=True, n=60), scales=("tissue",))


def test_scales_are_drawn_with_the_spots_they_average(tmp_path):
    adata = sections(follow=True, n=80)
    with pytest.raises(KeyError, match=r"Run `scinfl.tl.scales` first"):
        pl.scales(adata)
    table = compared(adata)
    adata.write_h5ad(tmp_path / "sections.h5ad")
    ax = pl.scales(adata)
    assert [text.get_text().split("\n")[0] for text in ax.get_xticklabels()] == ["cell", "niche", "12"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), table["stability"])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), table["held_out"])
    plt.close("all")
