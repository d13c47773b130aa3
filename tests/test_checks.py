"""Values and columns of any type and container, as all models and functions read them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl._checks import (
    as_numbers,
    complete_column,
    finite,
    gene_names,
    indexable,
    missing,
    new_path,
    obs_column,
    values_of,
)


@pytest.mark.parametrize("kind", ["?", "u1", "i1", "i2", "u2", "f2", ">f4", ">i4", ">f8", "i8", "f4"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_values_of_any_type_and_container_are_numbers_to_compute_with(kind, form):
    plain = np.random.default_rng(0).poisson(0.6, (6, 5)).clip(0, 1)
    given = plain.astype(kind)
    if (kind == "f2" and form is not np.asarray) or (kind[0] == ">" and form is not np.asarray):
        matrix = form(plain.astype("f4"))
        matrix.data = matrix.data.astype(kind)  # scipy itself refuses such types, files do not
    else:
        matrix = form(given)
    found = as_numbers(matrix)
    assert found.dtype.isnative
    assert found.dtype.itemsize >= 4
    if form is not np.asarray:
        assert found.format == "csr"
        found = found.toarray()
    np.testing.assert_array_equal(found, plain)


def test_plain_values_are_not_copied():
    dense, rows = np.ones((3, 2), np.float32), sparse.random(5, 4, 0.5, "csr", np.float32)
    assert as_numbers(dense) is dense
    assert as_numbers(rows) is rows


def test_masked_values_are_missing_and_repeated_entries_are_summed():
    masked = np.ma.masked_array(np.array([[1, 999], [2, 3]], np.int16), [[False, True], [False, False]])
    np.testing.assert_array_equal(values_of(ad.AnnData(masked), None), [[1, np.nan], [2, 3]])
    twice = sparse.csr_matrix((np.array([1.0, 2, 4]), np.array([1, 1, 0]), np.array([0, 2, 3])), (2, 2))
    np.testing.assert_array_equal(as_numbers(twice).data, [3, 4])
    assert twice.nnz == 3  # the data were not touched
    with pytest.raises(TypeError, match=r"Expected numbers, found values of type <U1. Convert them"):
        as_numbers(np.array([["a"]]))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("cell", [0, 90])
def test_a_missing_value_is_named_by_its_feature_in_every_container(form, cell):
    values = np.ones((100, 4), np.float32)
    values[cell, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 missing \(NaN\) in 1 features: c\. Drop these features or impute them\.$"):
        finite(form(values), list("abcd"))


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["a", None, "b"]),
        pd.Series(["a", np.nan, "b"], dtype=object),
        pd.Series(["a", pd.NA, "b"], dtype="string"),
        pd.Series(pd.Categorical(["a", None, "b"])),
        pd.Series(pd.Categorical(["a", "nan", "b"])),
        pd.Series(["a", "<NA>", "b"]),
        pd.Series([1.0, np.nan, 2]),
        pd.Series([1, pd.NA, 2], dtype="Int64"),
        pd.Series([True, pd.NA, False], dtype="boolean"),
        pd.Series(pd.to_datetime(["2020-01-01", None, "2021-01-01"])),
    ],
    ids=lambda column: str(column.dtype),
)
def test_missing_values_of_any_type_are_refused_in_a_column(column):
    assert missing(column).tolist() == [False, True, False]
    adata = ad.AnnData(np.ones((3, 1), np.float32), pd.DataFrame({"batch": column.set_axis(list("xyz"))}))
    with pytest.raises(ValueError, match=r"Expected a batch for every row in adata.obs\['batch'\], found 1 without"):
        complete_column(adata, "batch", "batch_key", "a batch for every row")


def test_arrow_columns_have_missing_values_too():
    pytest.importorskip("pyarrow")
    assert missing(pd.Series(["a", None], dtype="string[pyarrow]")).tolist() == [False, True]


def test_a_column_that_occurs_twice_and_a_gene_without_a_name_are_refused():
    obs = pd.DataFrame([["a", "b"]], columns=["label", "label"], index=["x"])
    adata = ad.AnnData(np.ones((1, 2), np.float32), obs, pd.DataFrame({"symbol": ["A", None]}, index=["g", "h"]))
    with pytest.raises(ValueError, match=r"Expected one column 'label' in adata\.obs, found 2. Drop or rename"):
        obs_column(adata, "label", "labels_key")
    with pytest.raises(ValueError, match=r"a name of every gene in adata.var\['symbol'\], found 1 without"):
        gene_names(adata, "symbol")
    assert gene_names(adata, None).tolist() == ["g", "h"]


def test_a_path_below_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Expected a folder to write '.*run' to, found a file at '.*file'"):
        new_path(tmp_path / "file" / "run", overwrite=False)
    assert new_path(tmp_path / "new" / "run", overwrite=False) == tmp_path / "new" / "run"


@pytest.mark.parametrize("dtype", ["f2", ">f4"])
def test_rows_and_columns_of_types_that_scipy_refuses_can_be_taken(dtype, tmp_path):
    plain = np.arange(12.0).reshape(4, 3)
    odd = sparse.csr_matrix(plain)
    odd.data = odd.data.astype(dtype)
    adata = ad.AnnData(odd, layers={"own": odd})
    other = indexable(adata, inplace=False)
    np.testing.assert_array_equal(other[:, [2, 0]].X.toarray(), plain[:, [2, 0]])
    np.testing.assert_array_equal(other[:, [2, 0]].layers["own"].toarray(), plain[:, [2, 0]])
    assert adata.X.dtype == dtype
    ad.AnnData(adata.X).write_h5ad(tmp_path / "odd.h5ad")
    backed = ad.read_h5ad(tmp_path / "odd.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"Expected values that can be read from .*odd\.h5ad.*Write them as float32"):
        values_of(backed, None)
    backed.file.close()
    assert indexable(adata, inplace=True) is adata
    assert adata.X.dtype == np.float32
    assert indexable(adata, inplace=False) is adata
