"""Read a published h5ad file, and refuse one that is damaged or lacks a column."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of
from scinfl.datasets._archive import readable


def read_h5ad(path: Path) -> AnnData:
    """Read a file, silently where an old anndata wrote it."""
    with readable(path, "an h5ad file", OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.read_h5ad(path)


def require_column(table: pd.DataFrame, place: str, column: str, path: Path, cure: str) -> None:
    """Refuse ``.obs`` or ``.var`` of a file without a column."""
    if column not in table:
        found = first_of(list(table), 20) or "none"
        msg = f"Expected the column '{column}' in {place} of '{path}', found {found}. {cure}"
        raise ValueError(msg)
