"""What is read of an AnnData or a MuData, and what is refused."""

from __future__ import annotations

import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scinfl as si
from scinfl._data_files import without_pull
from scinfl.datasets import mosaic_simulated
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic._spots import column_of, normalisation_of, read_spots

WHERE = {"section_key": "section", "site_key": "site", "spatial_key": "spatial", "layers": {}}


def make_mosaic(**arguments) -> md.MuData:
    return mosaic_simulated(**{"n_spots": 30, "n_genes": 12, "n_proteins": 6, "n_peaks": 20, **arguments})


def joined(mods: dict[str, ad.AnnData], like: md.MuData) -> md.MuData:
    """MuData of these modalities with the columns and coordinates of another."""
    with without_pull():
        mdata = md.MuData(mods)
    rows = like.obs_names.get_indexer(mdata.obs_names)
    mdata.obs, mdata.obsm["spatial"] = like.obs.iloc[rows].copy(), np.asarray(like.obsm["spatial"])[rows]
    return mdata


def copies(mdata: md.MuData) -> dict[str, ad.AnnData]:
    return {name: adata.copy() for name, adata in mdata.mod.items()}


def set_up(mdata, **arguments):
    SpaMosaic.setup_mudata(mdata, **{"section_key": "section", "site_key": "site", **arguments})


@pytest.fixture
def mdata() -> md.MuData:
    return make_mosaic()


# ---- what is read


def by_name(adata: ad.AnnData) -> ad.AnnData:
    """Spots in the order that they are read in."""
    return adata[adata.obs_names.sort_values()]


def test_every_modality_comes_with_its_spots(mdata):
    found = read_spots(mdata, **WHERE)
    assert list(found) == ["rna", "adt"]
    for name, own in found.items():
        adata = by_name(mdata[name])
        assert own.modality == name
        assert mdata.obs_names[own.rows].tolist() == adata.obs_names.tolist()
        assert own.section.tolist() == adata.obs["section"].tolist()
        assert own.site.tolist() == adata.obs["site"].tolist()
        np.testing.assert_array_equal(own.coordinates, adata.obsm["spatial"])
        assert (own.matrix != adata.X).nnz == 0
        assert own.normalise == {"rna": "lognorm", "adt": "clr"}[name]
    pooled = read_spots(mdata, **{**WHERE, "site_key": None})
    assert {site for own in pooled.values() for site in own.site} == {"all"}


def test_an_anndata_is_one_modality_without_a_name(mdata):
    adata = mdata["rna"].copy()
    (own,) = read_spots(adata, **WHERE).values()
    assert own.modality is None
    assert own.rows.tolist() == np.argsort(adata.obs_names).tolist()


def test_columns_and_coordinates_may_lie_in_the_modalities(mdata):
    expected = read_spots(mdata, **WHERE)
    mdata.obs, mdata.obsm["spatial"] = mdata.obs[[]], np.zeros((90, 2))
    del mdata.obsm["spatial"]
    for name, own in read_spots(mdata, **WHERE).items():
        for part in ("section", "site", "coordinates", "rows"):
            np.testing.assert_array_equal(getattr(own, part), getattr(expected[name], part))


def test_modalities_have_to_agree_where_both_have_a_column(mdata):
    mdata.obs = mdata.obs[[]]
    column = mdata["adt"].obs["section"].astype(str)
    column.iloc[:2] = "section_2"
    mdata["adt"].obs["section"] = column
    with pytest.raises(ValueError, match=r"agree on obs\['section'\], found 2 spots of which 'adt' has another value"):
        read_spots(mdata, **WHERE)
    del mdata["adt"].obs["section"]  # section_3 is then nowhere
    with pytest.raises(ValueError, match=r"for every spot in mdata.obs\['section'\], found 30 without. Drop these"):
        column_of(mdata, "section", "section_key")


def test_a_column_of_the_mudata_comes_first(mdata):
    mdata["adt"].obs["section"] = "elsewhere"
    assert set(read_spots(mdata, **WHERE)["adt"].section) == {"section_1", "section_3"}


