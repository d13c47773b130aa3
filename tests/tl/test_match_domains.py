"""Colours of domains follow the labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scinfl as si


def spots(labels, domains):
    obs = pd.DataFrame({"layer": list(labels), "infl_domain": pd.Categorical(list(domains))})
    return AnnData(obs=obs.rename(index=str))


def test_domains_take_the_colours_of_the_labels_they_share_most_spots_with():
    adata = spots("aaaabbbcc", "111100022")
    adata.uns["layer_colors"] = ["red", "green", "blue"]
    si.tl.match_domains(adata, "layer")
    assert adata.uns["infl_domain_colors"] == ["green", "red", "blue"]
    assert adata.uns["infl"]["match_domains"] == {"0": "b", "1": "a", "2": "c"}


def test_pairs_are_the_best_of_all_not_each_domain_by_itself():
    # by itself, "x" would take "a" (5 spots) and leave "y" with none: 5 + 0 against 4 + 4
    adata = spots("a" * 5 + "b" * 4 + "a" * 4, "x" * 9 + "y" * 4)
    si.tl.match_domains(adata, "layer")
    assert adata.uns["infl"]["match_domains"] == {"x": "b", "y": "a"}


def test_further_domains_get_colours_of_their_own_and_missing_spots_do_not_count():
    domains = list("0011223")
    adata = spots("aabbbbb", domains)
    adata.obs.loc["6", "infl_domain"] = np.nan
    si.tl.match_domains(adata, "layer")
    colours, labels = adata.uns["infl_domain_colors"], adata.uns["layer_colors"]
    assert len(set(colours)) == len(colours) == 4
    assert len(set(colours) & set(labels)) == 2
    assert adata.obs["infl_domain"].astype(str).tolist()[:6] == domains[:6]
    with pytest.raises(KeyError, match="nowhere"):
        si.tl.match_domains(adata, "nowhere")
