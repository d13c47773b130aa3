"""Offsets of sites taken from coordinates without pooling cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from scinfl.pp import federated_offsets, federated_pca, federated_scale
from scinfl.pp.federated._assignment import Rule, SiteCells
from scinfl.pp.federated._prototypes import find_prototypes, unit
from scinfl.pp.federated._site_sums import SiteSums, run


def mixing(points, sites, k=50):
    """Neighbours of other sites, as a share of what perfect mixing would give."""
    index = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    other = (sites[index] != sites[:, None]).mean(1)
    expected = 1 - np.unique(sites, return_inverse=True, return_counts=True)[2][
        np.unique(sites, return_inverse=True)[1]
    ] / len(sites)
    return (other / expected).mean()


def transfer(points, sites, labels):
    """Accuracy of labels taken from the nearest cells of other sites, over sites."""
    scores = []
    for site in np.unique(sites):
        own = sites == site
        model = KNeighborsClassifier(10).fit(points[~own], labels[~own])
        scores.append((model.predict(points[own]) == labels[own]).mean())
    return np.mean(scores)


@pytest.fixture(scope="module")
def slices(shared):
    """Three brain slices of three mice, one per site."""
    adata = ad.read_h5ad(shared("spatial/starmap_mpfc_3slices_labelled.h5ad"))
    adata.X = adata.X.toarray()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    federated_scale(adata, site_key="slice", max_value=10)
    federated_pca(adata, 30, site_key="slice")
    return adata


@pytest.fixture
def shifted(cells):
    """Cells of four types in three sites, each site with an offset of its own for each type."""
    generator = np.random.default_rng(0)
    kinds, sites = cells.obs["label"].cat.codes.to_numpy(), cells.obs["site"].cat.codes.to_numpy()
    offsets = generator.normal(0, 2, (4, 3, 30))
    cells.obsm["X_pca"] = 3 * cells.X + offsets[kinds, sites]
    return cells


def test_real_slices_mix_and_keep_their_types_and_layers(slices, key):
    adata = slices.copy()
    federated_offsets(adata, site_key="slice", key=key)
    sites = adata.obs["slice"].astype(str).to_numpy()
    before, after = adata.obsm["X_pca"], adata.obsm["X_pca_aligned"]
    assert mixing(before, sites) < 0.8
    assert mixing(after, sites) > 0.95
    for column in ("c", "z"):
        labels = adata.obs[column].astype(str).to_numpy()
        assert transfer(after, sites, labels) > transfer(before, sites, labels) - 0.01


def test_known_offsets_are_taken_away(shifted):
    federated_offsets(shifted, site_key="site", n_prototypes=4)
    sites = shifted.obs["site"].cat.codes.to_numpy()
    for kind in range(4):
        rows = shifted.obs["label"].cat.codes.to_numpy() == kind
        gap = {}
        for rep in ("X_pca", "X_pca_aligned"):
            means = np.stack([shifted.obsm[rep][rows & (sites == site)].mean(0) for site in range(3)])
            gap[rep] = means.std(0).max()
        assert gap["X_pca_aligned"] < 0.25 * gap["X_pca"]


def test_the_pooled_mean_solves_harmonys_ridge_regression():
    generator = np.random.default_rng(0)
    points, sites, penalty = generator.normal(size=(90, 3)), np.arange(90) % 3, 1.5
    cells = {}
    for site in range(3):
        own = cells[site] = SiteCells(points[sites == site] + site, np.zeros(30, np.int64), generator)
        own.shares = generator.dirichlet([1, 1], 30)
    known = np.array([True, True])
    sums = [own.sums(Rule(0, 1, penalty, 1)) for own in cells.values()]
    pooled = sum(s["regressed"] for s in sums) / sum(s["regressed members"] for s in sums)[:, None]
    shares = np.concatenate([own.shares for own in cells.values()])
    stacked = np.concatenate([own.points for own in cells.values()])
    expected = stacked.copy()
    design = np.c_[np.ones(90), np.repeat(np.eye(3), 30, axis=0)]
    for k in range(2):
        weighted = design * shares[:, [k]]
        solved = np.linalg.solve(weighted.T @ design + np.diag([0, *[penalty] * 3]), weighted.T @ stacked)
        solved[0] = 0
        expected -= weighted @ solved
    for own in cells.values():
        own.subtract_offsets(pooled, known, penalty)
    np.testing.assert_allclose(np.concatenate([own.corrected for own in cells.values()]), expected)


def test_members_add_up_after_each_assignment():
    generator = np.random.default_rng(0)
    own = SiteCells(generator.normal(size=(100, 5)), np.arange(100) % 2, generator)
    prototypes = unit(generator.normal(size=(7, 5)))
    rule = Rule(diversity=2, width=0.1, shrinkage=1, min_members=10)
    own.assign(prototypes, None, 300, rule)
    own.assign(prototypes, np.full(7, 30.0), 300, rule)
    np.testing.assert_allclose(own.shares.sum(1), 1)
    np.testing.assert_allclose(own.members.sum(1), 50)


def test_a_prototype_without_the_site_is_preferred():
    own = SiteCells(np.array([[1.0, 0.0]] * 20), np.zeros(20, np.int64), np.random.default_rng(0))
    prototypes = unit(np.array([[1.0, 0.3], [1.0, -0.3]]))
    rule = Rule(diversity=2, width=0.1, shrinkage=1, min_members=1)
    own.assign(prototypes, None, 40, rule)
    own.assign(prototypes, np.array([20.0, 0.0]), 40, rule)
    assert own.members[0, 0] > 15


def test_prototypes_have_enough_members_and_find_the_types(shifted):
    sites = SiteSums(shifted, "test", site_key="site", key=None, min_cells=10)
    directions = {site: unit(3.0 * shifted.X[rows].astype(float)) for site, rows in sites.rows.items()}
    four = run(find_prototypes(sites, directions, 4, 10))
    every = unit(shifted.X.astype(float))
    nearest, kinds = (every @ four.T).argmax(1), shifted.obs["label"].cat.codes.to_numpy()
    assert np.mean([np.bincount(kinds[nearest == k]).max() / (nearest == k).sum() for k in range(4)]) > 0.95
    many = run(find_prototypes(sites, directions, 200, 30))
    assert 4 <= len(many) <= 12
    assert run(find_prototypes(sites, directions, 1, 10)).shape == (1, 30)


def test_a_site_adds_coordinates_only_where_enough_of_its_cells_belong(shifted, monkeypatch):
    sums = []
    mean = SiteSums.mean

    def spy(self, purpose, contributions):
        sums.append((purpose, contributions))
        return mean(self, purpose, contributions)

    monkeypatch.setattr(SiteSums, "mean", spy)
    federated_offsets(shifted, site_key="site", n_prototypes=30, min_cells=25)
    n_zero = 0
    for purpose, contributions in sums:
        assert purpose in ("prototypes", "members of prototypes", "cells")
        for own in contributions.values() if purpose != "cells" else ():
            adds = (own["coordinates"] != 0).any(1)
            assert (own["members"][adds] >= 25 - 1e-6).all()
            others = [own[name][~adds] for name in ("squares", "regressed", "regressed members") if name in own]
            assert not any(array.any() for array in others)
            n_zero += (~adds).sum()
    assert n_zero > 20


def test_an_assignment_takes_one_exchange_and_the_number_of_cells_is_agreed_on_once(shifted, key):
    federated_offsets(shifted, site_key="site", key=key, n_prototypes=8, n_assignments=1, max_rounds=3, diversity=0)
    table = shifted.uns["infl"]["payload"]["federated_offsets"]
    sent = table[table["site"] == "hospital_0"].groupby("purpose")["rounds"].max()
    assert sent["total of prototypes"] == 1
    assert sent["prototypes"] <= 1 + 5
    assert sent["members of prototypes"] <= 3
    assert len(sent) == 3


def test_batches_within_sites_get_offsets_of_their_own(shifted):
    shifted.obs["section"] = shifted.obs["site"].astype(str)
    shifted.obs["site"] = np.where(shifted.obs["site"] == "hospital_2", "small", "large")
    whole = shifted.copy()
    federated_offsets(shifted, site_key="site", batch_key="section", n_prototypes=4)
    federated_offsets(whole, site_key="site", n_prototypes=4)
    sections = shifted.obs["section"].to_numpy()
    assert mixing(shifted.obsm["X_pca_aligned"], sections, 20) > mixing(whole.obsm["X_pca_aligned"], sections, 20) + 0.1


def test_one_site_is_left_alone(shifted):
    shifted.obs["site"] = "only"
    federated_offsets(shifted, site_key="site")
    np.testing.assert_allclose(shifted.obsm["X_pca_aligned"], shifted.obsm["X_pca"], atol=0.2)


def test_the_result_follows_rng(shifted):
    found = []
    for rng in (0, 0, 1):
        federated_offsets(shifted, site_key="site", rng=rng, max_rounds=2, key_added="aligned")
        found.append(shifted.obsm["aligned"].copy())
    assert (found[0] == found[1]).all()
    assert not (found[0] == found[2]).all()


def test_bad_input_is_refused(shifted):
    with pytest.raises(KeyError, match="Expected `use_rep` to name an entry"):
        federated_offsets(shifted, site_key="site", use_rep="X_umap")
    with pytest.raises(ValueError, match="diversity"):
        federated_offsets(shifted, site_key="site", diversity=-1)
    with pytest.raises(ValueError, match="n_prototypes"):
        federated_offsets(shifted, site_key="site", n_prototypes=0)
    shifted.obs["section"] = [None, *["a"] * 359]
    with pytest.raises(ValueError, match="found 1 without"):
        federated_offsets(shifted, site_key="site", batch_key="section")
    shifted.obsm["X_pca"][1, 2] = np.inf
    with pytest.raises(ValueError, match="at site 'hospital_1': dimension 2 of 'X_pca'"):
        federated_offsets(shifted, site_key="site")
