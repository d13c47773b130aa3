"""Modalities that a section did not measure."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import scinfl as si
from scinfl._data_files import without_pull
from scinfl.datasets import mosaic_simulated
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic._normalise import normalised
from scinfl.privacy import Key

pytestmark = pytest.mark.filterwarnings("ignore:(One site|Two sites) alone measured:UserWarning")

KEY = Key(bytes(range(32)), federation="mosaic")
DATA = {"n_spots": 300, "n_genes": 150, "section_effect": 0.1, "rng": 2}
QUICK = {"n_rounds": 2, "progress": False}


def set_up(mdata, **arguments):
    SpaMosaic.setup_mudata(mdata, **{"section_key": "section", "site_key": "site", **arguments})


def trained(mdata, *, site_key="site", key=None, **training) -> SpaMosaic:
    set_up(mdata, site_key=site_key)
    model = SpaMosaic(mdata, n_components=20, key_scheme=None if key is None else "coordinate")
    model.train(**{"key": key, "progress": False, **training})
    return model


def sections_of(mdata, *names, modalities=("rna", "adt")) -> md.MuData:
    mods = {name: adata[adata.obs["section"].isin(names).to_numpy()].copy() for name, adata in mdata.mod.items()}
    with without_pull():
        part = md.MuData({name: adata for name, adata in mods.items() if adata.n_obs and name in modalities})
    rows = mdata.obs_names.get_indexer(part.obs_names)
    part.obs, part.obsm["spatial"] = mdata.obs.iloc[rows].copy(), np.asarray(mdata.obsm["spatial"])[rows]
    return part


def scores(measured, imputed):
    return si.metrics.imputation(measured, imputed).set_index("metric")["value"]


@pytest.fixture(scope="module")
def truth():
    return mosaic_simulated(**DATA, complete=True)


@pytest.fixture(scope="module")
def mosaic():
    """A trained model; who unlocks it with another key has to unlock it with this one again."""
    mdata = mosaic_simulated(**DATA)
    return mdata, trained(mdata, key=KEY)


@pytest.fixture(scope="module")
def pooled():
    """One site with all sections, so that neighbours may be looked at."""
    mdata = mosaic_simulated(**DATA)
    return mdata, trained(mdata, site_key=None)


def measured_of(truth, imputed, modality, model):
    return normalised(truth[modality][imputed.obs_names].X, model._normalise[modality]).toarray()


# ---- how good it is


@pytest.mark.parametrize("modality", ["rna", "adt"])
@pytest.mark.parametrize("case", ["mosaic", "pooled"])
def test_imputed_features_follow_measured_ones_better_than_the_mean_does(case, modality, truth, request):
    mdata, model = request.getfixturevalue(case)
    imputed = si.tl.impute(mdata, model, modality=modality, method="decoder")
    measured = measured_of(truth, imputed, modality, model)
    mean = np.tile(model.normalised(modality).mean(0), (len(measured), 1))
    found, baseline = scores(measured, imputed.X), scores(measured, mean)
    assert found["pcc_feature"] > (0.08 if modality == "rna" else 0.15)
    assert found["rmse"] < baseline["rmse"]


@pytest.mark.parametrize("modality", ["rna", "adt"])
def test_neighbours_of_the_same_site_tell_it_too(modality, pooled, truth):
    mdata, model = pooled
    imputed = si.tl.impute(mdata, model, modality=modality, n_neighbours=30)
    assert set(imputed.obs["infl_imputed_by"]) == {"neighbours"}
    found = scores(measured_of(truth, imputed, modality, model), imputed.X)
    assert found["pcc_feature"] > (0.04 if modality == "rna" else 0.15)


def test_features_that_differ_between_domains_are_imputed_best(mosaic, truth):
    mdata, model = mosaic
    imputed = si.tl.impute(mdata, model, modality="adt")
    table = si.metrics.imputation_features(measured_of(truth, imputed, "adt", model), imputed.X)
    informative = truth["adt"].var["informative"].to_numpy()
    assert table["pcc"][informative].mean() > table["pcc"][~informative].mean() + 0.1


def test_without_the_right_key_it_is_no_better_than_without_training(mosaic, truth):
    mdata, model = mosaic
    imputed = si.tl.impute(mdata, model, modality="adt")
    measured = measured_of(truth, imputed, "adt", model)
    right = scores(measured, imputed.X)["pcc_feature"]
    twin = mosaic_simulated(**DATA)
    untrained = trained(twin, n_rounds=1, lr=1e-9)
    chance = scores(measured, si.tl.impute(twin, untrained, modality="adt").X)["pcc_feature"]
    wrong = []
    for number in range(5):
        model.unlock(Key(bytes(range(100 + number, 132 + number)), federation="mosaic"), force=True)
        wrong.append(scores(measured, si.tl.impute(mdata, model, modality="adt").X)["pcc_feature"])
    model.unlock(KEY)
    assert abs(np.mean(wrong)) < abs(chance) + 0.06
    assert right > np.max(wrong) + 0.05
    np.testing.assert_array_equal(si.tl.impute(mdata, model, modality="adt").X, imputed.X)


def test_the_standard_error_is_that_of_spots_where_the_truth_is_known(truth):
    mdata = mosaic_simulated(**DATA)
    model = trained(mdata, n_rounds=3, validation_size=0.0)
    imputed = si.tl.impute(mdata, model, modality="adt", sections=["section_1"])
    assert set(imputed.obs["infl_imputed_by"]) == {"decoder"}
    error = np.sqrt(np.square(measured_of(truth, imputed, "adt", model) - imputed.X).mean(0))
    np.testing.assert_allclose(imputed.layers["std"], np.tile(error, (300, 1)), rtol=1e-3)
    np.testing.assert_allclose(model.imputation_error("adt"), error, rtol=1e-3)


def test_the_standard_error_of_spots_set_aside_is_near_that_of_a_section_with_truth(mosaic, truth):
    mdata, model = mosaic
    imputed = si.tl.impute(mdata, model, modality="adt", sections=["section_1"])
    error = np.sqrt(np.square(measured_of(truth, imputed, "adt", model) - imputed.X).mean(0))
    assert 0.9 < model.imputation_error("adt").mean() / error.mean() < 1.4


def test_imputed_values_are_shrunk_as_far_as_spots_set_aside_indicate(mosaic):
    _, model = mosaic
    shrinkage = {modality: float(judged["shrinkage"][0]) for modality, judged in model._judged.items()}
    assert set(shrinkage) == {"rna", "adt"}
    assert all(0 <= value <= 1 for value in shrinkage.values())
    predicted = model.impute("adt")
    model._judged["adt"]["shrinkage"] *= 0.5
    middle = model._bases["adt"].features(np.zeros((1, model._bases["adt"].components.shape[1])))
    np.testing.assert_allclose(model.impute("adt") - middle, (predicted - middle) / 2, atol=1e-4)
    model._judged["adt"]["shrinkage"] *= 2


# ---- what comes out


def test_the_new_anndata_has_names_errors_and_places(mosaic, tmp_path):
    mdata, model = mosaic
    columns, entries, values = list(mdata.obs), list(mdata.obsm), mdata["adt"].X.copy()
    imputed = si.tl.impute(mdata, model, modality="adt")
    assert isinstance(imputed, ad.AnnData)
    assert imputed.var_names.tolist() == mdata["adt"].var_names.tolist()
    assert set(imputed.obs["section"]) == {"section_2"}
    own = (mdata.obs["section"] == "section_2").to_numpy()
    assert imputed.obs_names.tolist() == mdata.obs_names[own].tolist()
    np.testing.assert_array_equal(imputed.obsm["spatial"], mdata.obsm["spatial"][own])
    assert imputed.obs["domain"].tolist() == mdata.obs["domain"][own].tolist()
    assert imputed.X.dtype == imputed.layers["std"].dtype == np.float32
    assert np.isfinite(imputed.X).all()
    assert (imputed.layers["std"] > 0).all()
    assert imputed.uns["infl"]["impute"] == {"modality": "adt", "method": "auto", "n_neighbours": 10}
    imputed.write_h5ad(tmp_path / "imputed.h5ad")
    again = ad.read_h5ad(tmp_path / "imputed.h5ad")
    np.testing.assert_array_equal(again.X, imputed.X)
    assert (list(mdata.obs), list(mdata.obsm)) == (columns, entries)  # nothing is written into what was given
    assert (values != mdata["adt"].X).nnz == 0


def test_the_decoder_tells_what_the_model_tells(mosaic):
    mdata, model = mosaic
    imputed = si.tl.impute(mdata, model, modality="rna")
    predicted = model.impute("rna")
    own = (mdata.obs["section"] == "section_3").to_numpy()
    np.testing.assert_array_equal(imputed.X, predicted[own])
    alone = model.impute("rna", sections_of(mdata, "section_3"))  # nobody else's spots are needed
    np.testing.assert_allclose(alone, predicted[own], atol=1e-4)


def test_neighbours_are_those_of_the_embedding_and_never_of_another_site(pooled):
    mdata, model = pooled
    imputed = si.tl.impute(mdata, model, modality="adt", method="neighbours", n_neighbours=7)
    section = mdata.obs["section"].to_numpy()
    code = model.get_latent_representation()
    measured = mdata.obs_names.isin(mdata["adt"].obs_names)
    nearest = NearestNeighbors(n_neighbors=7).fit(code[measured]).kneighbors(code[section == "section_2"])[1]
    rows = mdata["adt"].obs_names.get_indexer(mdata.obs_names[measured])
    values = model.normalised("adt")[rows][nearest]
    np.testing.assert_allclose(imputed.X, values.mean(1), atol=1e-5)
    of_a_new_spot = np.sqrt(1 + 1 / 7) * values.std(1, ddof=1)
    np.testing.assert_allclose(imputed.layers["std"], of_a_new_spot, atol=1e-5)


def test_sites_decide_who_may_be_a_neighbour(mosaic):
    mdata, model = mosaic
    with pytest.raises(
        ValueError, match=r"at least 10 spots that measured 'adt' at the site of section 'section_2', found 0. Lower"
    ):
        si.tl.impute(mdata, model, modality="adt", method="neighbours")
    four = mosaic_simulated(4, n_spots=60, n_genes=30, n_proteins=12)
    four.obs["site"] = (
        four.obs["section"].map({"section_1": "x", "section_2": "y", "section_3": "y", "section_4": "z"}).astype(str)
    )
    own = trained(four, **QUICK)
    imputed = si.tl.impute(four, own, modality="adt")
    by = imputed.obs.groupby("section", observed=True)["infl_imputed_by"].unique().map(list).to_dict()
    assert by == {"section_2": ["neighbours"], "section_4": ["decoder"]}


def test_what_a_section_measured_itself_is_not_used_to_tell_it(pooled):
    mdata, model = pooled
    before = {
        method: si.tl.impute(mdata, model, modality="adt", sections=["section_1"], method=method)
        for method in ("decoder", "neighbours")
    }
    changed = mdata.copy()
    own = (changed["adt"].obs["section"] == "section_1").to_numpy()
    counts = changed["adt"].X.toarray()
    counts[own] = np.random.default_rng(0).permutation(counts[own])
    changed["adt"].X = counts
    for method, expected in before.items():
        found = si.tl.impute(changed, model, modality="adt", sections=["section_1"], method=method)
        np.testing.assert_allclose(found.X, expected.X, atol=1e-4)


def test_new_sections_and_a_loaded_model(mosaic, truth, tmp_path):
    mdata, model = mosaic
    expected = si.tl.impute(mdata, model, modality="adt")
    model.save(tmp_path / "run")
    loaded = SpaMosaic.load(tmp_path / "run")
    loaded.unlock(KEY)
    part = sections_of(mdata, "section_2")
    del part.obs["site"], part["rna"].obs["site"]
    imputed = si.tl.impute(part, loaded, modality="adt")
    np.testing.assert_allclose(imputed.X, expected.X, atol=1e-4)
    np.testing.assert_allclose(imputed.layers["std"], expected.layers["std"])


def test_three_modalities_are_imputed_from_one_or_two():
    mdata = mosaic_simulated(4, n_spots=60, modalities=("rna", "adt", "atac"), n_genes=30, n_proteins=12, n_peaks=40)
    model = trained(mdata, **QUICK)
    for modality, adata in mdata.mod.items():
        imputed = si.tl.impute(mdata, model, modality=modality)
        lacks = set(mdata.obs["section"]) - set(adata.obs["section"])
        assert set(imputed.obs["section"]) == lacks
        assert imputed.shape == (60 * len(lacks), adata.n_vars)
        assert np.isfinite(imputed.X).all()


# ---- what is refused


def test_sections_and_methods_that_do_not_exist_are_named(mosaic):
    mdata, model = mosaic
    with pytest.raises(ValueError, match=r"`modality` to be one of \['rna', 'adt'\], found 'atac'"):
        si.tl.impute(mdata, model, modality="atac")
    with pytest.raises(ValueError, match="`method` to be one of"):
        si.tl.impute(mdata, model, modality="adt", method="magic")
    with pytest.raises(ValueError, match="`n_neighbours` to be a whole number from 1"):
        si.tl.impute(mdata, model, modality="adt", n_neighbours=0)
    with pytest.raises(ValueError, match="`sections` among section_1, section_2, section_3, found section_9"):
        si.tl.impute(mdata, model, modality="adt", sections=["section_9"])
    with pytest.raises(ValueError, match=r"none for spots of section section_3\. Leave them out with `sections`"):
        si.tl.impute(mdata, model, modality="adt", sections=["section_1", "section_3"])


def test_nothing_to_impute_is_reported():
    mdata = mosaic_simulated(2, n_spots=60, n_genes=30, n_proteins=12, missing={})
    model = trained(mdata, **QUICK)
    with pytest.raises(ValueError, match=r"a section that lacks 'adt', found none\. Name sections"):
        si.tl.impute(mdata, model, modality="adt")
    assert si.tl.impute(mdata, model, modality="adt", sections=["section_1"]).shape == (60, 12)


def test_a_model_of_one_modality_is_refused():
    adata = mosaic_simulated(n_spots=60, n_genes=30)["rna"].copy()
    SpaMosaic.setup_anndata(adata, "section")
    model = SpaMosaic(adata, n_components=8, key_scheme=None)
    model.train(**QUICK)
    with pytest.raises(ValueError, match="a model of several modalities to impute one from the others, found one"):
        si.tl.impute(adata, model, modality="X", sections=["section_1"], method="decoder")


def test_a_locked_model_tells_nothing(mosaic):
    mdata, model = mosaic
    model.lock()
    with pytest.raises(RuntimeError, match="locked with the key"):
        si.tl.impute(mdata, model, modality="adt")
    model.unlock(KEY)
