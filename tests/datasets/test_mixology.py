"""Mixtures of cell lines, from a server on this machine, from a folder and from a file."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl.datasets import _mixology


@pytest.fixture(params=[True, False], ids=["heading", "no heading"])
def folder(request, tmp_path):
    """Tables as R writes them, genes × cells; only some genes are in all."""
    generator = np.random.default_rng(0)
    for number, batch in enumerate(_mixology._BATCHES):
        genes = ["ENSG3", "ENSG1", f"ENSG1{number}", "ENSG2"]
        counts = pd.DataFrame(generator.poisson(2.0, (4, 3)), genes, ["A1", "A2", "B1"])
        about = pd.DataFrame({"total": [1, 2, 3], "cell_line": ["H838", "A549", "H838"]}, ["B1", "A2", "A1"])
        for kind, table in (("count", counts), ("metadata", about)):
            text = table.to_csv()
            text = text if request.param else text.removeprefix(",")
            (tmp_path / f"{batch}.{kind}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def check(adata, folder):
    assert adata.shape == (15, 3)
    assert adata.var_names.tolist() == ["ENSG1", "ENSG2", "ENSG3"]
    assert adata.obs["cell_line"].tolist() == ["H838", "A549", "H838"] * 5
    assert adata.obs_names[[0, 1, 2, 14]].tolist() == [
        "sc_celseq2_5cl_p1_A1",
        "sc_celseq2_5cl_p1_A2",
        "sc_celseq2_5cl_p1_B1",
        "sc_dropseq_B1",
    ]
    table = pd.read_csv(folder / "sc_dropseq.count.csv.gz")
    own = adata[adata.obs["batch"] == "sc_dropseq", "ENSG2"].X.toarray().ravel()
    assert own.tolist() == table.iloc[3, -3:].tolist()


def test_tables_of_a_folder_are_joined_over_the_genes_of_all(folder):
    check(si.datasets.cell_mixtures(folder), folder)


def test_tables_are_downloaded_once(server, folder):
    for path in folder.glob("*.csv.gz"):
        server.files[f"/LuyiTian/sc_mixology/{_mixology._COMMIT}/data/csv/{path.name}"] = path.read_bytes()
    check(si.datasets.cell_mixtures(progress=False), folder)
    asked = len(server.asked)
    check(si.datasets.cell_mixtures(progress=False), folder)
    assert len(server.asked) == asked == 10


def test_a_file_with_the_columns_is_read_and_what_lacks_something_is_refused(folder, tmp_path):
    adata = si.datasets.cell_mixtures(folder)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = si.datasets.cell_mixtures(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    del adata.obs["batch"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="column 'batch'"):
        si.datasets.cell_mixtures(tmp_path / "cells.h5ad")
    about = pd.DataFrame({"cell_line": ["H838"]}, ["A1"])
    about.to_csv(folder / "sc_dropseq.metadata.csv.gz")
    with pytest.raises(ValueError, match=r"line of every cell .* found none of A2, B1"):
        si.datasets.cell_mixtures(folder)
    (folder / "sc_dropseq.count.csv.gz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="table of sc_mixology"):
        si.datasets.cell_mixtures(folder)
    (folder / "sc_dropseq.count.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="table of sc_mixology"):
        si.datasets.cell_mixtures(folder)
    with pytest.raises(FileNotFoundError):
        si.datasets.cell_mixtures(folder / "nowhere")


def test_our_cells_split_into_such_tables_come_back(shared, tmp_path):
    path = shared("singlecell/sc_mixology_5batches.h5ad")
    adata = si.datasets.cell_mixtures(path)[:, :200].copy()
    for batch in _mixology._BATCHES:
        own = adata[adata.obs["batch"] == batch]
        names = own.obs_names.str.removeprefix(f"{batch}_")
        pd.DataFrame(own.X.toarray().T.astype(int), own.var_names, names).to_csv(tmp_path / f"{batch}.count.csv.gz")
        own.obs.set_index(names)[["cell_line"]].to_csv(tmp_path / f"{batch}.metadata.csv.gz")
    again = si.datasets.cell_mixtures(tmp_path)
    assert (again.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    assert again.var_names.equals(adata.var_names)
