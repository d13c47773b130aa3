"""Small parts of published perturbation screens: real cells within seconds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from anndata import AnnData

from scinfl._checks import first_of
from scinfl._conditions import CONTROL, genes_of, named_as_gears
from scinfl.datasets._archive import existing
from scinfl.datasets._download import fetch, server
from scinfl.datasets._h5ad import read_h5ad, require_column
from scinfl.datasets._record import zenodo

# the file of PerturBench for tests of its own code, at the commit that is pinned here
_COMMIT = "4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2"
_SUBSET = f"altoslabs/perturbench/{_COMMIT}/src/perturbench/data/resources/devel.h5ad"
_SCPERTURB, _PAPALEXI = 13350497, "PapalexiSatija2021_eccite_RNA.h5ad"


def norman_subset(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """3,375 K562 cells of Norman et al.: CRISPR activation of 18 single genes and 15 pairs, up to 100 cells each.

    Cells of the screen of Norman et al. (Science 365:786, 2019) that PerturBench (Wu et al., arXiv 2408.10609; BSD-3)
    publishes for tests of its own code: log-normalised expression of a few hundred variable genes. The file is
    downloaded once (1 MB). It is small enough for a first try and for tests; :func:`norman` is the whole screen.

    Parameters
    ----------
    path
        The file ``devel.h5ad`` of PerturBench, or cells of this screen in that form, if you have them. Nothing is
        downloaded then.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes, with ``.obs["condition"]`` in the form of GEARS (``"ctrl"``, ``"A+ctrl"``, ``"A+B"``)
    and log-normalised expression in ``.X`` (float32).

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
    >>> adata = si.datasets.norman_subset()  # doctest: +SKIP
    >>> adata.obs["condition"].nunique()  # doctest: +SKIP
    34
    """
    return _of_perturbench(path, "norman19", progress=progress)


def mcfaline(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """About 2,600 cells of three glioblastoma lines: CRISPR interference of nine kinases.

    Cells of McFaline-Figueroa et al. (Cell Genomics 4:100487, 2024) from the same file as :func:`norman_subset`. The
    lines (``.obs["cell_type"]``: A172, T98G, U87MG) are natural sites. See :func:`norman_subset` for what the fields
    hold and which errors are raised.

    Parameters
    ----------
    path
        The file ``devel.h5ad`` of PerturBench, or cells of this screen in that form, if you have them.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.mcfaline().obs["cell_type"].nunique()  # doctest: +SKIP
    3
    """
    return _of_perturbench(path, "mcfaline23", progress=progress)


def papalexi(path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> AnnData:
    """20,729 THP-1 cells × 18,649 genes, counts: knock-outs of 25 genes of the interferon response, three replicates.

    The ECCITE-seq screen of Papalexi et al. (Nature Genetics 53:322, 2021) as scPerturb (Peidli et al., Nature Methods
    21:531, 2024) publishes it. It is downloaded once from Zenodo, and its hash is compared with that of the record.
    Some perturbations have few cells.

    Parameters
    ----------
    path
        The file of scPerturb, or an h5ad file with ``.obs["condition"]`` or ``.obs["perturbation"]``, if you have one.
    progress
        Show a progress bar of the download.

    Returns
    -------
    Annotated data, cells × genes: counts in ``.X``, so normalise and take logarithms first; ``.obs["condition"]`` as of
    :func:`norman_subset`, where guides of one gene (``"STAT2g2"``) are one condition.

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
    >>> adata = si.datasets.papalexi()  # doctest: +SKIP
    >>> adata.obs["condition"].nunique()  # doctest: +SKIP
    26
    """
    if path is None:
        record = zenodo(_SCPERTURB)
        files = [file for file in record.files if file.name == _PAPALEXI]
        if not files:
            msg = f"Expected '{_PAPALEXI}' in {record.page}, found no such file. Fetch it by hand and pass its `path`."
            raise ValueError(msg)
        path = record.fetch(files[0], progress=progress)
    path = existing(path, "an h5ad file")
    adata = read_h5ad(path)
    column = "condition" if "condition" in adata.obs else "perturbation"
    return _with_conditions(adata, column, path, guides=column == "perturbation")


def _of_perturbench(path: str | os.PathLike[str] | None, screen: str, *, progress: bool) -> AnnData:
    """Cells of one screen in the file of PerturBench."""
    if path is None:
        path = fetch(f"{server('github')}/{_SUBSET}", f"perturbench_{_COMMIT[:7]}.h5ad", progress=progress)
    path = existing(path, "an h5ad file")
    adata = read_h5ad(path)
    if "dataset" in adata.obs:
        here = (adata.obs["dataset"].astype(str) == screen).to_numpy()
        if not here.any():
            found = first_of(sorted(adata.obs["dataset"].astype(str).unique()))
            msg = f"Expected cells of '{screen}' in .obs['dataset'] of '{path}', found {found or 'none'}. Pass another."
            raise ValueError(msg)
        adata = adata[here].copy()
    return _with_conditions(adata, "condition", path)


def _with_conditions(adata: AnnData, column: str, path: Path, *, guides: bool = False) -> AnnData:
    """Conditions as GEARS spells them, and expression in single precision."""
    require_column(adata.obs, ".obs", column, path, "Pass a file with the perturbation of every cell.")
    names = adata.obs[column].astype(str)
    names = names.replace({"control": CONTROL})
    if guides:
        names = names.str.replace(r"g\d+$", "", regex=True)
    spelled = {name: named_as_gears(genes_of(name)) for name in names.unique()}
    adata.obs["condition"] = names.map(spelled).astype("category")
    adata.X = adata.X.astype(np.float32)
    return adata
