"""Simulated sites."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scinfl.pp import split_sites


def shares(adata):
    return pd.crosstab(adata.obs["site"], adata.obs["label"], normalize="columns")


def test_iid_sites_have_equal_sizes(cells):
    split_sites(cells, 7)
    sizes = cells.obs["site"].value_counts()
    assert sizes.max() - sizes.min() <= 1
    assert list(cells.obs["site"].cat.categories) == [f"site_{i}" for i in range(1, 8)]


def test_a_small_alpha_makes_uneven_sites_and_a_large_one_even_ones(cells):
    split_sites(cells, 4, by="label", alpha=0.3)
    uneven = shares(cells).to_numpy().std()
    split_sites(cells, 4, by="label", alpha=1e5)
    assert shares(cells).to_numpy().std() < 0.02
    assert uneven > 0.2
    assert cells.obs["site"].value_counts().min() >= 10


def test_values_stay_together_without_alpha(cells):
    split_sites(cells, 4, by="donor")
    assert cells.obs[["donor", "site"]].drop_duplicates()["donor"].is_unique
    assert cells.obs["site"].value_counts().min() >= 84


def test_some_values_are_dealt_out_to_all_sites(cells):
    for alpha in (None, 0.1):
        split_sites(cells, 3, by="label", alpha=alpha, everywhere=["type_0"], rng=1)
        sizes = cells.obs.loc[cells.obs["label"] == "type_0", "site"].value_counts()
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(ValueError, match="'none', which does not occur"):
        split_sites(cells, 3, by="label", everywhere=["none"])
    with pytest.raises(ValueError, match="Expected `by` to name the column"):
        split_sites(cells, 3, everywhere=["type_0"])


def test_the_split_follows_rng(cells):
    def split(rng, **arguments):
        split_sites(cells, 3, rng=rng, **arguments)
        return cells.obs["site"].to_numpy().copy()

    for arguments in ({}, {"by": "label", "alpha": 0.5}):
        assert (split(1, **arguments) == split(1, **arguments)).all()
        assert not (split(1, **arguments) == split(2, **arguments)).all()
    split_sites(cells, 3, site_key="hospital")
    assert "hospital" in cells.obs


def test_a_view_is_split_too(cells):
    view = cells[::2].copy()
    split_sites(view, 2)
    assert "site" in view.obs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_sites": 1}, ValueError, "from 2"),
        ({"n_sites": 40}, ValueError, "400 rows, found 360"),
        ({"alpha": 0.5}, ValueError, "Name a column"),
        ({"by": "celltype", "alpha": 1.0}, KeyError, "celltype"),
        ({"by": "label", "alpha": 0}, ValueError, "alpha"),
        ({"by": "label", "n_sites": 5}, ValueError, "pass `alpha`"),
        ({"by": "label", "alpha": 1e-6, "n_sites": 30}, ValueError, "Raise `alpha`"),
        ({"by": "gap", "alpha": 1.0}, ValueError, "found 1 without"),
    ],
)
def test_impossible_splits_are_refused(cells, arguments, error, message):
    cells.obs["gap"] = [np.nan, *["x"] * 359]
    with pytest.raises(error, match=message):
        split_sites(cells, **arguments)
