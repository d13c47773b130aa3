"""A site's own data, and its folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anndata import AnnData
from mudata import MuData

from scinfl import _checks


def read_data(data: str | os.PathLike[str] | AnnData | MuData) -> AnnData | MuData:
    """A copy of data in memory, or those of a file."""
    if isinstance(data, AnnData | MuData):
        return data.copy()
    return _checks.read_data(Path(data))


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that the copy appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
