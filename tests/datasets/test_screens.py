"""Small parts of published screens, from a server on this machine and from files at hand."""

from __future__ import annotations

import hashlib
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl import datasets
from scinfl.datasets import _screens

GUIDES = ["STAT2g2", "STAT2g1", "control", "IRF1g3"]


def make_subset():
    obs = pd.DataFrame(
        {
            "condition": ["control", "KLF1", "SET+KLF1", "control", "SGK1", "SGK1"],
            "dataset": ["norman19"] * 4 + ["mcfaline23"] * 2,
            "cell_type": ["k562"] * 4 + ["A172", "T98G"],
        },
        index=[f"cell{number}" for number in range(6)],
    )
    X = sparse.random(6, 5, 0.5, "csr", rng=np.random.default_rng(0))
    return ad.AnnData(X, obs, pd.DataFrame(index=["KLF1", "SET", "a", "b", "c"]))


def written(adata, path):
    adata.write_h5ad(path)
    return path


def test_the_cells_of_one_screen_are_taken_and_their_conditions_spelled_as_gears_spells_them(server, tmp_path):
    server.files[f"/{_screens._SUBSET}"] = written(make_subset(), tmp_path / "x.h5ad").read_bytes()
    adata = datasets.norman_subset(progress=False)
    assert adata.obs["condition"].tolist() == ["ctrl", "KLF1+ctrl", "KLF1+SET", "ctrl"]
    assert adata.X.dtype == np.float32
    assert not adata.is_view
    asked = len(server.asked)
    lines = datasets.mcfaline(progress=False)
    assert lines.obs["cell_type"].tolist() == ["A172", "T98G"]
    assert lines.obs["condition"].tolist() == ["SGK1+ctrl"] * 2
    assert len(server.asked) == asked  # the file is in the cache


def test_guides_of_one_gene_are_one_condition_and_the_hash_of_the_record_counts(server, tmp_path):
    obs = pd.DataFrame({"perturbation": GUIDES}, index=list("abcd"))
    path = written(ad.AnnData(np.eye(4, dtype=np.int64), obs), tmp_path / "p.h5ad")
    content = path.read_bytes()
    digest = "md5:" + hashlib.md5(content).hexdigest()
    listed = {"key": _screens._PAPALEXI, "links": {"self": f"{server.url}/papalexi"}, "checksum": digest}
    server.files[f"/api/records/{_screens._SCPERTURB}"] = json.dumps({"files": [listed]}).encode()
    server.files["/papalexi"] = content
    adata = datasets.papalexi(progress=False)
    assert adata.obs["condition"].tolist() == ["STAT2+ctrl", "STAT2+ctrl", "ctrl", "IRF1+ctrl"]


def test_a_record_without_the_file_is_an_error_that_names_it(server):
    server.files[f"/api/records/{_screens._SCPERTURB}"] = b'{"files": []}'
    with pytest.raises(ValueError, match=r"PapalexiSatija2021_eccite_RNA\.h5ad.*pass its `path`"):
        datasets.papalexi(progress=False)


def test_another_file_is_refused_with_what_was_found(tmp_path):
    other = make_subset()
    path = written(other[other.obs["dataset"] == "mcfaline23"].copy(), tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match=r"cells of 'norman19'.*found mcfaline23"):
        datasets.norman_subset(path)
    del other.obs["condition"], other.obs["dataset"]
    with pytest.raises(ValueError, match=r"the column 'condition' in \.obs.*found cell_type"):
        datasets.norman_subset(written(other, tmp_path / "y.h5ad"))
    (tmp_path / "z.h5ad").write_bytes(b"no")
    with pytest.raises(ValueError, match="to be an h5ad file"):
        datasets.mcfaline(tmp_path / "z.h5ad")
    with pytest.raises(FileNotFoundError):
        datasets.papalexi(tmp_path / "absent.h5ad")


@pytest.mark.parametrize(
    ("loader", "name", "conditions"),
    [
        ("norman_subset", "norman2019_subset_33perturbations", 34),
        ("mcfaline", "mcfaline2023_3lines_9kinases", 10),
        ("papalexi", "papalexi2021_eccite_thp1_299genes", 26),
    ],
)
def test_the_real_cells(shared, loader, name, conditions):
    adata = getattr(datasets, loader)(shared(f"perturb/{name}.h5ad"))
    assert adata.obs["condition"].nunique() == conditions
    assert "ctrl" in set(adata.obs["condition"])
