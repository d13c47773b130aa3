"""Centred log ratios of protein counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.pp._clr import clr


@pytest.fixture
def counts():
    generator = np.random.default_rng(0)
    matrix = generator.negative_binomial(1, 0.1, (40, 12)).astype(np.float32)
    matrix[3] = 0
    return matrix


def naive(cell):
    return np.log1p(cell / np.exp(sum(np.log1p(x) for x in cell if x > 0) / len(cell)))


@pytest.mark.parametrize(
    "form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array], ids=["dense", "csr", "csc", "array"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_cells_follow_the_formula_and_keep_their_form(counts, form, dtype):
    adata = ad.AnnData(form(counts.astype(dtype)))
    clr(adata)
    assert sparse.issparse(adata.X) == (form is not np.asarray)
    assert adata.X.dtype == (np.float64 if dtype is np.float64 else np.float32)
    found = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    np.testing.assert_allclose(found, np.stack([naive(cell) for cell in counts]), rtol=1e-5)
    np.testing.assert_array_equal(found == 0, counts == 0)


def test_a_cell_does_not_depend_on_others(counts):
    whole, part = ad.AnnData(counts.copy()), ad.AnnData(counts[5:6].copy())
    clr(whole)
    clr(part)
    np.testing.assert_array_equal(whole.X[5:6], part.X)


def test_a_layer_is_read_and_the_counts_may_stay(counts):
    adata = ad.AnnData(np.full((40, 12), -1.5), layers={"counts": sparse.csr_matrix(counts)})
    clr(adata, layer="counts", key_added="clr")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts)
    kept = adata.layers["clr"].toarray()
    clr(adata, layer="counts")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), kept)
    assert (adata.X == -1.5).all()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"found missing \(NaN\) or infinite values in 1 of 12 features: CD4"),
        (np.inf, r"found missing \(NaN\) or infinite values"),
        (-2, "found negative values in 1 of 12 features: CD4"),
        (0.69, "found values that are not whole, as logarithms are, in 1 of 12 features: CD4"),
    ],
)
def test_what_is_no_count_is_refused(counts, form, value, message):
    counts[7, 2] = value
    adata = ad.AnnData(form(counts), var=pd.DataFrame(index=["CD3", "CD8", "CD4", *map(str, range(9))]))
    with pytest.raises(ValueError, match=message):
        clr(adata)


def test_ratios_are_not_taken_twice_and_data_must_be_there(counts):
    adata = ad.AnnData(counts)
    with pytest.raises(ValueError, match="found a view"):
        clr(adata[:5])
    with pytest.raises(KeyError, match="`layer` to name a layer"):
        clr(adata, layer="counts")
    with pytest.raises(ValueError, match=r"values in adata.X, found none"):
        clr(ad.AnnData(obs=adata.obs, var=adata.var))
    clr(adata)
    with pytest.raises(ValueError, match="not whole"):
        clr(adata)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool"])
def test_counts_in_small_types_give_what_float32_gives(counts, form, dtype):
    small = (counts % 100).astype(dtype)
    adata, expected = ad.AnnData(form(small)), ad.AnnData(form(small.astype(np.float32)))
    clr(adata)
    clr(expected)
    assert adata.X.dtype == np.float32
    found, wanted = (one.X.toarray() if sparse.issparse(one.X) else one.X for one in (adata, expected))
    np.testing.assert_array_equal(found, wanted)
