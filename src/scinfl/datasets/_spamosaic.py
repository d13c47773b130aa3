"""Published sections of one tissue, profiled with different modalities."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from pathlib import Path, PurePosixPath

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import first_of, layers_of, one_of
from scinfl._data_files import without_pull
from scinfl.datasets._archive import existing, names_in, readable, take
from scinfl.datasets._record import zenodo

_RECORDS = (12654113, 16925549)
_FILE = re.compile(r"s(\d+)_adata_([a-z0-9]+)\.h5ad", re.IGNORECASE)
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")


def spamosaic(
    tissue: str = "Human_tonsil",
    path: str | os.PathLike[str] | None = None,
    *,
    task: str = "integration",
    record: int = 12654113,
    progress: bool = True,
) -> MuData:
    """Spatial multi-omics sections of the SpaMosaic paper, as one MuData: a section is a site.

    The authors of SpaMosaic (Yan et al.) keep their simulated, in-house and public sections at Zenodo, as one archive
    per task with files ``TISSUE/slice1/s1_adata_rna.h5ad``: human tonsil and lymph node (Visium, RNA and proteins),
    mouse brain and embryo (RNA, accessibility, histone marks) and simulations. Which tissues an archive holds is read
    from it; an error for a name that is not there lists those that are. The archive is downloaded once (that of
    imputation has 487 MB, that of integration more) and checked with the checksum that the record states.

    Parameters
    ----------
    tissue
        Folder in the archive, or the end of its path, such as ``"dataset1/replicate1"``; case does not matter.
    path
        The archive, or the folder that it unpacks to, if you have it. Nothing is downloaded then.
    task
        Archive of the record: ``"integration"`` or ``"imputation"``.
    record
        Number at Zenodo: 12654113, or 16925549, which goes with the INFL paper.
    progress
        Show a progress bar of the download.

    Returns
    -------
    MuData, a modality for each kind of file (``"rna"``, ``"adt"``, ``"atac"``, …), features × all its sections that
    have them in common. ``.obs["section"]`` and ``["site"]`` are ``"section_1"``, …; spots are called
    ``"section_1:BARCODE"`` in all modalities; ``.obsm["spatial"]`` holds the published coordinates. Columns of the
    files that all sections of a modality have are kept in it, and those that all modalities have in ``.obs``, such as
    ``"final_annot"``, the experts' regions. A feature other than RNA that shares its name with one of another modality
    is called ``"adt:NAME"``.

    Raises
    ------
    ConnectionError
        If the record or the file cannot be downloaded; the message states what to do by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If the tissue is not there, the file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> mdata = si.datasets.spamosaic("Human_tonsil")  # doctest: +SKIP
    >>> si.model.SpaMosaic.setup_mudata(mdata, section_key="section", site_key="site")  # doctest: +SKIP
    """
    if path is None:
        one_of("task", task, ["integration", "imputation"])
        one_of("record", record, _RECORDS)
        path = _archive(record, task, progress=progress)
    path = existing(path, "the archive of SpaMosaic's sections or its folder", or_folder=True)
    files = _sections(names_in(path), tissue, path)
    with tempfile.TemporaryDirectory() as folder:
        paths = take(path, files.values(), Path(folder))
        parts = {which: _read(paths[name], *which) for which, name in files.items()}
    return _join(parts)


def _archive(record: int, task: str, *, progress: bool) -> Path:
    """The archive of a task; a record with one archive has all in it."""
    listed = zenodo(record)
    archives = [file for file in listed.files if file.name.lower().endswith(_ENDINGS)]
    fitting = archives if len(archives) == 1 else [file for file in archives if task in file.name.lower()]
    if len(fitting) != 1:
        names = first_of([file.name for file in listed.files], 20) or "no files"
        msg = (
            f"Expected one archive with '{task}' in its name in {listed.page}, found {len(fitting)} among {names}. "
            "Fetch the one you need with a browser and pass its `path`."
        )
        raise ValueError(msg)
    return listed.fetch(fitting[0], progress=progress)


def _sections(names: list[str], tissue: str, path: Path) -> dict[tuple[int, str], str]:
    """Files of a tissue by number of the section and modality."""
    wanted = f"/{tissue.strip('/').lower()}/"
    files: dict[tuple[int, str], str] = {}
    there = set()
    for name in names:
        if (match := _FILE.fullmatch(PurePosixPath(name).name)) is None:
            continue
        folder = _without_slice(PurePosixPath(name).parent)
        there.add(folder.as_posix())
        if not f"/{folder.as_posix().lower()}/".endswith(wanted):
            continue
        which = int(match[1]), match[2].lower()
        if which in files:
            msg = (
                f"Expected one file of each section and modality of '{tissue}' in '{path}', found '{files[which]}' and "
                f"'{name}'. Name more of the path in `tissue`."
            )
            raise ValueError(msg)
        files[which] = name
    if not files:
        msg = (
            f"Expected a folder '{tissue}' with files 's1_adata_rna.h5ad', … in '{path}', found "
            f"{first_of(sorted(there), 30) or 'no such files'}. Name one of these as `tissue`, or pass another `path`."
        )
        raise ValueError(msg)
    return dict(sorted(files.items()))


def _without_slice(folder: PurePosixPath) -> PurePosixPath:
    return folder.parent if re.fullmatch(r"(slice|section)_?\d+", folder.name, re.IGNORECASE) else folder


def _read(path: Path, section: int, modality: str) -> AnnData:
    """One modality of one section, without the authors' own results."""
    with readable(path, "an h5ad file", OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files were written by an old anndata
        published = ad.read_h5ad(path)
    if "spatial" not in published.obsm:
        msg = (
            f"Expected coordinates in .obsm['spatial'] of section {section} ({modality}), found "
            f"{first_of(list(published.obsm)) or 'none'}. Pass the published files."
        )
        raise ValueError(msg)
    adata = AnnData(published.X, published.obs.copy(), pd.DataFrame(index=published.var_names.astype(str)))
    adata.layers.update(layers_of(published))
    adata.var_names_make_unique()
    name = f"section_{section}"
    adata.obs_names = [f"{name}:{barcode}" for barcode in published.obs_names]
    adata.obs["section"] = adata.obs["site"] = name
    adata.obsm["spatial"] = np.asarray(published.obsm["spatial"], dtype=float)
    return adata


def _join(parts: dict[tuple[int, str], AnnData]) -> MuData:
    mods = {}
    for modality in dict.fromkeys(modality for _, modality in parts):
        sections = [adata for (_, name), adata in parts.items() if name == modality]
        joined = ad.concat(sections, join="inner", merge="same")
        if joined.n_vars == 0:
            msg = (
                f"Expected features that all {len(sections)} sections of '{modality}' have in common, found none. "
                "Pass a folder with fewer sections as `path`."
            )
            raise ValueError(msg)
        for column in ("section", "site"):
            joined.obs[column] = joined.obs[column].astype("category")
        mods[modality] = joined
    _rename_shared_features(mods)
    with without_pull():
        mdata = MuData(mods)
    obs = pd.concat([adata.obs for adata in mods.values()], join="inner")
    places = pd.DataFrame(np.concatenate([adata.obsm["spatial"] for adata in mods.values()]), obs.index)
    first = ~obs.index.duplicated()
    mdata.obs = obs[first].loc[mdata.obs_names]
    for column in ("section", "site"):
        mdata.obs[column] = mdata.obs[column].astype("category")
    mdata.obsm["spatial"] = places[first].loc[mdata.obs_names].to_numpy()
    return mdata


def _rename_shared_features(mods: dict[str, AnnData]) -> None:
    """A protein and its gene may share a name, which MuData warns of."""
    for modality, adata in mods.items():
        others = {name for other in mods if other != modality for name in mods[other].var_names}
        if modality != "rna":
            adata.var_names = [f"{modality}:{name}" if name in others else name for name in adata.var_names]
