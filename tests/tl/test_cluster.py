"""Domains of a shared embedding."""

from __future__ import annotations

import importlib.util
import inspect

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

from scinfl import tl
from scinfl.tl._leiden import reach


@pytest.fixture
def spots():
    """Three domains of 60, 40 and 20 spots in two sections."""
    generator = np.random.default_rng(0)
    domain = np.repeat([0, 1, 2], [60, 40, 20])
    adata = ad.AnnData(np.zeros((120, 1), np.float32), pd.DataFrame(index=[f"spot_{i}" for i in range(120)]))
    adata.obs["truth"] = domain.astype(str)
    adata.obs["section"] = np.where(np.arange(120) % 2, "left", "right")
    centres = generator.normal(0, 6, (3, 4))
    adata.obsm["X_infl"] = (centres[domain] + generator.normal(size=(120, 4))).astype(np.float32)
    return adata


@pytest.mark.parametrize("method", ["kmeans", "gaussian"])
def test_domains_are_found_and_named_by_size(spots, method):
    tl.cluster(spots, 3, method=method, section_key="section")
    found = spots.obs["infl_domain"]
    assert list(found.cat.categories) == ["0", "1", "2"]
    assert (found.astype(str) == spots.obs["truth"]).all()
    settings = spots.uns["infl"]["cluster"]
    assert (settings["method"], settings["n_clusters"], settings["n_init"]) == (method, 3, 10)
    assert len(spots.uns["infl_domain_colors"]) == 3


def test_one_shape_for_all_finds_long_domains_that_kmeans_cuts_in_any_unit():
    generator, truth = np.random.default_rng(0), np.arange(300) % 2
    long = np.column_stack([generator.normal(0, 2, 300), 3 * truth + generator.normal(0, 0.5, 300)])
    adata = ad.AnnData(np.zeros((300, 1), np.float32), obsm={"small": 1e-5 * long, "large": 1e5 * long})
    for use_rep in ("small", "large"):
        tl.cluster(adata, 2, use_rep=use_rep)
        assert adjusted_rand_score(truth, adata.obs["infl_domain"]) < 0.2
        tl.cluster(adata, 2, method="gaussian", use_rep=use_rep)
        assert adjusted_rand_score(truth, adata.obs["infl_domain"]) > 0.95


def test_domains_survive_a_file(spots, tmp_path):
    tl.cluster(spots, 2, section_key="section")
    spots.write_h5ad(tmp_path / "spots.h5ad")
    again = ad.read_h5ad(tmp_path / "spots.h5ad")
    assert (again.obs["infl_domain"] == spots.obs["infl_domain"]).all()
    assert again.uns["infl"]["cluster"]["section_key"] == "section"


def test_the_same_rng_gives_the_same_domains_and_other_entries_stay(spots):
    spots.uns["infl"] = {"embed": {"key_fingerprint": "none"}}
    tl.cluster(spots, 7, n_init=1, rng=1)
    tl.cluster(spots, 7, n_init=1, rng=1, key_added="again")
    assert (spots.obs["infl_domain"] == spots.obs["again"]).all()
    assert set(spots.uns["infl"]) == {"embed", "cluster"}
    sizes = spots.obs["again"].value_counts().reindex(spots.obs["again"].cat.categories)
    assert sizes.is_monotonic_decreasing


def test_mudata_gets_domains_for_all_rows(spots):
    rna, adt = spots[:80].copy(), spots[40:].copy()
    adt.var_names = ["protein"]
    mdata = md.MuData({"rna": rna, "adt": adt})
    mdata.obsm["X_infl"] = spots[mdata.obs_names].obsm["X_infl"]
    tl.cluster(mdata, 3)
    truth = spots.obs.loc[mdata.obs_names, "truth"]
    assert (mdata.obs["infl_domain"].astype(str) == truth).all()
    mdata.update()
    assert "infl_domain" in mdata.obs


def test_sections_that_share_no_domain_are_warned_of(spots):
    spots.obs["section"] = np.where(spots.obs["truth"] == "0", "alone", spots.obs["section"])
    with pytest.warns(UserWarning, match="found none shared by alone. Integrate"):
        tl.cluster(spots, 3, section_key="section")
    spots.obs["section"] = "one"
    tl.cluster(spots, 3, section_key="section")