def test_names_of_any_kind_become_text(mdata):
    mdata.obs["section"] = mdata.obs["section"].cat.codes.astype(int)
    mdata.obs["site"] = mdata.obs["section"]
    own = read_spots(mdata, **WHERE)["adt"]
    assert set(own.section) == set(own.site) == {"0", "2"}


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix, sparse.csr_array])
def test_values_come_dense_or_as_sparse_rows(form, mdata):
    x = mdata["rna"].X.toarray()
    mods = copies(mdata)
    mods["rna"].X = form(x)
    matrix = read_spots(joined(mods, mdata), **WHERE)["rna"].matrix
    if sparse.issparse(matrix):
        assert matrix.format == "csr"
        matrix = matrix.toarray()
    np.testing.assert_array_equal(matrix, by_name(mdata["rna"]).X.toarray())


def test_counts_are_recognised_by_scale_and_accessibility_by_name():
    counts = sparse.random(50, 20, 0.3, format="csr", random_state=0)
    counts.data = np.ceil(5 * counts.data)  # few counts each
    assert normalisation_of("rna", counts) == normalisation_of("X", counts) == "lognorm"
    assert normalisation_of("adt", 40 * counts.toarray()) == "clr"
    for name in ("atac", "ATAC_peaks", "H3K27ac", "histone"):
        assert normalisation_of(name, counts) == "tfidf"
        assert normalisation_of(name, (counts > 0).astype(np.float32)) == "tfidf"
    for other in (counts.log1p(), -counts, counts.toarray() - 1, np.zeros((0, 3))):
        assert normalisation_of("atac", other) == "none"
    set_to = read_spots(make_mosaic(), **WHERE, normalise={"rna": "log1p"})
    assert {name: own.normalise for name, own in set_to.items()} == {"rna": "log1p", "adt": "clr"}


def test_layers_are_read_by_modality(mdata):
    mdata["rna"].layers["counts"] = mdata["rna"].X * 2
    own = read_spots(mdata, **{**WHERE, "layers": {"rna": "counts"}})["rna"]
    np.testing.assert_array_equal(own.matrix.toarray(), 2 * by_name(mdata["rna"]).X.toarray())


def test_what_is_only_embedded_need_not_do_for_training(mdata):
    part = mdata[mdata.obs["section"].isin(["section_2", "section_3"]).to_numpy()]
    assert part.is_view
    found = read_spots(part, **WHERE, train=False)
    assert {name: set(own.section) for name, own in found.items()} == {"rna": {"section_2"}, "adt": {"section_3"}}
    one = mdata[mdata.obs_names.isin(["section_2_spot_1"])]
    assert list(read_spots(one, **WHERE, train=False)) == ["rna"]


# ---- what is refused: sections and sites


def test_modalities_that_no_section_links_are_named_with_what_would_link_them(mdata):
    mods = {name: adata[adata.obs["section"] != "section_1"].copy() for name, adata in mdata.mod.items()}
    with pytest.raises(
        ValueError,
        match=r"none that links \['rna'\] \(of section_2\) with \['adt'\] \(of section_3\). Add a section "
        "that measured both 'rna' and 'adt', or integrate these groups one by one",
    ):
        set_up(joined(mods, mdata))


def test_modalities_are_linked_through_others_too():
    missing = {"section_1": ["atac"], "section_2": ["rna"], "section_3": ["rna", "adt"]}
    set_up(make_mosaic(modalities=("rna", "adt", "atac"), missing=missing))
    missing["section_2"] = ["rna", "adt"]
    mdata = make_mosaic(modalities=("rna", "adt", "atac"), missing=missing)
    with pytest.raises(
        ValueError,
        match=r"links \['adt', 'rna'\] \(of section_1\) with \['atac'\] \(of section_2, section_3\)",
    ):
        set_up(mdata)


def test_spots_in_another_order_are_named_and_the_cure_works(mdata):
    adt = mdata["adt"]
    order = np.r_[np.arange(30)[::-1], 30:60]
    mixed = joined({"rna": mdata["rna"].copy(), "adt": adt[order].copy()}, mdata)
    with pytest.raises(
        ValueError, match=r"spots of section 'section_1' in the same order in 'rna' and 'adt'.*sort both"
    ):
        set_up(mixed)
    for name in ("rna", "adt"):
        mixed.mod[name] = mixed.mod[name][mixed.mod[name].obs_names.sort_values()].copy()
    mixed.update()
    set_up(mixed)


