"""What all federated preprocessing shares: sites, refusals, keys and the record of what left."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.pp import (
    federated_highly_variable_genes,
    federated_lsi,
    federated_offsets,
    federated_pca,
    federated_scale,
)
from scinfl.pp.federated import SiteSums, in_step, run
from scinfl.pp.federated import _site_sums as site_sums
from scinfl.privacy import KeyedSum, PairwiseSum, SampleDP


def offsets(adata, **options):
    adata.obsm["X_pca"] = np.asarray(adata.X[:, :8].toarray() if sparse.issparse(adata.X) else adata.X[:, :8])
    federated_offsets(adata, n_prototypes=4, max_rounds=2, **options)


FUNCTIONS = {
    "federated_highly_variable_genes": lambda adata, **options: federated_highly_variable_genes(adata, 10, **options),
    "federated_scale": federated_scale,
    "federated_pca": lambda adata, **options: federated_pca(adata, 5, **options),
    "federated_lsi": lambda adata, **options: federated_lsi(adata, 5, **options),
    "federated_offsets": offsets,
}
ON_X = [name for name in FUNCTIONS if name != "federated_offsets"]


@pytest.fixture
def positive(cells):
    cells.X = np.abs(cells.X)
    return cells


@pytest.fixture(params=list(FUNCTIONS))
def function(request):
    return FUNCTIONS[request.param]


def values(adata):
    """Everything a function wrote."""
    arrays = [adata.X, *adata.obsm.values(), *adata.varm.values(), *(adata.var[c] for c in adata.var)]
    return [np.asarray(array, np.float64) for array in arrays]


def assert_same(one, other, atol=1e-4):
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_keyed_sums_change_nothing(positive, key, function):
    plain, locked = positive.copy(), positive.copy()
    function(plain, site_key="site")
    function(locked, site_key="site", key=key)
    assert_same(plain, locked)


@pytest.mark.parametrize("name", ON_X)
def test_the_result_does_not_depend_on_the_split(positive, name):
    one, other = positive.copy(), positive.copy()
    other.obs["site"] = "only"
    FUNCTIONS[name](one, site_key="site")
    FUNCTIONS[name](other, site_key="site")
    assert_same(one, other)


def test_one_site_needs_no_keyed_sum(positive, key, function):
    positive.obs["site"] = "only"
    function(positive, site_key="site", key=key)
    (table,) = positive.uns["infl"]["payload"].values()
    assert not table["masked"].any()


def test_two_sites_are_warned(positive, key, function):
    positive.obs["site"] = np.where(np.arange(360) < 100, "a", "b")
    with pytest.warns(UserWarning, match="Two sites") as caught:
        function(positive, site_key="site", key=key)
    assert caught[0].filename == __file__


def test_views_files_and_rows_without_site_are_refused(positive, function, tmp_path):
    view = positive[:300]
    if function is not offsets:
        with pytest.raises(ValueError, match="found a view"):
            function(view, site_key="site")
    with pytest.raises(KeyError, match="Expected `site_key` to name a column"):
        function(positive, site_key="hospital")
    positive.obs["hospital"] = [None, *["a"] * 359]
    with pytest.raises(ValueError, match="found 1 without"):
        function(positive, site_key="hospital")


def test_small_and_empty_sites_are_named(positive, function):
    positive.obs["site"] = pd.Categorical(["small"] * 9 + ["large"] * 351, ["large", "none", "small"])
    with pytest.raises(ValueError, match=r"found 0 at site 'none'.*remove_unused_categories"):
        function(positive, site_key="site")
    positive.obs["site"] = positive.obs["site"].cat.remove_unused_categories()
    with pytest.raises(ValueError, match=r"at least 10 cells at every site, found 9 at site 'small'.*min_cells"):
        function(positive, site_key="site")
    function(positive, site_key="site", min_cells=9)


@pytest.mark.parametrize("name", ON_X)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_missing_values_are_refused_with_the_site(positive, name, form):
    positive.X[1, 3] = np.nan
    positive.X = form(positive.X)
    with pytest.raises(ValueError, match=r"found 1 that are missing .* at site 'hospital_1': gene_3"):
        FUNCTIONS[name](positive, site_key="site")


@pytest.mark.parametrize("name", ON_X)
def test_values_too_large_for_a_keyed_sum_are_refused(positive, key, name):
    positive.X = positive.X.astype(np.float64)
    positive.X[0] = 1e30 if name != "federated_highly_variable_genes" else 100
    if name == "federated_lsi":
        positive.X *= 1e6
    with pytest.raises(ValueError, match=r"to sum over sites, found .* at site 'hospital_0'"):
        FUNCTIONS[name](positive, site_key="site", key=key)


def test_an_anndata_without_x_is_refused(positive):
    empty = ad.AnnData(obs=positive.obs, var=positive.var)
    with pytest.raises(ValueError, match=r"Expected values in adata.X"):
        federated_scale(empty, site_key="site")


def test_what_left_each_site_is_kept_logged_and_survives_a_file(positive, key, function, caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="scinfl.pp"):
        function(positive, site_key="site", key=key)
    ((name, table),) = positive.uns["infl"]["payload"].items()
    assert set(table["site"]) == {"hospital_0", "hospital_1", "hospital_2"}
    assert table["masked"].all()
    assert sum(f"{name}: site 'hospital_1' sent" in message for message in caplog.messages) == 1
    positive.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad").uns["infl"]["payload"][name]
    assert (again["bytes"] == table["bytes"]).all()


def test_the_record_counts_the_bytes_that_a_keyed_sum_sends(positive, key, monkeypatch):
    sent = []
    verify = KeyedSum.combine

    def combine(self, encoded):
        sent.extend(update.n_bytes for update in encoded)
        return verify(self, encoded)

    totals = []
    agree = KeyedSum.agree
    monkeypatch.setattr(KeyedSum, "combine", combine)
    monkeypatch.setattr(
        KeyedSum,
        "agree",
        lambda self, purpose, weights: totals.append(len(weights)) or agree(self, purpose, weights),
    )
    federated_pca(positive, 5, site_key="site", key=key)
    table = positive.uns["infl"]["payload"]["federated_pca"]
    assert table["bytes"].sum() == sum(sent) + 8 * sum(totals)


def test_the_server_never_sees_a_plain_number(positive, key, monkeypatch):
    seen = []
    combine = KeyedSum.combine
    monkeypatch.setattr(KeyedSum, "combine", lambda self, encoded: seen.extend(encoded) or combine(self, encoded))
    for function in FUNCTIONS.values():
        function(positive.copy(), site_key="site", key=key)
    assert seen
    for update in seen:
        assert set(update.state) == {"masked"}
        assert (update.n_obs, update.weight, dict(update.metrics)) == (0, 0.0, {})
        if len(update.state["masked"]) > 20:
            assert abs(np.log2(update.state["masked"].astype(np.float64)) - 62.5).mean() < 2  # evenly over 64 bits


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_sums_can_replace_keyed_ones(name, positive, key, monkeypatch):
    seen = []
    combine = PairwiseSum.combine
    monkeypatch.setattr(PairwiseSum, "combine", lambda self, encoded: seen.extend(encoded) or combine(self, encoded))
    plain = positive.copy()
    FUNCTIONS[name](plain, site_key="site")
    FUNCTIONS[name](positive, site_key="site", protections=[PairwiseSum(key)])
    assert seen
    assert positive.uns["infl"]["payload"][name]["masked"].all()
    for place, array in plain.varm.items():
        np.testing.assert_allclose(np.abs(array), np.abs(positive.varm[place]), atol=1e-6)
    one = positive.copy()
    one.obs["site"] = "alone"
    FUNCTIONS[name](one, site_key="site", protections=[PairwiseSum(key)])  # there is nothing to add


def test_noise_on_training_is_no_guard_of_sums_over_cells(positive):
    with pytest.raises(ValueError, match=r"protections that sum, found SampleDP.*Use a `KeyedSum` or a `PairwiseSum`"):
        federated_scale(positive, site_key="site", protections=[SampleDP(noise_multiplier=1.0)])


# ---- computations in step


def test_computations_in_step_share_exchanges_and_each_gets_its_own_sums(cells, monkeypatch):
    def halved(sums, start, least):
        total = start
        while total > least:
            pooled, n = yield from sums.mean("halves", {site: {"x": np.array(total / 2)} for site in sums.rows})
            total = float(pooled["x"]) * n / len(sums.rows)
        return total

    exchanges = []
    means_of = site_sums.means_of
    monkeypatch.setattr(site_sums, "means_of", lambda g, *a, **o: exchanges.append(len(g)) or means_of(g, *a, **o))
    sites = [SiteSums(cells, "test", site_key="site", key=None, of=of, protections=()) for of in "ab"]
    sites[1].payload, sites[1].protections = sites[0].payload, sites[0].protections
    found = run(in_step(halved(sites[0], 16.0, 1.0), halved(sites[1], 2.0, 1.0), halved(sites[0], 0.5, 1.0)))
    np.testing.assert_allclose(found, [1, 1, 0.5])
    assert exchanges == [2, 1, 1, 1]
    assert set(sites[0].payload.table["purpose"]) == {"a: halves", "b: halves"}
