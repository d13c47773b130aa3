"""What a model file of scvi-tools holds of the cells that it was trained on."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd

from scinfl._checks import first_of

_LARGEST = 1 << 28
_CELLS_IN_WEIGHTS = re.compile(r"pseudo_?inputs|vamp|prior\.u$|mean_vprior")
_COLUMNS = ("entry", "shape", "finding")


class _Inert:
    """Stands for any object of a file: nothing of it is imported, made or called."""

    def __init__(self, *parts: Any, **_: Any) -> None:
        self.parts = parts
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *parts: Any) -> _Inert:
        return _Inert(*parts)

    def __setitem__(self, name: Any, value: Any) -> None:
        self.state = {**(self.state or {}), name: value} if isinstance(self.state, dict | None) else self.state

    def append(self, value: Any) -> None:
        """An entry of a list."""
        self.parts = (*self.parts, value)

    def extend(self, values: Any) -> None:
        """Entries of a list."""
        self.parts = (*self.parts, *values)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of an array of numpy, or a tensor of torch."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[1], tuple):
            return state[1]
        if len(self.parts) > 3 and isinstance(self.parts[2], tuple) and all(isinstance(n, int) for n in self.parts[2]):
            return self.parts[2]
        return None


class _Entries(dict):
    """Entries of a dictionary with attributes, which are left out."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Reader(pickle.Unpickler):
    """Reads the structure of a file without importing or calling what it names."""

    def find_class(self, module: str, name: str) -> Any:
        """Nothing of the file: an ordered dictionary is a dictionary, all else is inert."""
        return _Entries if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> _Inert:
        """Values of tensors stay where they are."""
        return _Inert(pid)


def inspect_model_file(path: str | os.PathLike[str]) -> pd.DataFrame:
    """List what a file that scvi-tools saved holds of single cells.

    ``save`` of scvi-tools writes attributes of the model beside its weights: a ``SCANVI`` the label of every training
    cell, others which cells were trained on; priors made of cells hold cells. The file is read without running
    anything that it names.

    Parameters
    ----------
    path
        ``model.pt``, or its folder.

    Returns
    -------
    One row per entry that is as long as the training cells, that holds names of labels or sites, or whose values are
    made of cells: ``entry``, ``shape`` and ``finding``. No row if there is none.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is none that scvi-tools saved.

    Examples
    --------
    >>> import scvi, scinfl as si, tempfile
    >>> adata = scvi.data.synthetic_iid()
    >>> scvi.model.SCANVI.setup_anndata(adata, labels_key="labels", unlabeled_category="unknown")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scvi.model.SCANVI(adata).save(folder, overwrite=True)
    ...     found = si.privacy.inspect_model_file(folder)
    >>> found.loc[found["entry"] == "attr_dict.labels_", "finding"].item()
    'one value for each of 400 training cells'
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*model.pt"))
        path = files[0] if files else path / "model.pt"
    if not path.is_file():
        msg = f"Expected a model of scvi-tools at '{path}', found none. Check the path."
        raise FileNotFoundError(msg)
    content = _structure(path)
    entries = list(_entries(content, ""))
    n_cells = {int(value) for name, value in entries if name.endswith("n_cells") and isinstance(value, int)}
    rows = []
    for name, value in entries:
        shape = value.shape if isinstance(value, _Inert) else (len(value),) if isinstance(value, list) else None
        if shape and shape[0] in n_cells:
            rows.append((name, shape, f"one value for each of {shape[0]} training cells"))
        elif shape and _CELLS_IN_WEIGHTS.search(name):
            rows.append((name, shape, "values that are made of cells"))
        elif shape and name.endswith("indices_") and prod(shape):
            rows.append((name, shape, "which cells were trained on or set aside"))
        elif shape and name.endswith("categorical_mapping"):
            rows.append((name, shape, "names of labels or sites"))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _structure(path: Path) -> Any:
    """What a file of torch holds, as dictionaries, lists and inert objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = _described(archive)
    except (
        StopIteration,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
    ) as error:
        msg = f"Expected a file that torch saved, found another ({type(error).__name__}): {first_of([str(path)])}."
        raise ValueError(msg) from error
    if not isinstance(content, dict) or "attr_dict" not in content:
        msg = f"Expected a model that scvi-tools saved, found another file of torch: {first_of([str(path)])}."
        raise ValueError(msg)
    return content


def _described(archive: zipfile.ZipFile) -> Any:
    """Structure that the description of an archive of torch gives."""
    inner = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
    if inner.file_size > _LARGEST:
        msg = f"Expected a description of at most {_LARGEST} bytes, found {inner.file_size}."
        raise ValueError(msg)
    with archive.open(inner) as file:
        return _Reader(file).load()


def _entries(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All entries with their paths."""
    if isinstance(value, _Inert) and isinstance(value.state, dict):
        value = value.state
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entries(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
