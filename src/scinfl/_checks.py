"""Argument checks whose messages name what was expected, what was found and the cure."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections import Counter
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


_MISSING_TEXTS = ("", "nan", "NaN", "None", "<NA>", "NaT")
"""What missing values become as text, by `astype(str)` or in a table of text."""


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


def an_anndata(value: object, name: str = "adata", kind: str = "AnnData") -> None:
    """Refuse what is no AnnData, or no MuData: a path, a table, the other of the two."""
    from anndata import AnnData
    from mudata import MuData

    if isinstance(value, MuData if kind == "MuData" else AnnData):
        return
    cures = {AnnData: "Make one of it: `mudata.MuData({'rna': adata})`", MuData: "Take one modality: `mdata['rna']`"}
    cures |= dict.fromkeys((str, Path), "Read the file first, for example with `scanpy.read_h5ad`")
    cure = next((cure for of, cure in cures.items() if isinstance(value, of)), "Make one, or pass the data it is from")
    article = "a" if kind == "MuData" else "an"
    msg = f"Expected {article} {kind} as {argument(name)}, found a {type(value).__name__}. {cure}."
    raise TypeError(msg)


def owns_data(adata: AnnData, *, in_memory: bool = False, where: str = "", of_mudata: bool = False) -> None:
    """Refuse what is no AnnData, a view (what is written into it is lost), and where values change, a file."""
    an_anndata(adata, where.removeprefix(" in ").strip("`") or "adata")
    if adata.is_view or (in_memory and adata.isbacked):
        found, cure = ("a view", "copy") if adata.is_view else ("a file", "to_memory")
        kind, name = ("a MuData", "mdata") if of_mudata else ("an AnnData", "adata")
        msg = f"Expected {kind} that owns its data, found {found}{where}. Run `{name} = {name}.{cure}()` first."
        raise ValueError(msg)


def obs_column(adata: AnnData, column: str, name: str) -> pd.Series:
    """Look up a column of ``adata.obs``."""
    if not hasattr(adata, "obs"):
        an_anndata(adata)
    return _column(adata.obs, column, name, "adata.obs")


def complete_column(adata: AnnData, column: str, name: str, what: str, cure: str = "Fill or drop them.") -> pd.Series:
    """Look up a column of ``adata.obs`` that must say ``what`` ("a site for every row") without gaps."""
    return complete(obs_column(adata, column, name), what, f"adata.obs['{column}']", cure)


def complete(column: pd.Series, what: str, where: str, cure: str = "Fill or drop them.") -> pd.Series:
    """Refuse a column with gaps, and one whose values are one as text though they are not (1 and "1")."""
    if n := int(missing(column).sum()):
        msg = f"Expected {what} in {where}, found {n} without. {cure}"
        raise ValueError(msg)
    of_one_type(column, where)
    return column


def complete_names(names: Any, name: str, n: int | None = None) -> np.ndarray:
    """Names of rows as text, given as a list, an array or a column; refuses gaps, and another number than ``n``."""
    import pandas as pd

    found = pd.Series(names, dtype=None if hasattr(names, "dtype") else object)
    if n is not None and len(found) != n:
        msg = f"Expected an entry of {argument(name)} for each of the {n} rows, found {len(found)}."
        raise ValueError(msg)
    complete(found, "a value for every row", argument(name), "Drop these rows first.")
    return found.astype(str).to_numpy(dtype=str)


def missing(column: pd.Series) -> pd.Series:
    """Which values are missing: NaN, None, NA of any type, and the texts that these become."""
    return column.isna() | column.isin(_MISSING_TEXTS)


def of_one_type(column: pd.Series, where: str) -> None:
    """Refuse text among other values, which no order holds and which may be equal as text."""
    if mixes_text(column):
        found = first_of(sorted({type(value).__name__ for value in column.dropna().unique()}))
        cure = f"Make them text with `{where} = {where}.astype(str)`"
        msg = f"Expected values of one type in {where}, found {found}. {cure}."
        raise ValueError(msg)


def told_apart(column: pd.Series, where: str) -> pd.Series:
    """Refuse texts that are equal but for spaces around them: "A" and "A "."""
    texts = {str(value) for value in column.dropna().unique()}
    if odd := sorted(text for text in texts if text != text.strip() and text.strip() in texts):
        found, cure = first_of(list(map(repr, odd))), f"Strip them with `{where} = {where}.str.strip()`"
        msg = f"Expected values that differ in more than spaces in {where}, found {found}. {cure}."
        raise ValueError(msg)
    return column


def is_continuous(column: pd.Series) -> bool:
    """Whether a column has numbers with decimals, or most rows have a value of their own."""
    import pandas as pd

    has_decimals = pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 != 0).any())
    return has_decimals or column.nunique() > max(2, len(column) / 2)


def mixes_text(column: pd.Series) -> bool:
    """Whether some values are text and others are not, which no file holds in one column."""
    values = column.dropna().unique() if column.dtype in ("object", "category") else []
    return len({isinstance(value, str) for value in values}) > 1


def unique(names: pd.Index, what: str, cure: str) -> None:
    """Refuse names of which one occurs twice."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        msg = f"Expected unique {what}, found {len(twice)} that occur more than once: {first_of(twice)}. {cure}"
        raise ValueError(msg)


