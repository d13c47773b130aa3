"""Real cells that come with scanpy."""

from __future__ import annotations

import warnings

from anndata import AnnData


def pbmc() -> AnnData:
    """700 peripheral blood cells × 765 genes with 10 cell types in ``.obs["bulk_labels"]``.

    The reduced 68k PBMC data set that scanpy bundles (Zheng et al. 2017): scaled log expression in ``.X``, an embedding
    in ``.obsm["X_umap"]``. Nothing is downloaded.

    Examples
    --------
    >>> import scinfl as si
    >>> si.datasets.pbmc().shape
    (700, 765)
    """
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file was written by an old anndata
        return sc.datasets.pbmc68k_reduced()