def test_spots_that_one_modality_lacks_are_counted(mdata):
    mods = copies(mdata)
    mods["adt"] = mods["adt"][2:].copy()
    with pytest.raises(
        ValueError,
        match=r"'rna' and 'adt' to measure the same spots of section 'section_1', found 2 in one alone: "
        r"section_1_spot_1, section_1_spot_2\. Drop these spots from both",
    ):
        set_up(joined(mods, mdata))


def test_names_of_spots_that_occur_twice_are_refused(mdata):
    mods = copies(mdata)
    mods["rna"].obs_names = ["section_1_spot_1", *mods["rna"].obs_names[[0, *range(2, 60)]]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = md.MuData(mods)
        twice.obs["section"] = [name.split("_spot")[0] for name in twice.obs_names]
        with pytest.raises(
            ValueError, match=r"unique spot names in 'rna', found 1 that occur more than once: section_1_sp"
        ):
            set_up(twice, site_key=None)
        adata = mods["rna"]
        with pytest.raises(ValueError, match="unique spot names, found 1 that occur"):
            SpaMosaic.setup_anndata(adata, "section")


def test_a_section_at_two_sites_and_a_single_site_are_refused(mdata):
    mdata.obs["hospital"] = np.where(np.arange(90) % 2, "x", "y")
    with pytest.raises(
        ValueError, match="every section at one site, found 3 at several: section_1, section_2, section_3"
    ):
        set_up(mdata, site_key="hospital")
    mdata.obs["hospital"] = "x"
    with pytest.raises(ValueError, match=r"obs\['hospital'\] to name at least 2 sites, found 1.*`site_key=None`"):
        set_up(mdata, site_key="hospital")
    mdata.obs["hospital"] = pd.Categorical(mdata.obs["site"].astype(str), [*mdata.obs["site"].cat.categories, "empty"])
    set_up(mdata, site_key="hospital")


def test_a_site_with_few_spots_is_refused(mdata):
    few = (mdata.obs["section"] != "section_3") | (np.arange(90) < 65)
    mods = {name: adata[few[adata.obs_names].to_numpy()].copy() for name, adata in mdata.mod.items()}
    with pytest.raises(
        ValueError, match="at least 10 spots of 'adt' at every site that measured it, found 5 at site 'hosp"
    ):
        set_up(joined(mods, mdata))
    set_up(joined(mods, mdata), site_key=None)


def test_missing_columns_are_named(mdata):
    with pytest.raises(KeyError, match=r"`section_key` to name a column of mdata.obs.*'slice'.*section, site, domain"):
        set_up(mdata, section_key="slice")
    with pytest.raises(KeyError, match="`site_key` to name a column"):
        set_up(mdata, site_key="hospital")
    mdata.obs["site"] = mdata.obs["site"].astype(object)
    mdata.obs.iloc[3, mdata.obs.columns.get_loc("site")] = np.nan
    with pytest.raises(ValueError, match=r"value for every spot in mdata.obs\['site'\], found 1 without"):
        set_up(mdata)


# ---- what is refused: coordinates and values


def test_missing_coordinates_are_named_with_their_section(mdata):
    mdata.obsm["spatial"][[3, 70], 0] = [np.nan, np.inf]
    with pytest.raises(
        ValueError, match=r"every spot in obsm.*found 1 without, in section section_1. Drop these spots"
    ):
        set_up(mdata)
    mdata.obsm["spatial"] = np.zeros((90, 4))
    with pytest.raises(
        ValueError, match=r"2 or 3 coordinates per spot in mdata.obsm\['spatial'\], found shape \(90, 4\)"
    ):
        set_up(mdata)
    with pytest.raises(KeyError, match=r"in mdata.obsm or mdata\['rna'\].obsm, found none called 'xy'"):
        set_up(mdata, spatial_key="xy")
    mdata.obsm["spatial"] = np.zeros((90, 3))
    set_up(mdata)


def test_other_features_at_one_site_are_refused(mdata):
    rna = mdata["rna"]
    parts = {name: rna[(rna.obs["section"] == name).to_numpy()].copy() for name in ("section_1", "section_2")}
    parts["section_2"] = parts["section_2"][:, 2:].copy()
    mods = {"rna": si.pp.join_sections(parts, join="outer"), "adt": mdata["adt"].copy()}
    with pytest.raises(
        ValueError,
        match=r"same features of 'rna', found 2 that some did not: section section_2.*join_sections\(join='inner'\)",
    ):
        set_up(joined(mods, mdata))
    mods["rna"] = si.pp.join_sections(parts, join="inner")
    set_up(joined(mods, mdata))


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_missing_values_are_named_with_their_feature(odd, form, mdata):
    x = mdata["adt"].X.toarray()
    x[[5, 6], 2] = odd
    mods = copies(mdata)
    mods["adt"].X = form(x)
    with pytest.raises(
        ValueError, match=r"every feature of 'adt' in every spot, found 2 .* infinite, in PROTEIN3\. Drop"
    ):
        set_up(joined(mods, mdata))


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("how", ["clr", "lognorm", "log1p", "tfidf"])
def test_negative_values_are_no_counts(how, form, mdata):
    x = mdata["rna"].X.toarray()
    x[-1, 0] = -2.5
    mods = copies(mdata)
    mods["rna"].X = form(x)
    wrong = joined(mods, mdata)
    with pytest.raises(
        ValueError, match=rf"counts of 'rna' to normalise by '{how}', found values down to -2.5. Name a"
    ):
        set_up(wrong, normalise={"rna": how})
    set_up(wrong, normalise={"rna": "none"})
    set_up(wrong)


def test_unknown_layers_normalisations_and_modalities_are_named(mdata):
    with pytest.raises(KeyError, match=r"layers\['rna'\] to be a layer of mdata\['rna'\], found 'raw' beside \[\]"):
        set_up(mdata, layers={"rna": "raw"})
    with pytest.raises(ValueError, match=r"`modality in layers` to be one of \['rna', 'adt'\], found 'protein'"):
        set_up(mdata, layers={"protein": "raw"})
    with pytest.raises(ValueError, match="`modality in normalise` to be one of"):
        set_up(mdata, normalise={"protein": "clr"})
    with pytest.raises(ValueError, match=r"`normalise\['rna'\]` to be one of \['clr', .*found 'log'"):
        set_up(mdata, normalise={"rna": "log"})
    with pytest.raises(
        TypeError, match=r"`normalise` to be a dict by modality, found 'clr'. Write `normalise=\{'rna': "
    ):
        set_up(mdata, normalise="clr")
    with pytest.raises(TypeError, match="`layers` to be a dict by modality, found 'counts'"):
        set_up(mdata, layers="counts")


@pytest.mark.parametrize("name", ["r.na", "", "X", "type", "values"])
def test_modalities_that_the_network_cannot_name_are_refused(name, mdata):
    mods = copies(mdata)
    renamed = joined({name: mods["rna"], "adt": mods["adt"]}, mdata)
    with pytest.raises(
        ValueError, match=rf"names of modalities such as 'rna'.* found {name!r}.*Rename it in the MuData"
    ):
        set_up(renamed)


def test_views_are_refused_to_train_on_and_features_that_occur_twice(mdata):
    with pytest.raises(ValueError, match=r"a MuData that owns its data, found a view. Run `mdata = mdata.copy\(\)`"):
        set_up(mdata[:])
    mods = copies(mdata)
    mods["rna"].var_names = ["GENE1", *mods["rna"].var_names[[0, *range(2, 12)]]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = joined(mods, mdata)
        with pytest.raises(ValueError, match="unique feature names, found 1 that occur more than once: GENE1"):
            set_up(twice)


def test_values_that_are_not_there_are_asked_for(mdata):
    mods = copies(mdata)
    mods["rna"].X = None
    with pytest.raises(ValueError, match=r"values in adata.X, found none. Name a layer"):
        set_up(joined(mods, mdata))
