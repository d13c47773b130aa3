"""Files of AnnData and MuData are read and written whole, and what is not one is named."""

from __future__ import annotations

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scinfl._data_files import check_output, read_data, write_data


@pytest.fixture
def adata():
    return ad.AnnData(np.ones((2, 1), np.float32), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=["g"]))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_other_files_in_place_of_h5ad_are_named_with_a_cure(adata, tmp_path):
    (tmp_path / "c.zarr").mkdir()
    md.MuData({"rna": adata}).write(tmp_path / "c.h5mu")
    write_data(md.MuData({"rna": adata}), tmp_path / "m.zarr")
    with h5py.File(tmp_path / "o.h5ad", "w") as file:
        file.create_dataset("matrix", data=[1])
    (tmp_path / "t.h5ad").write_text("cell,gene\n")
    for name, message in (
        ("c.zarr", "found a folder that is no zarr store"),
        ("c.h5mu", r"found a MuData file.*read_h5mu\('c.h5mu'\)\['rna'\].write_h5ad\('rna.h5ad'\)"),
        ("m.zarr", r"found a MuData file.*read_zarr\('m.zarr'\)\['rna'\].write_h5ad\('rna.h5ad'\)"),
        ("o.h5ad", "found a file of another kind, which holds matrix"),
        ("t.h5ad", "found a file of another kind, or a damaged one"),
    ):
        with pytest.raises(ValueError, match=message):
            read_data(tmp_path / name, "h5ad")
    with pytest.raises(FileNotFoundError, match="Check the path"):
        read_data(tmp_path / "none.h5ad")
    adata.write_h5ad(tmp_path / "x.h5mu")
    with pytest.raises(ValueError, match="found one without modalities"):
        read_data(tmp_path / "x.h5mu")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr", "x.h5mu", "m.zarr"])
def test_what_is_written_is_read_again_and_replaced_whole(adata, tmp_path, name):
    data = md.MuData({"rna": adata}) if name in {"x.h5mu", "m.zarr"} else adata
    path = tmp_path / name
    write_data(data, path)
    data.obs["more"] = 1
    write_data(data, path)
    found = read_data(path)
    assert type(found) is type(data)
    assert found.obs["more"].tolist() == [1, 1]
    assert [part.name for part in tmp_path.iterdir()] == [name]


def test_what_could_not_be_written_is_refused_before_the_work(adata, tmp_path):
    endings = (".h5ad", ".zarr")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(FileExistsError, match=r"Expected a zarr store to overwrite at .* found another folder"):
        check_output(tmp_path / "mine.zarr", endings, overwrite=True)
    (tmp_path / "file.zarr").touch()
    with pytest.raises(FileExistsError, match="found a file"):
        check_output(tmp_path / "file.zarr", endings, overwrite=True)
    with pytest.raises(ValueError, match="ending"):
        check_output(tmp_path / "x.txt", endings, overwrite=False)
    write_data(adata, tmp_path / "x.zarr")
    check_output(tmp_path / "x.zarr", endings, overwrite=True)
    with pytest.raises(FileExistsError, match="Expected nothing"):
        check_output(tmp_path / "x.zarr", endings, overwrite=False)
