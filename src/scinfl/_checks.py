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

from scinfl._spelling import argument, spelled

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
    if column not in adata.obs:
        msg = (
            f"Expected {argument(name)} to name a column of adata.obs, found {column!r}. "
            f"Columns are {first_of(list(map(str, adata.obs.columns)), 20)}."
        )
        raise KeyError(msg)
    return adata.obs[column]


def values_of(adata: AnnData, layer: str | None) -> Any:
    """X or a layer; a backed X is read whole."""
    if layer is not None and layer not in adata.layers:
        msg = (
            f"Expected {argument('layer')} to name a layer of adata, found {layer!r}. Layers are {list(adata.layers)}."
        )
        raise KeyError(msg)
    values = adata.layers[layer] if layer is not None else adata.to_memory().X if adata.isbacked else adata.X
    if values is None:
        msg = f"Expected values in adata.X, found none. Name a layer with {argument('layer')}."
        raise ValueError(msg)
    return values


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


def finite(matrix: Any, names: Sequence[str], *, allow_nan: bool = False, where: str = "") -> None:
    """Refuse a matrix with infinite values, and with NaN unless allowed; names the features where they are."""
    values = matrix.data if sparse.issparse(matrix) else matrix
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(np.sum(values, dtype=np.float64))):
            return
    nan, infinite = _count_by_column(matrix, np.isnan), _count_by_column(matrix, np.isinf)
    for counts, what, refused in ((infinite, "infinite", True), (nan, "missing (NaN)", not allow_nan)):
        if refused and counts.any():
            columns = [str(names[int(index)]) for index in np.flatnonzero(counts)]
            or_zero = "" if what == "infinite" else spelled(", or set up with `missing='zero'`")
            msg = (
                f"Expected finite values{where}, found {int(counts.sum())} {what} in {len(columns)} features: "
                f"{first_of(columns)}. Drop these features or impute them{or_zero}."
            )
            raise ValueError(msg)


def new_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuse a path that exists, unless it may be overwritten."""
    path = Path(path)
    if path.exists() and not overwrite:
        cure = f"Name another path{spelled(', or pass `overwrite=True`')}."
        msg = f"Expected nothing at '{path}', found something. {cure}"
        raise FileExistsError(msg)
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
        return np.bincount(matrix.indices[test(matrix.data)], minlength=matrix.shape[1])
    return test(matrix).sum(0)


def read_data(path: Path, kind: str | None = None) -> Any:
    """Read an h5mu file where the name ends so, else h5ad, or the ``kind``; the error names what is wrong with it."""
    import anndata as ad
    import mudata as md

    kind = kind or ("h5mu" if path.suffix == ".h5mu" else "h5ad")
    if not path.is_file():
        msg = f"Expected an {kind} file at '{path}', found none. Check the path."
        raise FileNotFoundError(msg)
    try:
        return md.read_h5mu(path) if kind == "h5mu" else ad.read_h5ad(path)
    except (OSError, ValueError, KeyError) as error:
        msg = f"Expected an {kind} file at '{path}', found one that cannot be read ({error})."
        raise ValueError(msg) from error


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside scinfl that led here."""
    frame, stacklevel = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"scinfl", "contextlib"}:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)
