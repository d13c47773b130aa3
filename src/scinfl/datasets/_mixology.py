"""Mixtures of cell lines, sequenced in several ways."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scinfl._checks import first_of
from scinfl.datasets._archive import DAMAGED, existing, readable
from scinfl.datasets._download import fetch, server
from scinfl.datasets._h5ad import read_h5ad, require_column

_COMMIT = "7d00ffb0bd043467f365a9358d7312f294f13c9f"
_BATCHES = ("sc_celseq2", "sc_celseq2_5cl_p1", "sc_celseq2_5cl_p2", "sc_celseq2_5cl_p3", "sc_dropseq")


def cell_mixtures(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """1,408 cells of five lung cancer lines, mixed and sequenced in five batches: batch effects with a known truth.

    Tian et al. (Nature Methods 16:479, 2019) mixed lines and sequenced them by CEL-seq2 (four plates) and Drop-seq. Two
    batches lack two of the lines. The tables of the authors (sc_mixology, MIT) are downloaded once from GitHub, a few
    megabytes.

    Parameters
    ----------
    path
        A folder with these tables (``sc_celseq2.count.csv.gz``, ``….metadata.csv.gz``, …), or an h5ad file with
        the columns ``batch`` and ``cell_line`` in ``.obs``, if you have them. Nothing is downloaded then.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes that all batches have (named by Ensembl), in the order of their names: counts
    in ``.X`` (float32), ``.obs["batch"]`` and ``.obs["cell_line"]``.

    Raises
    ------
    ConnectionError
        If a table cannot be downloaded; the message states where to put it by hand.
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If a table is damaged or another one.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.cell_mixtures().obs["cell_line"].nunique()  # doctest: +SKIP
    5
    """
    if path is not None and (file := existing(path, "tables of sc_mixology or an h5ad file", or_folder=True)).is_file():
        adata = read_h5ad(file)
        for column in ("batch", "cell_line"):
            require_column(adata.obs, ".obs", column, file, "Pass another file.")
        adata.obs = adata.obs[["batch", "cell_line"]].astype(str).astype("category")
        return _sorted(adata)
    tables = {batch: _read(batch, path, progress=progress) for batch in _BATCHES}
    every = [table.columns for table, _ in tables.values()]
    genes = reduce(lambda common, own: common[common.isin(own)], every)
    counts = np.concatenate([table[genes].to_numpy(np.float32) for table, _ in tables.values()])
    obs = pd.DataFrame(
        {
            "batch": np.repeat(list(tables), [len(lines) for _, lines in tables.values()]),
            "cell_line": np.concatenate([lines for _, lines in tables.values()]),
        },
        index=[f"{batch}_{cell}" for batch, (table, _) in tables.items() for cell in table.index],
        dtype="category",
    )
    return _sorted(AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=genes)))


def _sorted(adata: AnnData) -> AnnData:
    """Cells and genes in the order of their names, wherever they come from."""
    return adata[adata.obs_names.sort_values(), adata.var_names.sort_values()].copy()


def _read(batch: str, folder: str | os.PathLike[str] | None, *, progress: bool) -> tuple[pd.DataFrame, np.ndarray]:
    """Counts (cells × genes) and lines of one batch."""
    counts, about = (_table(f"{batch}.{kind}.csv.gz", folder, progress=progress) for kind in ("count", "metadata"))
    counts = counts[0].T
    require_column(about[0], "the columns", "cell_line", about[1], "Pass the published tables.")
    lines = about[0]["cell_line"].reindex(counts.index)
    if lines.isna().any():
        lost = first_of(list(counts.index[lines.isna()]))
        msg = f"Expected the line of every cell in '{about[1]}', found none of {lost}. Pass the published tables."
        raise ValueError(msg)
    return counts, lines.astype(str).to_numpy()


def _table(name: str, folder: str | os.PathLike[str] | None, *, progress: bool) -> tuple[pd.DataFrame, Path]:
    if folder is None:
        url = f"{server('github')}/LuyiTian/sc_mixology/{_COMMIT}/data/csv/{name}"
        path = fetch(url, f"sc_mixology_{name}", progress=progress)
    else:
        path = existing(Path(folder) / name, "a table of sc_mixology")
    with readable(path, "a table of sc_mixology", *DAMAGED, OSError, ValueError):
        table = pd.read_csv(path)
    # R writes names of rows as a first column, with or without a heading
    if not isinstance(table.index, pd.RangeIndex):
        return table, path
    return table.set_index(table.columns[0]), path
