"""Knock-downs in endothelial cells, published with the INFL paper."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import io, sparse

from scinfl._checks import first_of
from scinfl.datasets._archive import existing, names_in, readable, take
from scinfl.datasets._public import read_screen
from scinfl.datasets._record import figshare

_ARTICLE = 30763670
_SAMPLES = {
    "ctrl": re.compile(r"(?<![a-z])scr(?![a-z])", re.IGNORECASE),
    "YWHAB+ctrl": re.compile(r"(?<![a-z])sh[-_ ]?b(?![a-z])", re.IGNORECASE),
    "YWHAE+ctrl": re.compile(r"(?<![a-z])sh[-_ ]?e(?![a-z])", re.IGNORECASE),
    "YWHAH+ctrl": re.compile(r"(?<![a-z])sh[-_ ]?h(?![a-z])", re.IGNORECASE),
}
_TABLES = {
    "matrix": re.compile(r"matrix\.mtx(\.gz)?$"),
    "features": re.compile(r"(features|genes)\.tsv(\.gz)?$"),
    "barcodes": re.compile(r"barcodes\.tsv(\.gz)?$"),
}
_ENDINGS = (".h5ad", ".zip", ".tar", ".tar.gz", ".tgz", ".mtx", ".mtx.gz", ".tsv", ".tsv.gz")


def huvec(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """46,439 endothelial cells × 33,694 genes: knock-downs of YWHAB, YWHAE and YWHAH, and control.

    Human umbilical vein endothelial cells with one of three short hairpins (samples ``Sh-B``, ``Sh-E`` and ``Sh-H``) or
    a scrambled one (``SCR``), published with the INFL paper (arXiv 2603.28334) at figshare, 30763670, CC BY 4.0. The
    authors train on YWHAB, validate on YWHAE and test on YWHAH. With three conditions no mean over many can be taken:
    compare with "no change" and with the change of another knock-down.

    The files are those that the article lists when you call; each is checked with the checksum that figshare states.
    Folders, archives and loose files of the four samples in the format of 10x are understood, and an h5ad file with
    ``.obs["condition"]``.

    Parameters
    ----------
    path
        What you have: the folder or the archive with the four samples, or an h5ad file. Nothing is downloaded then.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes: counts (sparse), ``.obs["condition"]`` (``"ctrl"``, ``"YWHAB+ctrl"``, …),
    ``["cell_type"]``, ``.var["gene_name"]`` and ``["gene_id"]``; cells are called ``"CONDITION:BARCODE"``. An h5ad file
    keeps the values that it has.

    Raises
    ------
    ConnectionError
        If the list or a file cannot be downloaded; the message states what to do by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If a sample is missing, or a file is damaged, was changed, or is another one.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.huvec()  # doctest: +SKIP
    >>> sorted(adata.obs["condition"].unique())  # doctest: +SKIP
    ['YWHAB+ctrl', 'YWHAE+ctrl', 'YWHAH+ctrl', 'ctrl']
    """
    sources = (
        _fetched(progress=progress)
        if path is None
        else [existing(path, "the samples of the HUVEC knock-downs", or_folder=True)]
    )
    tables = [source for source in sources if source.suffix == ".h5ad"]
    if path is not None and tables:
        return read_screen(tables[0])
    with tempfile.TemporaryDirectory() as folder:
        names = [(source, name) for source in sources if source not in tables for name in _names(source)]
        found = {condition: _sample(pattern, names) for condition, pattern in _SAMPLES.items()}
        if not all(found.values()):
            if len(tables) == 1:
                return read_screen(tables[0])
            raise _incomplete(sources, found)
        return _join({key: _read(files, Path(folder) / str(i)) for i, (key, files) in enumerate(found.items())})


def _fetched(*, progress: bool) -> list[Path]:
    """Files of the article that may hold a table."""
    record = figshare(_ARTICLE)
    files = [file for file in record.files if file.name.lower().endswith(_ENDINGS)]
    if not files:
        names = first_of([file.name for file in record.files], 20) or "no files"
        msg = f"Expected tables or archives in {record.page}, found {names}. Fetch them and pass their `path`."
        raise ValueError(msg)
    return [record.fetch(file, progress=progress) for file in files]


def _names(source: Path) -> list[str]:
    """Files that a source holds; a loose file holds itself."""
    return [""] if any(table.search(source.name) for table in _TABLES.values()) else names_in(source)


def _sample(pattern: re.Pattern[str], names: list[tuple[Path, str]]) -> dict[str, tuple[Path, str]]:
    """Matrix, features and barcodes of a sample, by the path inside a source, else by its name."""
    found = {}
    for table, ending in _TABLES.items():
        tables = [(source, name) for source, name in names if ending.search(name or source.name)]
        fitting = [(source, name) for source, name in tables if pattern.search(name)]
        fitting = fitting or [(source, name) for source, name in tables if pattern.search(source.name)]
        if len(fitting) == 1:
            found[table] = fitting[0]
    return found if len(found) == len(_TABLES) else {}


def _incomplete(sources: list[Path], found: dict[str, Any]) -> ValueError:
    lacking = [condition for condition, files in found.items() if not files]
    msg = (
        "Expected one matrix, features and barcodes of each of SCR, Sh-B, Sh-E and Sh-H in "
        f"{first_of([source.name for source in sources], 20)}, found none or several for {', '.join(lacking)}. Put "
        "them in folders of these names and pass the folder that holds them as `path`."
    )
    return ValueError(msg)


def _read(files: dict[str, tuple[Path, str]], folder: Path) -> AnnData:
    """Cells × genes of one sample in the format of 10x."""
    folder.mkdir()
    paths = {}
    for table, (source, name) in files.items():
        paths[table] = take(source, [name], folder)[name] if name else source
    matrix = paths["matrix"]
    with readable(matrix, "counts in the format of 10x", OSError, ValueError, EOFError):
        counts = sparse.csr_matrix(io.mmread(matrix).T, dtype="float32")
    features = pd.read_csv(paths["features"], sep="\t", header=None, dtype=str)
    barcodes = pd.read_csv(paths["barcodes"], sep="\t", header=None, dtype=str)
    if counts.shape != (len(barcodes), len(features)) or features.shape[1] < 2:
        msg = (
            f"Expected {len(barcodes)} cells × {len(features)} genes with ids and names in '{matrix}', found "
            f"{counts.shape[0]} × {counts.shape[1]} and {features.shape[1]} columns. Fetch the files again."
        )
        raise ValueError(msg)
    var = pd.DataFrame({"gene_id": features[0].to_numpy(), "gene_name": features[1].to_numpy()}, index=features[0])
    return AnnData(counts, pd.DataFrame(index=barcodes[0].to_numpy()), var.rename_axis(None))


def _join(samples: dict[str, AnnData]) -> AnnData:
    for condition, sample in samples.items():
        sample.obs_names = [f"{condition}:{barcode}" for barcode in sample.obs_names]
        sample.obs["condition"] = condition
        sample.obs["cell_type"] = "HUVEC"
    adata = ad.concat(list(samples.values()), join="inner", merge="same")
    adata.obs = adata.obs.astype("category")
    adata.var_names = make_index_unique(pd.Index(adata.var["gene_name"].to_numpy()))
    return adata
