"""Data that stay in their file, and sites of many cells."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from tests.conftest import make_cells
from torch.nn import functional as F

import scinfl as si
from scinfl._checks import values_of
from scinfl.model.base._cells import is_mostly_zero, rows_per_step
from scinfl.nn import MLP, SparseRows

LAYOUTS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "dense": lambda x: x.toarray(),
    "float64": lambda x: x.astype(np.float64),
    "zeros": lambda x: sparse.csr_matrix((np.append(x.data, 0), np.append(x.indices, 7), [*x.indptr[:-1], x.nnz + 1])),
}


@pytest.fixture(scope="module")
def wide():
    """1,100 genes of which a twentieth is not zero in a cell."""
    cells = make_cells(400, 40, 3, 2)
    rest = sparse.random(400, 1060, 0.04, format="csr", dtype=np.float32, random_state=0)
    cells.X = np.where(cells.X > 1, cells.X, 0)
    values = sparse.csr_matrix(sparse.hstack([sparse.csr_matrix(cells.X), rest]), dtype=np.float32)
    values = sparse.csr_matrix((values.data, values.indices, values.indptr), shape=(400, 1100))
    return ad.AnnData(values, cells.obs)


def trained(adata, batch_size=128, **options):
    si.model.Classifier.setup_anndata(adata, labels_key="label", site_key="site")
    model = si.model.Classifier(adata, n_hidden=8, key_scheme=None, **options)
    model.train(2, batch_size=batch_size, protections=(), progress=False)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_batches_train_the_same_network_from_any_layout(wide, layout):
    expected = trained(wide.copy()).predict(wide, soft=True)
    adata = ad.AnnData(LAYOUTS[layout](wide.X), wide.obs.copy())
    np.testing.assert_allclose(trained(adata).predict(adata, soft=True), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_values_of_a_file_are_those_in_memory(wide, tmp_path, layout, suffix):
    import zarr

    adata = ad.AnnData(LAYOUTS[layout](wide.X), wide.obs.copy())
    path = tmp_path / f"cells.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path)
        backed = ad.read_h5ad(path, backed="r")
    else:
        adata.write_zarr(path)
        values = zarr.open(path, mode="r")["X"]
        backed = ad.AnnData(values if layout == "dense" else ad.io.sparse_dataset(values), adata.obs, adata.var)
    found = values_of(backed, None)
    np.testing.assert_array_equal(found.toarray() if sparse.issparse(found) else found, wide.X.toarray())
    assert (trained(backed).predict(backed) == trained(wide.copy()).predict(wide)).all()


def test_features_of_a_file_are_taken_by_name(wide, tmp_path):
    wide[:, ::-1].copy().write_h5ad(tmp_path / "backwards.h5ad")
    model = trained(wide.copy())
    backed = ad.read_h5ad(tmp_path / "backwards.h5ad", backed="r")
    np.testing.assert_allclose(model.predict(backed, soft=True), model.predict(wide, soft=True), atol=1e-6)


def test_rows_without_any_value_can_be_read_from_a_file(tmp_path):
    for n in (0, 3):
        ad.AnnData(sparse.csr_matrix((n, 4), dtype=np.float32)).write_h5ad(tmp_path / "none.h5ad")
        found = values_of(ad.read_h5ad(tmp_path / "none.h5ad", backed="r"), None)
        assert found.shape == (n, 4)
        assert found.nnz == 0


def test_a_file_is_not_read_into_memory(tmp_path):
    """The anonymous memory of a process that predicts hardly grows, whatever the file holds."""
    n, genes = 100_000, 1000
    values = sparse.random(n, genes, 0.1, format="csr", dtype=np.float32, random_state=0)  # 80 MB
    ad.AnnData(values).write_h5ad(tmp_path / "cells.h5ad")
    script = """
        import sys, anndata as ad
        from scinfl._checks import finite, values_of

        def anonymous():
            line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
            return int(line.split()[1]) / 1024

        adata = ad.read_h5ad(sys.argv[1], backed="r")
        values_of(adata[:10], None)
        before = anonymous()
        values = values_of(adata, None)
        finite(values, adata.var_names)
        assert values.nnz == 10_000_000
        print(anonymous() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cells.h5ad")]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 40


def test_a_sparse_first_layer_is_the_dense_one():
    torch.manual_seed(0)
    network, x = MLP(50, 8), sparse.random(7, 50, 0.2, format="csr", dtype=np.float32, random_state=0)
    network.eval()

    def computed(rows):
        network.zero_grad()
        network(rows).square().sum().backward()
        return network(rows).detach(), network[1].weight.grad.clone(), network[1].bias.grad.clone()

    torch.testing.assert_close(computed(SparseRows(x)), computed(torch.from_numpy(x.toarray())), rtol=1e-4, atol=1e-5)


def test_dropped_entries_are_scaled_as_torch_scales_them():
    x = sparse.csr_matrix(np.ones((200, 100), np.float32))
    dropped = SparseRows(x).dropout(0.2, training=True).matrix.data
    assert set(np.unique(dropped)) == {0, np.float32(1.25)}
    assert abs((dropped == 0).mean() - 0.2) < 0.01
    assert SparseRows(x).dropout(0.2, training=False).matrix is x


def test_only_wide_and_empty_rows_are_sparse(wide):
    assert is_mostly_zero(wide.X, np.arange(400))
    assert not is_mostly_zero(wide.X[:, :500], np.arange(400))
    assert not is_mostly_zero(np.ones((5, 1100)), np.arange(5))


def test_steps_take_more_rows_at_large_sites():
    assert [rows_per_step(n) for n in (1, 32_767, 32_768, 65_536, 131_072, 10**7)] == [32, 32, 64, 128, 256, 256]


def test_training_takes_one_thread_and_gives_the_others_back(wide, monkeypatch):
    seen, loss = set(), F.cross_entropy

    def watched(*arguments, **options):
        seen.add(torch.get_num_threads())
        return loss(*arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for asked in (None, "2"):
            if asked is None:
                monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            else:
                monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", asked)
            seen.clear()
            trained(wide.copy())
            assert seen == {1 if asked is None else 2}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