def gene_names(adata: AnnData, gene_key: str | None) -> pd.Index:
    """Names of genes as text, from a column of ``adata.var`` if one is named."""
    import pandas as pd

    if gene_key is None:
        return adata.var_names.astype(str)
    names = _column(adata.var, gene_key, "gene_key", "adata.var")
    return pd.Index(complete(names, "a name of every gene", f"adata.var['{gene_key}']").astype(str))


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
    if hasattr(values, "compute"):  # of dask
        values = values.compute()
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
    known = set(found)
    if missing := [name for name in expected if name not in known]:
        cure = "Measure or impute them, or train on shared features."
        if len(missing) == len(expected):
            cure = f"Use names of the same kind: those of the data begin with {first_of(found, 3)}."
        msg = (
            f"Expected the {len(expected)} features that the model was trained on in {what}, found "
            f"{len(missing)} of them missing: {first_of(missing)}. {cure}"
        )
    elif len(known) < len(found):
        twice = [name for name, n in Counter(found).items() if n > 1]
        msg = f"Expected every feature once in {what}, found {len(twice)} several times: {first_of(twice)}."
    else:
        how = "in another order" if len(found) == len(expected) else f"among {len(found)} others or in another order"
        msg = (
            f"Expected the model's {len(expected)} features in {what} in their order, found them {how}. "
            "Reorder with `adata = adata[:, model.var_names].copy()`."
        )
    raise ValueError(msg)


def same_order(first: Any, second: Any, *names: str, axis: str = "index") -> None:
    """Refuse two tables or columns whose rows (or columns) have the same names in another order."""
    ours, theirs = ([*getattr(table, axis, ())] if hasattr(table, "to_numpy") else [] for table in (first, second))
    if ours != theirs and len(ours) == len(theirs) and set(ours) == set(theirs):
        cure = "reindex(first.index)" if axis == "index" else "[first.columns]"
        msg = (
            f"Expected {argument(names[0])} and {argument(names[1])} in one order, found the same names in another. "
            f"Sort one as the other, as in `second.{cure}`."
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
    """Refuse a path that exists, unless empty or to be overwritten, and one that cannot be written."""
    path = Path(path)
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty and not overwrite:
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


def warn_of_counts(matrix: Any, expected: str = "values on a log scale", or_else: str = "") -> None:
    """Warn of what looks like raw counts where logarithms are expected."""
    if looks_like_counts(matrix):
        warn(
            f"Expected {expected}, found what looks like raw counts. Run `sc.pp.normalize_total(adata)` and "
            f"`sc.pp.log1p(adata)` first{or_else}."
        )


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
