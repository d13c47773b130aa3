"""Several sections as one AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.pp._join_sections import join_sections


def make_section(genes="ABC", n=4, *, form=np.asarray, dtype=np.float32, names="spot", rng=0, kind="x"):
    generator = np.random.default_rng(rng)
    X = generator.poisson(3, (n, len(genes))).astype(dtype)
    obs = pd.DataFrame(
        {"type": pd.Categorical([kind] * n), "depth": X.sum(1)}, index=[f"{names}{number}" for number in range(n)]
    )
    adata = ad.AnnData(form(X), obs, pd.DataFrame({"kind": "gene"}, index=list(genes)))
    adata.layers["counts"] = form(X * 2)
    adata.obsm["spatial"] = generator.random((n, 2))
    adata.obsm["X_pca"] = generator.random((n, 3))
    adata.raw = adata
    return adata


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_spots_of_all_sections_follow_one_another(form):
    one, other = make_section("ABC", form=form), make_section("CAB", 3, form=form, names="other", rng=1, kind="y")
    before = [section.copy() for section in (one, other)]
    joined = join_sections({"left": one, "2": other})
    assert list(joined.obs_names) == [f"spot{i}" for i in range(4)] + [f"other{i}" for i in range(3)]
    assert joined.obs["section"].cat.categories.tolist() == ["left", "2"]
    assert joined.obs["section"].tolist() == ["left"] * 4 + ["2"] * 3
    assert joined.obs["type"].cat.categories.tolist() == ["x", "y"]
    assert sparse.issparse(joined.X) == sparse.issparse(one.X)
    for layer in (None, "counts"):
        expected = pd.concat([one.to_df(layer), other.to_df(layer)[list("ABC")]])
        pd.testing.assert_frame_equal(joined.to_df(layer), expected)
    np.testing.assert_array_equal(joined.obsm["spatial"], np.r_[one.obsm["spatial"], other.obsm["spatial"]])
    assert (list(joined.obsm), list(joined.varm), list(joined.uns), joined.raw) == (["spatial"], [], [], None)
    assert joined.var["kind"].tolist() == ["gene"] * 3
    for section, copy in zip((one, other), before, strict=True):
        pd.testing.assert_frame_equal(section.obs, copy.obs)
        pd.testing.assert_frame_equal(section.to_df(), copy.to_df())
        assert not section.uns


def test_views_and_one_section_work_and_the_result_is_new():
    one = make_section(n=6)
    joined = join_sections({"a": one[:2], "b": one[2:]})
    np.testing.assert_array_equal(joined.X, one.X)
    alone = join_sections({"a": one})
    alone.X[:] = -1
    alone.obsm["spatial"][:] = -1
    assert one.X.min() >= 0
    assert one.obsm["spatial"].min() >= 0


def test_only_names_that_collide_get_the_section_in_front():
    one, other, third = make_section(n=3), make_section(n=2), make_section(n=2, names="own")
    joined = join_sections({"a": one, "b": other, "c": third})
    assert list(joined.obs_names) == ["a-spot0", "a-spot1", "spot2", "b-spot0", "b-spot1", "own0", "own1"]
    always = join_sections({"a": one, "c": third}, prefix="always")
    assert list(always.obs_names) == ["a-spot0", "a-spot1", "a-spot2", "c-own0", "c-own1"]


def test_modalities_joined_one_by_one_give_a_spot_the_same_name():
    rna = join_sections({"1": make_section("AB"), "2": make_section("AB")}, prefix="always")
    protein = join_sections({"1": make_section("PQ"), "3": make_section("PQ", names="other")}, prefix="always")
    first = protein.obs_names[protein.obs["section"] == "1"]
    assert list(first) == list(rna.obs_names[rna.obs["section"] == "1"])


def test_a_list_takes_sections_from_the_column():
    one, other = make_section(n=4), make_section(n=2, names="other")
    one.obs["slice"], other.obs["slice"] = pd.Categorical(["z", "z", "y", "y"]), "x"
    one.obs["hospital"], other.obs["hospital"] = "north", "south"
    joined = join_sections([one, other], section_key="slice", site_key="hospital")
    assert joined.obs["slice"].cat.categories.tolist() == ["z", "y", "x"]
    assert joined.obs["slice"].tolist() == ["z", "z", "y", "y", "x", "x"]
    assert joined.obs["hospital"].tolist() == ["north"] * 4 + ["south"] * 2
    same = join_sections({"x": other}, section_key="slice")
    assert same.obs["slice"].tolist() == ["x", "x"]


def test_a_list_without_the_column_is_numbered():
    joined = join_sections([make_section(n=4), make_section(n=2, names="other")])
    assert joined.obs["section"].tolist() == ["0"] * 4 + ["1"] * 2


def test_spots_outside_of_the_tissue_are_left_out():
    one, other = make_section(n=4), make_section(n=3, names="other")
    one.obs["in_tissue"] = [1, 0, 1, 0]
    with pytest.warns(UserWarning, match="Left out 2 spots outside of the tissue"):
        joined = join_sections({"a": one, "b": other})
    assert joined.obs_names.tolist() == [*one.obs_names[[0, 2]], *other.obs_names]
    assert one.n_obs == 4
    one.obs["in_tissue"] = False
    with pytest.warns(UserWarning, match="Left out 4"), pytest.raises(ValueError, match="found none in number 1"):
        join_sections({"a": one, "b": other})


@pytest.mark.parametrize(
    "form",
    [
        lambda xy, names: xy.astype(str),
        lambda xy, names: xy.astype(object),
        lambda xy, names: pd.DataFrame(xy, names, ["x", "y"]).astype("category"),
        lambda xy, names: sparse.csr_matrix(xy),
    ],
    ids=["text", "objects", "categories", "sparse"],
)
def test_coordinates_of_any_form_are_read(form):
    one = make_section()
    expected = np.asarray(one.obsm["spatial"], dtype=float)
    one.obsm["spatial"] = form(expected, one.obs_names)
    np.testing.assert_allclose(join_sections({"a": one}).obsm["spatial"], expected)


def test_coordinates_that_are_none_are_refused():
    one = make_section()
    one.obsm["spatial"] = np.full((4, 2), "left")
    with pytest.raises(TypeError, match=r"numbers as coordinates in adata.obsm\['spatial'\] of section a, .* 'left'"):
        join_sections({"a": one})
    one.obsm["spatial"] = np.zeros((4, 2, 2))
    with pytest.raises(ValueError, match=r"found shape \(4, 2, 2\)"):
        join_sections({"a": one})


def test_features_in_common_keep_the_order_of_the_first():
    joined = join_sections({"a": make_section("DABC"), "b": make_section("CXDB", names="other")}, join="inner")
    assert list(joined.var_names) == ["D", "B", "C"]
    assert "infl_measured" not in joined.varm


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_a_union_marks_which_zeros_were_never_measured(form, tmp_path):
    one, other = make_section("BA", form=form), make_section("CB", 5, form=form, names="other")
    one.obs["section"], other.obs["section"] = ["1", "1", "2", "2"], "3"
    joined = join_sections([one, other], join="outer")
    assert list(joined.var_names) == ["B", "A", "C"]
    for layer in (None, "counts"):
        expected = pd.concat([one.to_df(layer), other.to_df(layer)]).fillna(0)
        pd.testing.assert_frame_equal(joined.to_df(layer), expected, check_dtype=False)
    assert sparse.issparse(joined.X) == (form is not np.asarray)
    measured = pd.DataFrame(joined.varm["infl_measured"], joined.var_names, joined.obs["section"].cat.categories)
    assert measured.loc["A"].tolist() == [True, True, False]
    assert measured.loc["B"].tolist() == [True, True, True]
    assert measured.loc["C"].tolist() == [False, False, True]
    joined.write_h5ad(tmp_path / "joined.h5ad")
    assert ad.read_h5ad(tmp_path / "joined.h5ad").varm["infl_measured"].dtype == bool


def test_what_a_section_lacks_is_left_out_and_images_stay():
    one, other = make_section(), make_section(names="other")
    one.layers["scaled"], one.obs["only"], other.var["kind"] = one.X, 1, "protein"
    one.uns["spatial"], other.uns["spatial"] = ({"library": {"images": np.full((2, 2), n)}} for n in (1, 0))
    joined = join_sections({"a": one, "b": other})
    assert (list(joined.layers), list(joined.obs), list(joined.var)) == (["counts"], ["type", "depth", "section"], [])
    assert list(joined.uns) == ["spatial"]
    np.testing.assert_array_equal(joined.uns["spatial"]["a"]["images"], 1)
    np.testing.assert_array_equal(joined.uns["spatial"]["b"]["images"], 0)
    assert list(one.uns["spatial"]) == ["library"]
    one.obs["section"], other.obs["section"] = ["1", "1", "2", "2"], "3"
    assert list(join_sections([one, other]).uns["spatial"]) == ["library", "3"]  # whose library is not clear


def test_kinds_of_numbers_and_of_matrices_may_differ():
    dense, thin = make_section(dtype=np.float64), make_section(form=sparse.csr_matrix, names="other")
    joined = join_sections({"a": dense, "b": thin})
    assert sparse.issparse(joined.X)
    assert joined.X.dtype == np.float64
    np.testing.assert_array_equal(joined.X.toarray(), np.r_[dense.X, thin.X.toarray()])
    for section in (dense, thin):
        section.X = None
    assert join_sections({"a": dense, "b": thin}).X is None


def test_sections_must_be_named_once():
    with pytest.raises(TypeError, match="found one AnnData"):
        join_sections(make_section())
    with pytest.raises(ValueError, match="at least one section"):
        join_sections({})
    one, other = make_section(), make_section()
    one.obs["section"] = other.obs["section"] = "a"
    with pytest.raises(ValueError, match="found a in several"):
        join_sections([one, other])
    with pytest.raises(ValueError, match=r"the section 'b' in adata\.obs\['section'\], found 'a'"):
        join_sections({"a": one, "b": other})
    for other.obs["section"] in (["b", None, "b", "b"], None):
        with pytest.raises(KeyError, match=r"adatas\[1\]\.obs\['section'\], found none\. Pass a dict"):
            join_sections([one, other])
    with pytest.raises(ValueError, match="none in number 2 of"):
        join_sections({"a": one, "c": one[:0]})


def test_sections_must_belong_to_one_site():
    one, other = make_section(), make_section()
    one.obs["site"] = "north"
    with pytest.raises(KeyError, match=r"adata\.obs\['site'\], found spots without in section b"):
        join_sections({"a": one, "b": other}, site_key="site")
    other.obs["site"] = ["north", "south", "south", "south"]
    with pytest.raises(ValueError, match="found section b at 2"):
        join_sections({"a": one, "b": other}, site_key="site")


def test_features_must_agree():
    one = make_section("ABCD")
    with pytest.raises(
        ValueError, match=r"4 features of section a .* 2 missing in section b \(C, D\) and 1 others \(X\)"
    ):
        join_sections({"a": one, "b": make_section("AXB")})
    with pytest.raises(ValueError, match=r"0 missing in section b \(none\) and 1 others"):
        join_sections({"a": one, "b": make_section("ABCDE")})
    for how in ("inner", "outer"):
        with pytest.raises(ValueError, match="none up to section b: section a begins with A, B and 2 more"):
            join_sections({"a": one, "b": make_section("XYZ")}, join=how)
    with pytest.warns(UserWarning, match="not unique"):
        doubled = make_section("AAB")
    with pytest.raises(ValueError, match="found 1 twice in section b: A"):
        join_sections({"a": one, "b": doubled}, join="inner")
    bare = make_section("ABCD")
    bare.X = None
    for sections in ({"a": one, "b": bare}, {"b": bare, "a": one}):
        with pytest.raises(ValueError, match="found none in section b"):
            join_sections(sections)


def test_coordinates_must_be_there_and_of_one_shape():
    one, other = make_section(), make_section()
    with pytest.raises(KeyError, match=r"adata\.obsm\['xy'\] of section a, found entries \['spatial', 'X_pca'\]"):
        join_sections({"a": one, "b": other}, spatial_key="xy")
    other.obsm["spatial"] = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"found shape \(4, 3\) in section b after 2 columns in section a"):
        join_sections({"a": one, "b": other})
    one.obsm["line"] = np.zeros((4, 1))
    with pytest.raises(ValueError, match=r"obsm\['line'\] of section a, found shape \(4, 1\)\."):
        join_sections({"a": one}, spatial_key="line")
    other.obsm["spatial"] = np.array([[0, 1], [np.nan, 1], [1, np.inf], [0, 0]])
    with pytest.raises(ValueError, match="found 2 of 4 without in section b"):
        join_sections({"a": one, "b": other})
    three = make_section()
    three.obsm["spatial"] = pd.DataFrame(np.ones((4, 3), np.float32), index=three.obs_names)
    assert join_sections({"a": three}).obsm["spatial"].shape == (4, 3)


def test_spot_names_must_be_unique_within_a_section(tmp_path):
    with pytest.warns(UserWarning, match="not unique"):
        one = ad.concat([make_section(), make_section()])
    with pytest.raises(ValueError, match="found 4 repeated, the first in section b"):
        join_sections({"a": make_section(names="other"), "b": one})
    make_section().write_h5ad(tmp_path / "section.h5ad")
    with pytest.raises(ValueError, match="found section a in a file"):
        join_sections({"a": ad.read_h5ad(tmp_path / "section.h5ad", backed="r")})


def test_real_sections_of_a_lymph_node_join(shared):
    path = "spatial/spamosaic_hln_s{}_adt.h5ad"
    sections = {f"s{i}": ad.read_h5ad(shared(path.format(i))) for i in (1, 2)}
    joined = join_sections(sections)
    assert joined.shape == (3484 + 3359, 31)
    assert sparse.issparse(joined.X)
    assert joined.obs["final_annot"].notna().all()
    assert joined.X.sum() == pytest.approx(sum(section.X.sum() for section in sections.values()), rel=1e-5)
