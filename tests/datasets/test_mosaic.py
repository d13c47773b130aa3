"""Generated mosaic of sections and modalities."""

from __future__ import annotations

import mudata as md
import numpy as np
import pytest
from scipy import sparse
from scipy.spatial import KDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from scinfl.datasets import mosaic_simulated
from scinfl.datasets._mosaic import _look_alikes

ALL = ("rna", "adt", "atac")


def sections_of(mdata):
    return {name: adata.obs["section"].unique().tolist() for name, adata in mdata.mod.items()}


def components(adata):
    """Principal components of log shares, with the mean of each section taken off, and smoothed over spots."""
    counts = adata.X.toarray()
    log = np.log1p(1000 * counts / counts.sum(1, keepdims=True))
    for section in adata.obs["section"].unique():
        own = (adata.obs["section"] == section).to_numpy()
        log[own] -= log[own].mean(0)
    found = PCA(15, random_state=0).fit_transform(log / log.std(0))
    smooth = found.copy()
    for section in adata.obs["section"].unique():
        own = np.flatnonzero(adata.obs["section"] == section)
        xy = adata.obsm["spatial"][own]
        smooth[own] = found[own][KDTree(xy).query(xy, k=13)[1]].mean(1)
    return found / np.linalg.norm(found), smooth / np.linalg.norm(smooth)


def agreement(points, adata):
    return adjusted_rand_score(adata.obs["domain"], KMeans(6, n_init=5, random_state=0).fit_predict(points))


def test_one_modality_alone_does_not_reach_the_domains_and_both_together_do():
    mdata = mosaic_simulated(complete=True)
    rna, adt = mdata["rna"], mdata["adt"]
    found = {"rna": components(rna), "adt": components(adt)}
    alone = [agreement(points, rna) for pair in found.values() for points in pair]
    together = agreement(np.concatenate([found["rna"][1], found["adt"][1]], axis=1), rna)
    assert max(alone) < 0.6
    assert together > 0.7
    assert together > max(alone) + 0.2


def test_faint_is_how_far_look_alikes_differ():
    def scores(faint):
        adata = mosaic_simulated(modalities=["adt"], complete=True, faint=faint)["adt"]
        return agreement(components(adata)[1], adata)

    assert scores(1.0) > scores(0.0) + 0.15


@pytest.mark.parametrize("n_domains", range(4, 12))
def test_any_two_modalities_separate_all_domains(n_domains):
    groups = {name: _look_alikes(name, n_domains) for name in ALL}
    for name, own in groups.items():
        assert np.bincount(own).max() == 2
        for other in set(ALL) - {name}:
            assert len(set(zip(own, groups[other], strict=True))) == n_domains


def test_sections_cover_the_modalities_unevenly():
    small = {"n_spots": 30, "n_peaks": 20}
    assert sections_of(mosaic_simulated(4, **small)) == {
        "rna": ["section_1", "section_2", "section_4"],
        "adt": ["section_1", "section_3"],
    }
    assert sections_of(mosaic_simulated(3, modalities=ALL, **small)) == {
        "rna": ["section_1", "section_2"],
        "adt": ["section_1", "section_3"],
        "atac": ["section_2"],
    }
    assert sections_of(mosaic_simulated(2, modalities=["atac"], **small)) == {"atac": ["section_1", "section_2"]}
    asked = mosaic_simulated(2, modalities=ALL, missing={"section_2": ["rna", "atac"]}, **small)
    assert sections_of(asked) == {"rna": ["section_1"], "adt": ["section_1", "section_2"], "atac": ["section_1"]}


def test_complete_data_are_the_truth_of_what_is_missing():
    small = {"n_spots": 40, "n_peaks": 30, "modalities": ALL, "rng": 3}
    mosaic, truth = mosaic_simulated(**small), mosaic_simulated(**small, complete=True)
    for name, adata in mosaic.mod.items():
        assert truth[name].n_obs == 120
        assert (truth[name][adata.obs_names].X != adata.X).nnz == 0
        np.testing.assert_array_equal(truth[name][adata.obs_names].obsm["spatial"], adata.obsm["spatial"])
    alone = mosaic_simulated(n_spots=40, modalities=["adt"], rng=3)
    assert (alone["adt"].X != truth["adt"].X).nnz == 0


