"""A site's own data, and its folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from anndata import AnnData

from scinfl._checks import read_h5ad


def read_data(data: str | os.PathLike[str] | AnnData) -> AnnData:
    """A copy of data in memory, or those of a file."""
    return data.copy() if isinstance(data, AnnData) else read_h5ad(Path(data))


def as_text(adata: AnnData, column: str | None) -> AnnData:
    """Labels as text, as they are compared over sites."""
    if column is not None and column in adata.obs:
        own = adata.obs[column]
        adata.obs[column] = pd.Categorical(own.astype(object).where(own.isna(), own.astype(str)))
    return adata


@contextmanager
def alone(kit: Path) -> Iterator[None]:
    """One process a site at a time: two would overwrite each other's journal."""
    with (kit / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"Expected no other process of this site, found one at work in '{kit}'. Wait for it, or stop it."
            raise RuntimeError(msg) from None
        yield
