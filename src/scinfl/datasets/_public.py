"""Published perturbation screens, and the gene ontology that goes with them."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from scinfl.datasets._archive import DAMAGED, existing, only, readable, unpack
from scinfl.datasets._download import cache_folder, dataverse_url, fetch, one_at_a_time, verify
from scinfl.datasets._h5ad import read_h5ad, require_column

_SCREENS = {
    "norman": 6154020,
    "adamson": 6154417,
    "dixit": 6154416,
    "replogle_k562": 7458695,
    "replogle_rpe1": 7458694,
}
_ONTOLOGY = 6934319
_HASHES = {  # as several public records agree; of the other files the first download is remembered
    "norman.zip": "md5:cdc41d6050e619c37fd9dd44d440e2b4",
    "go_essential_all.tar.gz": "md5:b8bff0d53407f26648330d264df7fe16",
}
_MEMBER = "perturb_processed.h5ad"
_COLUMNS = ["source", "target", "importance"]
# tables that name genes by the ids that are no longer the names, or by condition
_RANKINGS = ("rank_genes_groups", "top_non_", "non_dropout_gene", "non_zeros_gene")


def norman(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """91,205 K562 cells × 5,045 genes: CRISPR activation of 105 single genes and 131 pairs of genes.

    The screen of Norman et al. (Science 365:786, 2019) as Roohani et al. prepared it for GEARS (Nature Biotechnology
    42:927, 2024): log-normalised expression of variable and perturbed genes. It is downloaded once (169 MB, unpacked
    2.2 GB) to the folder that the environment variable ``SCINFL_DATA`` names, else to the system's cache. The zip file
    there can be deleted afterwards.

    ``.obs["condition"]`` is ``"ctrl"``, ``"A+ctrl"``, ``"ctrl+A"`` or ``"A+B"``. ``.obs["cell_type"]`` is A549, an
    error of the published file. ``.var_names`` are the gene names (``.var["gene_name"]``, repeated ones with a
    number behind) and ``.var["gene_id"]`` the published ids. The published rankings of genes in ``.uns``
    (``rank_genes_groups…``, ``top_non_…``, ``non_dropout_gene_idx``, ``non_zeros_gene_idx``) are left out: they name
    genes by id, and :func:`scinfl.pp.perturbations` computes them from the expression.

    Parameters
    ----------
    path
        A file that you have: the published zip file, the ``perturb_processed.h5ad`` in it, or the folder of the latter.
        Nothing is downloaded then.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Raises
    ------
    ConnectionError
        If the file cannot be downloaded; the message states where to put it by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If the file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.norman()  # doctest: +SKIP
    >>> adata.obs["condition"].nunique()  # doctest: +SKIP
    284
    """
    return _screen("norman", path, progress=progress)


def adamson(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """68,603 K562 cells × 5,060 genes: CRISPR interference of 86 single genes of the unfolded protein response.

    The screen of Adamson et al. (Cell 167:1867, 2016) as prepared for GEARS. See :func:`norman` for what the fields
    hold, where the file is kept and which errors are raised.

    Parameters
    ----------
    path
        The published zip file, the ``perturb_processed.h5ad`` in it, or its folder, if you have one.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.adamson().shape  # doctest: +SKIP
    (68603, 5060)
    """
    return _screen("adamson", path, progress=progress)


def dixit(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """44,735 K562 cells × 5,012 genes: knock-outs of single transcription factors.

    The screen of Dixit et al. (Cell 167:1853, 2016) as prepared for GEARS. See :func:`norman` for what the fields hold,
    where the file is kept and which errors are raised.

    Parameters
    ----------
    path
        The published zip file, the ``perturb_processed.h5ad`` in it, or its folder, if you have one.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.dixit().shape  # doctest: +SKIP
    (44735, 5012)
    """
    return _screen("dixit", path, progress=progress)


def replogle_k562(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """162,751 K562 cells × 5,000 genes: CRISPR interference of 1,092 essential genes, one per cell.

    The screen of Replogle et al. (Cell 185:2559, 2022) as prepared for GEARS. See :func:`norman` for what the fields
    hold, where the file is kept and which errors are raised.

    Parameters
    ----------
    path
        The published zip file, the ``perturb_processed.h5ad`` in it, or its folder, if you have one.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.replogle_k562().shape  # doctest: +SKIP
    (162751, 5000)
    """
    return _screen("replogle_k562", path, progress=progress)


def replogle_rpe1(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """162,733 RPE1 cells × 5,000 genes: CRISPR interference of 1,543 essential genes, one per cell.

    The screen of Replogle et al. (Cell 185:2559, 2022) as prepared for GEARS. See :func:`norman` for what the fields
    hold, where the file is kept and which errors are raised.

    Parameters
    ----------
    path
        The published zip file, the ``perturb_processed.h5ad`` in it, or its folder, if you have one.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.replogle_rpe1().shape  # doctest: +SKIP
    (162733, 5000)
    """
    return _screen("replogle_rpe1", path, progress=progress)


def gene_ontology(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> pd.DataFrame:
    """Similarity of 9,853 human genes by their Gene Ontology terms, as published with GEARS.

    The importance of a pair is the Jaccard index of the sets of terms of its genes; pairs above 0.1 are listed, in both
    directions and with each gene itself (Roohani et al., Nature Biotechnology 42:927, 2024). The archive is kept like
    the one of :func:`norman` and read without unpacking it to the disk.

    Parameters
    ----------
    path
        The published archive, or the csv file in it, if you have one. Nothing is downloaded then.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Data frame with the columns ``source``, ``target`` (gene names) and ``importance``; one row per pair.

    Raises
    ------
    ConnectionError
        If the file cannot be downloaded; the message states where to put it by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If the file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> table = si.datasets.gene_ontology()  # doctest: +SKIP
    >>> list(table)  # doctest: +SKIP
    ['source', 'target', 'importance']
    """
    if path is None:
        path = _fetched(_ONTOLOGY, "go_essential_all.tar.gz", progress=progress)
    path = existing(path, "the archive 'go_essential_all.tar.gz' or the csv file in it")
    if path.name.endswith((".csv", ".csv.gz")):
        return _read_similarity(path, path)
    with readable(path, "a tar archive", *DAMAGED), tarfile.open(path) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        name = only([member.name for member in files], ".csv", path)
        # a stream of one regular file: paths and links that the archive names are not followed
        stream = archive.extractfile(next(member for member in files if member.name == name))
        return _read_similarity(stream, path)


def _screen(name: str, path: str | os.PathLike[str] | None, *, progress: bool) -> AnnData:
    if path is None:
        return read_screen(_published(name, progress=progress))
    path = Path(path) / _MEMBER if Path(path).is_dir() else Path(path)
    path = existing(path, f"the published zip file or the '{_MEMBER}' in it")
    if path.suffix == ".h5ad":
        return read_screen(path)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / _MEMBER
        unpack(path, _MEMBER, unpacked)
        return read_screen(unpacked)


def _fetched(file_id: int, name: str, *, progress: bool) -> Path:
    return fetch(dataverse_url(file_id), name, known_hash=_HASHES.get(name), progress=progress)


def _published(name: str, *, progress: bool) -> Path:
    """The unpacked file in the cache, whole and unchanged."""
    unpacked = cache_folder() / f"{name}.h5ad"
    if not unpacked.is_file():
        archive = _fetched(_SCREENS[name], f"{name}.zip", progress=progress)
        with one_at_a_time(unpacked.parent):
            if not unpacked.is_file():
                unpack(archive, _MEMBER, unpacked)
    verify(unpacked)
    return unpacked


def read_screen(path: Path) -> AnnData:
    """Read a screen and name its genes by name."""
    adata = read_h5ad(path)
    for place, table, column in ((".obs", adata.obs, "condition"), (".var", adata.var, "gene_name")):
        require_column(table, place, column, path, "Pass a file in the format of GEARS.")
    ids = pd.Index(adata.var_names.astype(str), name=None)
    names = adata.var["gene_name"].astype(object)
    names = names.where(names.notna() & (names.astype(str) != ""), ids).astype(str)
    adata.var_names = make_index_unique(pd.Index(names.to_numpy(), name=None))
    adata.var_names.name = None  # a name that is a column too cannot be written
    if "gene_id" not in adata.var:
        adata.var["gene_id"] = ids.to_numpy()
    for key in [key for key in adata.uns if key.startswith(_RANKINGS)]:
        del adata.uns[key]
    return adata


def _read_similarity(source: Any, path: Path) -> pd.DataFrame:
    """Three columns of a csv file; genes may be called "NA" or "nan"."""
    with readable(path, "a csv file with the columns source, target and importance", ValueError, OSError):
        # millions of rows name few genes, so read them as categories
        dtype = {"source": "category", "target": "category", "importance": float}
        table = pd.read_csv(source, usecols=_COLUMNS, dtype=dtype, keep_default_na=False)
    return table[_COLUMNS].astype({"source": object, "target": object})