def test_spots_are_described_once_for_all_modalities():
    mdata = mosaic_simulated(n_spots=50, modalities=ALL, n_genes=20, n_proteins=5, n_peaks=30)
    assert {name: adata.shape for name, adata in mdata.mod.items()} == {
        "rna": (100, 20),
        "adt": (100, 5),
        "atac": (50, 30),
    }
    assert mdata.obs_names.is_unique
    assert list(mdata.obs.columns) == ["section", "site", "domain"]
    assert mdata.obs.groupby("section", observed=True)["site"].nunique().tolist() == [1, 1, 1]
    for adata in mdata.mod.values():
        assert sparse.issparse(adata.X)
        assert adata.X.dtype == np.float32
        assert (adata.X.data % 1 == 0).all()
        for column in mdata.obs:
            assert (adata.obs[column].astype(str) == mdata.obs.loc[adata.obs_names, column].astype(str)).all()
        rows = mdata.obs_names.get_indexer(adata.obs_names)
        np.testing.assert_array_equal(mdata.obsm["spatial"][rows], adata.obsm["spatial"])
        assert adata.var["informative"].dtype == bool


@pytest.mark.parametrize("rng", range(8))
def test_every_section_is_another_cut_with_all_domains(rng):
    mdata = mosaic_simulated(n_spots=150, n_genes=5, n_proteins=5, rng=rng)
    by_section = mdata.obs.groupby("section", observed=True)["domain"]
    assert (by_section.nunique() == 6).all()
    first, second, _ = (own.to_numpy() for _, own in by_section)
    assert (first == second).mean() < 0.9
    for section in mdata.obs["section"].cat.categories:
        xy = mdata.obsm["spatial"][(mdata.obs["section"] == section).to_numpy()]
        nearest = KDTree(xy).query(xy, k=2)[0][:, 1]
        np.testing.assert_allclose(nearest, 100)


def test_sections_differ_by_their_effect():
    def distance(section_effect):
        adata = mosaic_simulated(2, n_spots=200, modalities=["rna"], section_effect=section_effect)["rna"]
        means = [np.log1p(adata[adata.obs["section"] == s].X.mean(0)) for s in ("section_1", "section_2")]
        means = [np.asarray(mean).ravel() - np.mean(mean) for mean in means]
        return np.std(means[0] - means[1])

    assert distance(1.0) > 2 * distance(0.0)


def test_the_same_rng_gives_the_same_tissue_and_it_goes_through_h5mu(tmp_path):
    one, two, other = (mosaic_simulated(n_spots=40, rng=rng) for rng in (1, 1, 2))
    assert (one["rna"].X != two["rna"].X).nnz == 0
    assert (one["rna"].X != other["rna"].X).nnz > 0
    one.write(tmp_path / "mosaic.h5mu")
    back = md.read(tmp_path / "mosaic.h5mu")
    back.update()
    assert back.obs[list(one.obs)].equals(one.obs)
    np.testing.assert_array_equal(back.obsm["spatial"], one.obsm["spatial"])
    for name, adata in one.mod.items():
        assert (back[name].X != adata.X).nnz == 0
        assert back[name].obs.equals(adata.obs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sections": 0}, "`n_sections` to be a whole number from 1"),
        ({"n_domains": 3}, "`n_domains` to be a whole number from 4"),
        ({"faint": 2}, "`faint` to be a number from 0 to 1"),
        ({"modalities": ["histone"]}, "`modalities` to be one of .* found 'histone'"),
        ({"modalities": []}, "each modality once, found none"),
        ({"modalities": ["rna", "rna"]}, "each modality once, found rna, rna"),
        ({"missing": {"section_9": ["rna"]}}, "`missing` to be one of .* found 'section_9'"),
        ({"missing": {"section_2": ["atac"]}}, r"`missing\['section_2'\]` to be one of \['rna', 'adt'\]"),
        ({"missing": {"section_2": ["rna", "adt"]}}, "a modality in every section, found none for section_2"),
        ({"n_sections": 1, "missing": {"section_1": ["adt"]}}, "a section of every modality, found none for adt"),
        ({"n_sections": 1, "modalities": ALL}, "a section of every modality, found none for atac"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mosaic_simulated(**{"n_spots": 20, **arguments})
