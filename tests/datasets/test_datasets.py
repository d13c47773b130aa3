"""Real data at hand."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl import datasets


def test_pbmc_is_there_without_download():
    adata = datasets.pbmc()
    assert adata.shape == (700, 765)
    assert adata.obs["bulk_labels"].nunique() == 10


def test_tcga_proteins_are_complete_and_have_sites(shared):
    path = shared("bulk/tcga_rppa.h5ad")
    adata = datasets.tcga_proteins(path)
    assert adata.shape == (2614, 120)
    assert np.isfinite(adata.X).all()
    assert adata.X.dtype == np.float32
    assert adata.obs["region"].nunique() == len(adata.obs["region"].cat.categories) == 7
    assert adata.obs["cancer"].nunique() == 9
    assert datasets.tcga_proteins(path, site_key=None).n_obs == 6777
    assert np.isnan(datasets.tcga_proteins(path, complete=False).X).any()
    with pytest.raises(KeyError, match="site_key"):
        datasets.tcga_proteins(path, site_key="hospital")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="found none"):
        datasets.tcga_proteins("nowhere.h5ad")
