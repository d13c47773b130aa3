"""Values of a file in a memory map, so that a matrix larger than memory is used as one in memory is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from scipy import sparse

_VALUES_PER_BLOCK = 2**22


def is_on_file(values: Any) -> bool:
    """Whether a matrix is still in its h5ad file or zarr store."""
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(values, CSRDataset | CSCDataset):
        return True
    return (type(values).__module__.partition(".")[0], type(values).__name__) in {
        ("h5py", "Dataset"),
        ("zarr", "Array"),
    }


def mapped(values: Any, convert: Callable[[Any], Any]) -> Any:
    """Rows of a matrix of a file, converted block by block, in a memory map.

    The map is a file without a name in the folder for temporary files (``TMPDIR``), as large as the matrix without
    compression, and ends with the matrix. Rows are taken from it in any order as fast as from memory while they fit
    there; where they do not, the operating system drops some of them. Compressed columns are read whole, since every
    row of theirs is spread over the file.

    Parameters
    ----------
    values
        Backed sparse matrix of anndata, or a dense one of h5py or zarr.
    convert
        Turns a block of rows into numbers to compute with: a dense array, or compressed sparse rows.

    Returns
    -------
    Dense array or compressed sparse rows. Changes of its values do not reach the file.
    """
    if getattr(values, "format", "csr") == "csc":
        return convert(values.to_memory())
    n_rows, n_columns = values.shape
    step = max(1, _VALUES_PER_BLOCK // max(1, n_columns))
    n_stored = [np.zeros(1, np.int64)]
    with tempfile.TemporaryFile() as data, tempfile.TemporaryFile() as indices:
        for start in range(0, max(1, n_rows), step):
            block = convert(values[start : start + step])
            if sparse.issparse(block):
                block.data.tofile(data)
                block.indices.astype(np.int32, copy=False).tofile(indices)
                n_stored.append(np.diff(block.indptr).astype(np.int64))
            else:
                np.ascontiguousarray(block).tofile(data)
        if not sparse.issparse(block):
            return _map(data, block.dtype).reshape(values.shape)
        matrix = sparse.csr_matrix(values.shape, dtype=block.dtype)
        matrix.data, matrix.indices = _map(data, block.dtype), _map(indices, np.dtype(np.int32))
    indptr = np.cumsum(np.concatenate(n_stored))
    matrix.indptr = indptr.astype(np.int32) if indptr[-1] <= np.iinfo(np.int32).max else indptr
    return matrix


def _map(file: IO[bytes], dtype: np.dtype) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype, mode="c").view(np.ndarray) if file.tell() else np.empty(0, dtype)