def test_one_cluster_and_as_many_as_cells_are_possible(spots):
    tl.cluster(spots, 1)
    assert (spots.obs["infl_domain"] == "0").all()
    few = spots[:25].copy()
    tl.cluster(few, 25)
    assert len(set(few.uns["infl_domain_colors"])) == 25
    tl.cluster(spots[:1].copy(), 1)


def test_what_cannot_be_clustered_is_named(spots):
    with pytest.raises(KeyError, match=r"scinfl\.tl\.embed"):
        tl.cluster(spots, 3, use_rep="X_pca")
    with pytest.raises(KeyError, match="section_key"):
        tl.cluster(spots, 3, section_key="slice")
    for method in ("kmeans", "gaussian"):
        with pytest.raises(ValueError, match="Expected `n_clusters` for"):
            tl.cluster(spots, method=method)
    with pytest.raises(ValueError, match="at most the 120 cells, found 121"):
        tl.cluster(spots, 121)
    with pytest.raises(ValueError, match="`method` to be one of"):
        tl.cluster(spots, 3, method="mclust")
    with pytest.raises(ValueError, match="resolution"):
        tl.cluster(spots, method="leiden", resolution=0)
    tl.cluster(spots[:1].copy(), 1, method="gaussian")
    spots.obsm["same"] = np.repeat([[0.0], [1.0]], 60, axis=0)
    with pytest.raises(ValueError, match="Expected 3 clusters that hold a cell, found 2"):
        tl.cluster(spots, 3, use_rep="same")
    spots.obsm["X_infl"][5, 1] = np.nan
    with pytest.raises(ValueError, match="found 1 of 120 cells with others"):
        tl.cluster(spots, 3)
    assert "infl_domain" not in spots.obs


def test_leiden_without_igraph_says_how_to_get_it(spots, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .igraph>=0\.11"):
        tl.cluster(spots, method="leiden")
    assert "infl_domain" not in spots.obs


def test_leiden_is_asked_of_scanpy_on_one_graph(spots, monkeypatch):
    calls = []
    signature, graph_signature = inspect.signature(sc.tl.leiden), inspect.signature(sc.pp.neighbors)

    def neighbours(cells, **settings):
        graph_signature.bind(cells, **settings)
        calls.append(settings)

    def threshold(cells, **settings):
        signature.bind(cells, **settings)
        calls.append(settings)
        assert cells.shape == (120, 4)
        n = max(1, round(2 * settings["resolution"]))
        cells.obs["leiden"] = pd.Categorical((np.arange(120) % n).astype(str))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(sc.tl, "leiden", threshold)
    monkeypatch.setattr(sc.pp, "neighbors", neighbours)
    tl.cluster(spots, method="leiden", resolution=2.0, rng=3)
    graph = {"n_neighbors": 15, "use_rep": "X", "random_state": 3}
    leiden = {"resolution": 2.0, "flavor": "igraph", "n_iterations": 2, "directed": False, "random_state": 3}
    assert calls == [graph, leiden]
    assert spots.uns["infl"]["cluster"]["n_clusters"] == 4
    tl.cluster(spots, 9, method="leiden")
    assert spots.obs["infl_domain"].nunique() == 9
    assert round(2 * spots.uns["infl"]["cluster"]["resolution"]) == 9
    with pytest.raises(ValueError, match="at least 3 cells"):
        tl.cluster(spots[:2].copy(), method="leiden")


def test_leiden_finds_domains(spots):
    pytest.importorskip("igraph")
    tl.cluster(spots, 3, method="leiden")
    assert (spots.obs["infl_domain"].astype(str) == spots.obs["truth"]).all()


def test_a_number_of_communities_is_reached_by_bisection_or_refused():
    def steps(resolution):
        return np.arange(1000) % max(1, int(np.floor(3 * resolution**0.8)))

    for n in (1, 2, 5, 17, 60):
        found, resolution = reach(steps, n, 1.0)
        assert len(np.unique(found)) == n == max(1, int(3 * resolution**0.8))
    with pytest.raises(ValueError, match=r"gives 5 clusters, found 4 at resolution .* and 6 at resolution"):
        reach(lambda resolution: np.arange(4 if resolution < 1.5 else 6), 5, 1.0)
    with pytest.raises(ValueError, match="gives 2 clusters, found 1 at resolution"):
        reach(lambda resolution: np.zeros(9), 2, 1.0)
