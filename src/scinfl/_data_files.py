"""Files of AnnData and MuData: h5ad, h5mu and zarr, read and written whole or not at all."""

from __future__ import annotations

import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from scinfl._checks import first_of, new_path, one_of


def read_data(path: Path, kind: str | None = None) -> Any:
    """Read an h5mu file where the name ends so, a zarr store, else h5ad, or the ``kind``.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is missing, of another kind or damaged; the error names what was found.
    """
    import anndata as ad
    import mudata as md

    kind = kind or _kind_of(path)
    if not path.exists():
        msg = f"Expected an {kind} file at '{path}', found none. Check the path."
        raise FileNotFoundError(msg)
    if found := _other_kind(path, kind):
        msg = f"Expected an {kind} file at '{path}', found {found}"
        raise ValueError(msg)
    try:
        if path.is_dir():
            return md.read_zarr(path) if kind == "h5mu" else ad.read_zarr(path)
        return md.read_h5mu(path) if kind == "h5mu" else ad.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"Expected an {kind} file at '{path}', found one that cannot be read ({error})."
        raise ValueError(msg) from error


def without_pull() -> AbstractContextManager[Any]:
    """Make or update MuData without columns of modalities in its own tables, as mudata from 0.4 always does."""
    import mudata as md

    return md.set_options(pull_on_update=False) if hasattr(md, "set_options") else nullcontext()


def write_data(data: Any, path: Path) -> None:
    """Write an AnnData or MuData as h5ad, h5mu or zarr, or a data frame as csv, in place of what is there."""
    temporary = path.with_name(f".{path.name}.part{path.suffix}")
    _remove(temporary)
    try:
        if path.suffix == ".csv":
            data.to_csv(temporary)
        elif path.suffix == ".zarr":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Writing zarr v2 data", UserWarning)
                data.write_zarr(temporary)
        else:
            data.write(temporary)
        if path.is_dir():
            _remove(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def check_output(path: Path, endings: tuple[str, ...], *, overwrite: bool) -> None:
    """Refuse before any work is done what could not be written after it."""
    one_of("--out (ending)", path.suffix, endings)
    new_path(path, overwrite=overwrite)
    if path.is_dir() and not _is_zarr(path):
        msg = f"Expected a zarr store to overwrite at '{path}', found another folder. Name another path."
        raise FileExistsError(msg)
    if path.suffix == ".zarr" and path.is_file():
        msg = f"Expected a zarr store to overwrite at '{path}', found a file. Name another path."
        raise FileExistsError(msg)
    if not path.parent.is_dir():
        msg = f"Expected an existing folder for `--out`, found none at '{path.parent}'. Create it first."
        raise FileNotFoundError(msg)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def _kind_of(path: Path) -> str:
    if path.is_dir() and (path / "mod").is_dir():
        return "h5mu"
    return "h5mu" if path.suffix == ".h5mu" else "h5ad"


def _other_kind(path: Path, kind: str) -> str | None:
    """What a path holds in place of a file of this kind, and the cure."""
    import h5py

    if path.is_dir():
        if not _is_zarr(path):
            return "a folder that is no zarr store. Check the path."
        return _other_content({part.name for part in path.iterdir()}, path, kind, _names_in(path / "mod"))
    with path.open("rb") as start:
        if start.read(2) == b"\x1f\x8b":
            return f"a compressed one. Unpack it first: `gunzip --keep {path.name}`."
    if not h5py.is_hdf5(path):
        return "a file of another kind, or a damaged one. Read it with scanpy or pandas and write an AnnData."
    try:
        with h5py.File(path) as file:
            return _other_content(set(file), path, kind, list(file["mod"]) if "mod" in file else [])
    except OSError as error:
        return f"a damaged one ({error}). Copy or download it again."


def _names_in(folder: Path) -> list[str]:
    return [part.name for part in folder.iterdir() if part.is_dir()] if folder.is_dir() else []


def _other_content(inside: set[str], path: Path, kind: str, modalities: list[str]) -> str | None:
    if kind == "h5mu" and "mod" not in inside:
        return "one without modalities. Name an AnnData file '.h5ad'."
    if kind == "h5ad" and "mod" in inside:
        one, read = (modalities or ["rna"])[0], "read_zarr" if path.is_dir() else "read_h5mu"
        return f"a MuData file. Take one modality: `mudata.{read}('{path.name}')['{one}'].write_h5ad('{one}.h5ad')`."
    if kind == "h5ad" and not {"obs", "var"} <= inside:
        found = first_of(sorted(inside)) or "nothing"
        return f"a file of another kind, which holds {found}. Read it with scanpy and write an AnnData."
    return None
