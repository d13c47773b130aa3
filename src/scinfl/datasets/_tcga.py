"""Cancer proteomics from real hospitals."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
from anndata import AnnData

from scinfl._checks import obs_column


def tcga_proteins(path: str | os.PathLike[str], *, complete: bool = True, site_key: str | None = "region") -> AnnData:
    """Reverse-phase protein arrays of The Cancer Genome Atlas, ready for a federation of hospitals.

    Parameters
    ----------
    path
        File ``tcga_rppa.h5ad``: samples × proteins with the columns ``cancer``, ``patient``, ``region`` and
        ``source_site`` in ``.obs`` and ``in_all_cancers`` in ``.var``.
    complete
        Keep the proteins that were measured in every cancer and lack no value (120 of 285). Which other proteins are
        missing tells the cohort, so a classifier would learn that instead of biology.
    site_key
        Column that will serve as site; samples without (``"unmapped"``) are dropped. ``None`` keeps all samples.

    Returns
    -------
    Annotated data that owns its values, float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"Expected the TCGA protein table at '{path}', found none. Pass the path of 'tcga_rppa.h5ad'."
        raise FileNotFoundError(msg)
    adata = ad.read_h5ad(path)
    if site_key is not None:
        adata = adata[(obs_column(adata, site_key, "site_key") != "unmapped").to_numpy()]
    if complete:
        whole = adata.var["in_all_cancers"].to_numpy(bool) & ~np.isnan(adata.X).any(0)
        adata = adata[:, whole]
    adata = adata.copy()
    adata.X = np.ascontiguousarray(adata.X, dtype=np.float32)
    for column in adata.obs.select_dtypes("category"):
        adata.obs[column] = adata.obs[column].cat.remove_unused_categories()
    return adata
