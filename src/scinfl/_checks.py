"""Argument checks whose messages name what was expected, what was found and the cure."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scinfl._mapped import is_on_file, mapped
from scinfl._spelling import argument, spelled

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


_MISSING_TEXTS = ("nan", "NaN", "<NA>", "NaT")


def one_of(name: str, value: object, options: Iterable[object]) -> None:
    """Refuse a value that is not among the options."""
    options = list(options)
    if value not in options:
        msg = f"Expected {argument(name)} to be one of {options}, found {value!r}."
        raise ValueError(msg)


def whole_number(name: str, value: object, minimum: int) -> None:
    """Refuse anything but a whole number from ``minimum``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < minimum:
        msg = f"Expected {argument(name)} to be a whole number from {minimum}, found {value!r}."
        raise ValueError(msg)


def number_between(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse anything but a number in [low, high] (or (low, high] with ``open_low``)."""
    fits = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (open_low and value == low):
        above = "above" if open_low else "from"
        msg = f"Expected {argument(name)} to be a number {above} {low} to {high}, found {value!r}."
        raise ValueError(msg)


def obs_column(adata: AnnData, column: str, name: str) -> pd.Series:
    """Look up a column of ``adata.obs``."""
    return _column(adata.obs, column, name, "adata.obs")


def complete_column(adata: AnnData, column: str, name: str, what: str, cure: str = "Fill or drop them.") -> pd.Series:
    """Look up a column of ``adata.obs`` that must say ``what`` ("a site for every row") without gaps."""
    found = obs_column(adata, column, name)
    if n := int(missing(found).sum()):
        msg = f"Expected {what} in adata.obs['{column}'], found {n} without. {cure}"
        raise ValueError(msg)
    return found


def missing(column: pd.Series) -> pd.Series:
    """Which values are missing: NaN, None, NA of any type, and the texts that these become."""
    return column.isna() | column.isin(_MISSING_TEXTS)


def gene_names(adata: AnnData, gene_key: str | None) -> pd.Index:
    """Names of genes as text, from a column of ``adata.var`` if one is named."""
    import pandas as pd

    if gene_key is None:
        return adata.var_names.astype(str)
    names = _column(adata.var, gene_key, "gene_key", "adata.var")
    if n := int(names.isna().sum()):
        msg = f"Expected a name of every gene in adata.var['{gene_key}'], found {n} without. Fill or drop them."
        raise ValueError(msg)
    return pd.Index(names.astype(str))


def _column(table: pd.DataFrame, column: str, name: str, where: str) -> pd.Series:
    if column not in table:
        msg = (
            f"Expected {argument(name)} to name a column of {where}, found {column!r}. "
            f"Columns are {first_of(list(map(str, table.columns)), 20)}."
        )
        raise KeyError(msg)
    if (n := int((table.columns == column).sum())) > 1:
        msg = f"Expected one column {column!r} in {where}, found {n}. Drop or rename the others."
        raise ValueError(msg)
    return table[column]


def values_of(adata: AnnData, layer: str | None) -> Any:
    """X or a layer, as :func:`as_numbers` gives it; in a memory map where it is in a file."""
    if layer is not None and layer not in adata.layers:
        known = list(layers_of(adata))
        msg = f"Expected {argument('layer')} to name a layer of adata, found {layer!r}. Layers are {known}."
        raise KeyError(msg)
    try:
        values = adata.layers[layer] if layer is not None else adata.X
        if is_on_file(values):
            return mapped(values, as_numbers)
    except ValueError as error:  # sparse float16 and foreign byte orders
        where = f"'{adata.filename}'" if adata.filename else "a file"
        msg = f"Expected values that can be read from {where} by rows, found: {error} Write them as float32."
        raise ValueError(msg) from error
    if values is None:
        msg = f"Expected values in adata.X, found none. Name a layer with {argument('layer')}."
        raise ValueError(msg)
    return as_numbers(values)


def with_mapped_values(adata: AnnData) -> AnnData:
    """The data themselves, or where their X is in a file, others that have it in a memory map."""
    if not is_on_file(adata.X):
        return adata
    from anndata import AnnData

    parts = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "obsp")}
    return AnnData(values_of(adata, None), adata.obs, adata.var, layers=layers_of(adata), **parts)


def layers_of(adata: AnnData) -> dict[str, Any]:
    """Layers by name, without X, which is among them since anndata 0.13."""
    return {name: values for name, values in adata.layers.items() if name is not None}


def as_numbers(values: Any) -> Any:
    """Dense array or compressed sparse rows in a type to compute with; masked values are NaN.

    Small types (bool, 8 and 16 bits) become float32, in which sums and logarithms neither overflow nor round to half
    precision. What can be shared with ``values`` is not copied.
    """
    if not sparse.issparse(values):
        values = unmasked(values)
        return values.astype(_computable(values.dtype), copy=False)
    if values.format not in {"csr", "csc"}:
        values = values.tocsr()
    if (dtype := _computable(values.dtype)) != values.dtype:
        values = type(values)((values.data.astype(dtype), values.indices, values.indptr), shape=values.shape)
    values = values.tocsr()
    if not values.has_canonical_format:  # a cell lists a gene twice: logarithms must see the sum
        values = values.copy()
        values.sum_duplicates()
    return values


def indexable(adata: AnnData, *, inplace: bool) -> AnnData:
    """AnnData whose rows and columns can be taken.

    Scipy refuses that for sparse float16 and foreign byte orders: such values get the type to compute with, in place or
    in a copy.
    """
    matrices: dict[str | None, Any] = {None: adata.X}
    matrices.update(layers_of(adata).items())
    odd = [
        name
        for name, values in matrices.items()
        if sparse.issparse(values) and (values.dtype == np.float16 or not values.dtype.isnative)
    ]
    if not odd:
        return adata
    made = {name: as_numbers(matrices[name]) for name in odd}
    if not inplace:
        from anndata import AnnData

        rest = {name: values for name, values in {**matrices, **made}.items() if name is not None}
        parts = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "obsp")}
        return AnnData(made.get(None, adata.X), adata.obs, adata.var, layers=rest, **parts)
    for name, values in made.items():
        if name is None:
            adata.X = values
        else:
            adata.layers[name] = values
    return adata


def unmasked(values: Any) -> np.ndarray:
    """Dense array in which masked values are NaN."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.result_type(values.dtype, np.float32)), np.nan)
    return np.asarray(values)


def _computable(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "biuf":
        msg = f"Expected numbers, found values of type {dtype}. Convert them, for example with `.astype('float32')`."
        raise TypeError(msg)
    if dtype.itemsize <= 2:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")


def same_features(found: Sequence[str], expected: Sequence[str], what: str = "adata.var_names") -> None:
    """Refuse features that are missing, added or in another order."""
    found, expected = list(map(str, found)), list(map(str, expected))
    if found == expected:
        return
    if missing := [name for name in expected if name not in set(found)]:
        msg = (
            f"Expected the {len(expected)} features that the model was trained on in {what}, found "
            f"{len(missing)} of them missing: {first_of(missing)}. Measure or impute them, or train on shared features."
        )
    else:
        how = "in another order" if len(found) == len(expected) else f"among {len(found)} others or in another order"
        msg = (
            f"Expected the model's {len(expected)} features in {what} in their order, found them {how}. "
            "Reorder with `adata = adata[:, model.var_names].copy()`."
        )
    raise ValueError(msg)


def finite(matrix: Any, names: Sequence[str], *, allow_nan: bool = False, where: str = "", nan_cure: str = "") -> None:
    """Refuse a matrix with infinite values, and with NaN unless allowed; names the features where they are.

    ``nan_cure`` is what else may be done with NaN, where the caller has an argument for it.
    """
    values = matrix.data if sparse.issparse(matrix) else matrix
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(np.sum(values, dtype=np.float64))):
            return
    nan, infinite = _count_by_column(matrix, np.isnan), _count_by_column(matrix, np.isinf)
    for counts, what, refused in ((infinite, "infinite", True), (nan, "missing (NaN)", not allow_nan)):
        if refused and counts.any():
            columns = [str(names[int(index)]) for index in np.flatnonzero(counts)]
            or_else = "" if what == "infinite" else spelled(nan_cure)
            msg = (
                f"Expected finite values{where}, found {int(counts.sum())} {what} in {len(columns)} features: "
                f"{first_of(columns)}. Drop these features or impute them{or_else}."
            )
            raise ValueError(msg)


def new_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuse a path that exists, unless it may be overwritten, and one that cannot be written."""
    path = Path(path)
    if path.exists() and not overwrite:
        cure = f"Name another path{spelled(', or pass `overwrite=True`')}."
        msg = f"Expected nothing at '{path}', found something. {cure}"
        raise FileExistsError(msg)
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        found = "a folder that may not be written to" if parent.is_dir() else "a file"
        msg = f"Expected a folder to write '{path}' to, found {found} at '{parent}'. Name another path."
        raise OSError(msg)
    return path


def first_of(names: Sequence[str], n: int = 5) -> str:
    """The first few of many names, as text."""
    names = list(map(str, names))
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def looks_like_counts(matrix: Any, *, n_rows: int = 500, above: float = 30) -> bool:
    """Whether the first rows hold non-negative whole numbers up to more than 30 (logs of counts stay below)."""
    head = matrix[:n_rows]
    values = np.asarray(head.data if sparse.issparse(head) else head)
    return bool(values.size and values.max() > above and values.min() >= 0 and np.array_equal(values, np.floor(values)))


def _count_by_column(matrix: Any, test: Any) -> np.ndarray:
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()  # the indices of compressed columns are rows
        return np.bincount(matrix.indices[test(matrix.data)], minlength=matrix.shape[1])
    return test(matrix).sum(0)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside scinfl that led here."""
    frame, stacklevel = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"scinfl", "contextlib"}:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)
