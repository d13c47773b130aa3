"""A site's own data, and its folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy.sparse import csr_matrix, issparse

from scinfl import _data_files
from scinfl._checks import layers_of
from scinfl.privacy.keys import joined

_ROWS = 4096  # that are compared at once


def read_data(data: str | os.PathLike[str] | AnnData | MuData) -> AnnData | MuData:
    """A copy of data in memory, or those of a file."""
    if isinstance(data, AnnData | MuData):
        return data.copy()
    return _data_files.read_data(Path(data))


def fingerprint_of(data: AnnData | MuData) -> str:
    """Hash of values and names; the same data have the same one, however stored and whatever is written beside them."""
    digest = hashlib.sha256()
    for name, own in sorted(data.mod.items()) if isinstance(data, MuData) else [("", data)]:
        digest.update(joined(name, *map(str, own.obs_names)) + joined(*map(str, own.var_names)))
        for matrix in (own.X, *(own.layers[layer] for layer in sorted(layers_of(own)))):
            if matrix is None or matrix.dtype.kind not in "biuf":
                digest.update(b"none")  # what is no number is refused where a site sets up its data
                continue
            by_row = csr_matrix(matrix) if issparse(matrix) else matrix
            for start in range(0, own.n_obs, _ROWS):
                rows = csr_matrix(by_row[start : start + _ROWS])
                rows.sum_duplicates()  # and sorts
                rows.eliminate_zeros()
                for part, kind in ((rows.data, "<f8"), (rows.indices, "<i8"), (rows.indptr, "<i8")):
                    digest.update(np.ascontiguousarray(part, kind).data)
    return digest.hexdigest()


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that the copy appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class BusyError(RuntimeError):
    """Another process of this site is at work."""


@contextmanager
def alone(kit: Path) -> Iterator[None]:
    """One process a site at a time: two would overwrite each other's journal."""
    with (kit / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"Expected no other process of this site, found one at work in '{kit}'. Wait for it, or stop it."
            raise BusyError(msg) from None
        yield
