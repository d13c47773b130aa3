"""The same genes in the same order at all sites."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.pp import align_genes


def site(genes, n_cells=4, form=np.asarray, dtype=np.float32):
    X = np.arange(1, 1 + n_cells * len(genes)).reshape(n_cells, len(genes)).astype(dtype)
    adata = ad.AnnData(form(X), var=pd.DataFrame({"chosen": True, "mean": 1.5, "kind": "x"}, index=list(genes)))
    adata.layers["counts"] = form(X * 2)
    adata.varm["loadings"] = X.T.copy()
    adata.raw = adata
    return adata


def frame(adata, layer=None):
    return adata.to_df(layer)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_genes_in_common_keep_the_order_of_the_first(form):
    one, other, third = site("ABCDE", form=form), site("EXCBA", form=form), site("CEAZ", form=form)
    before = frame(other)
    align_genes(one, [other, third])
    for adata in (one, other, third):
        assert list(adata.var_names) == ["A", "C", "E"]
        assert type(adata.X) is type(form(np.zeros((1, 1))))
    pd.testing.assert_frame_equal(frame(other), before[["A", "C", "E"]])
    assert list(other.uns["infl"]["align_genes"]["dropped"]) == ["X", "B"]
    assert other.raw.n_vars == 5


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_union_fills_with_zeros(form, tmp_path):
    one, other = site("ABC", form=form), site("DBA", form=form, dtype=np.float64)
    before, counts = frame(other), frame(other, "counts")
    align_genes(one, [other], how="union")
    assert list(one.var_names) == list(other.var_names) == ["A", "B", "C", "D"]
    expected = before.reindex(columns=list("ABCD"), fill_value=0)
    pd.testing.assert_frame_equal(frame(other), expected, check_dtype=False)
    pd.testing.assert_frame_equal(
        frame(other, "counts"), counts.reindex(columns=list("ABCD"), fill_value=0), check_dtype=False
    )
    assert (other.X.dtype, one.X.dtype) == (np.float64, np.float32)
    assert list(other.varm["loadings"][:, 0]) == [3, 2, 0, 1]
    assert list(other.var["chosen"]) == [True, True, False, True]
    assert other.var["mean"].isna().tolist() == [False, False, True, False]
    assert list(one.uns["infl"]["align_genes"]["filled"]) == ["D"]
    assert one.raw.n_vars == 3
    for adata in (one, other):
        adata.write_h5ad(tmp_path / "cells.h5ad")


def test_aligned_sites_can_be_joined_and_stay_as_they_are():
    one, other = site("ABC"), site("CBA")
    align_genes(one, [other])
    X = one.X
    align_genes(one, [other], how="union")
    assert one.X is X
    assert ad.concat([one, other], index_unique="-").n_vars == 3


def test_no_other_site_changes_nothing():
    one = site("ABC")
    align_genes(one, [])
    assert list(one.var_names) == ["A", "B", "C"]


def test_bad_input_is_refused():
    one = site("ABC")
    with pytest.raises(TypeError, match="Pass `\\[other\\]`"):
        align_genes(one, site("ABC"))
    with pytest.raises(ValueError, match="`how` to be one of"):
        align_genes(one, [site("ABC")], how="outer")
    with pytest.raises(ValueError, match=r"found a view in `others\[1\]`"):
        align_genes(one, [site("ABC"), site("ABC")[:, :2]])
    with pytest.raises(ValueError, match="the same one twice"):
        align_genes(one, [one])
    with pytest.warns(UserWarning, match="not unique"):
        doubled = site("AAB")
    with pytest.raises(ValueError, match=r"genes in `others\[0\]`, found 1 that occur more than once: A\. Sum or drop"):
        align_genes(one, [doubled])
    for how in ("intersection", "union"):
        with pytest.raises(ValueError, match=r"found none up to `others\[1\]`: `adata` begins with A, B"):
            align_genes(one, [site("ABC"), site("XYZ")], how=how)
    one.varp["distances"] = np.eye(3)
    with pytest.raises(ValueError, match=r"'distances'.* in `adata`"):
        align_genes(one, [site("ABCD")], how="union")
    assert list(one.var_names) == ["A", "B", "C"]
    align_genes(one, [site("CA")])
    assert one.varp["distances"].shape == (2, 2)
