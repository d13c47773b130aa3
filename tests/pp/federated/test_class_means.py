"""Mean profiles of classes from sums over sites."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import sparse

from scinfl.pp import federated_class_means
from scinfl.privacy import PairwiseSum, UpdateDP


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_means_are_those_of_pooled_cells(cells, key, kind):
    pooled = cells.to_df().groupby(cells.obs["label"], observed=True).mean()
    cells.X = kind(cells.X)
    federated_class_means(cells, "label", site_key="site", key=key)
    np.testing.assert_allclose(cells.varm["infl_class_means"], pooled.T, atol=1e-5)
    settings = cells.uns["infl"]["federated_class_means"]
    assert list(settings["labels"]) == list(pooled.index)
    np.testing.assert_array_equal(settings["n_cells"], cells.obs["label"].value_counts().loc[pooled.index])


@pytest.mark.parametrize("protections", [None, "pairwise"])
def test_what_leaves_a_site_is_listed_and_masked(cells, key, protections):
    protections = None if protections is None else [PairwiseSum(key)]
    federated_class_means(cells, "label", site_key="site", key=key, protections=protections)
    sent = cells.uns["infl"]["payload"]["federated_class_means"]
    assert {"members", "values"} <= set(sent["array"])
    assert sent["masked"].all()


def test_a_site_sends_nothing_of_a_class_that_it_has_few_cells_of(cells):
    label, site = cells.obs["label"].astype(str), cells.obs["site"].astype(str)
    few = ((label == "type_0") & (site == "hospital_0")).to_numpy()
    kept = np.ones(cells.n_obs, bool)
    kept[np.flatnonzero(few)[4:]] = False
    cells = cells[kept].copy()
    cells.X[(cells.obs["label"] == "type_0") & (cells.obs["site"] == "hospital_0")] = 1e3  # would be seen
    federated_class_means(cells, "label", site_key="site", min_cells=5)
    others = cells[(cells.obs["label"] == "type_0") & (cells.obs["site"] != "hospital_0")]
    np.testing.assert_allclose(cells.varm["infl_class_means"][:, 0], others.X.mean(0), atol=1e-5)
    assert cells.uns["infl"]["federated_class_means"]["n_cells"][0] == others.n_obs


def test_classes_that_are_rare_everywhere_are_left_out_with_a_warning(cells):
    cells.obs["label"] = cells.obs["label"].astype(str)
    cells.obs.iloc[:6, cells.obs.columns.get_loc("label")] = "rare"
    with pytest.warns(UserWarning, match="Left out 1 of 5 classes, of which no site has 10 cells: rare"):
        federated_class_means(cells, "label", site_key="site")
    assert cells.varm["infl_class_means"].shape == (30, 4)
    with pytest.raises(ValueError, match="Lower `min_cells`, or merge classes"):
        federated_class_means(cells, "donor", site_key="site")


def test_cells_without_a_class_count_nowhere_and_layers_are_read(cells):
    cells.layers["double"] = 2 * cells.X
    cells.obs.loc[cells.obs_names[:50], "label"] = np.nan
    federated_class_means(cells, "label", site_key="site", layer="double")
    pooled = cells.to_df("double").groupby(cells.obs["label"], observed=True).mean()
    np.testing.assert_allclose(cells.varm["infl_class_means"], pooled.T, atol=1e-5)


def test_what_cannot_be_summed_is_refused(cells, key):
    with pytest.raises(KeyError, match="`labels_key` to name a column"):
        federated_class_means(cells, "type", site_key="site")
    with pytest.raises(ValueError, match="found a view"):
        federated_class_means(cells[:50], "label", site_key="site")
    noise = UpdateDP(max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="protections that sum, found UpdateDP"):
        federated_class_means(cells, "label", site_key="site", protections=[noise])
    cells.X[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"missing \(NaN\).*gene_4"):
        federated_class_means(cells, "label", site_key="site", key=key)


def test_one_site_sends_to_nobody_and_the_log_names_no_class(cells, caplog):
    cells.obs["one"] = "all"
    with caplog.at_level(logging.INFO):
        federated_class_means(cells, "label", site_key="one")
    assert cells.varm["infl_class_means"].shape == (30, 4)
    assert "type_" not in caplog.text
