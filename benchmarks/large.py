"""A file of many cells: time of a round, and memory of training and of prediction, beside plain torch.

Cells are generated: 2,000 genes, 100 of them not zero in a cell, 10 types, 4 sites. The Classifier trains one round
with a key by its defaults on the backed file. Plain torch trains the same network on dense batches of 256 rows, of
`--plain` cells, and its time is scaled to the same number of rows. Every part is a process: CPU seconds are
its own, on all threads. Resident memory counts pages of mapped files, which the operating system may drop;
anonymous memory does not.

    python benchmarks/large.py [--cells 1000000] [--plain 100000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scinfl as si

N_GENES, N_STORED, N_TYPES, N_SITES, BLOCK = 2000, 100, 10, 4, 20_000


def write_cells(path: Path, n: int) -> None:
    """Write cells in blocks."""
    rng = np.random.default_rng(0)
    types, sites = rng.integers(N_TYPES, size=n), rng.integers(N_SITES, size=n)
    markers = np.stack([rng.choice(N_GENES, 60, replace=False) for _ in range(N_TYPES)])
    names = [[f"{word}_{i}" for i in range(k)] for word, k in (("type", N_TYPES), ("site", N_SITES))]
    obs = {"label": pd.Categorical.from_codes(types, names[0]), "site": pd.Categorical.from_codes(sites, names[1])}
    obs = pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)])
    ad.AnnData(sparse.csr_matrix((n, N_GENES), dtype=np.float32), obs, var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices", "indptr"):
            del file["X"][name]
        chunks = {"shape": (n * N_STORED,), "chunks": (2**20,)}
        data = file["X"].create_dataset("data", dtype="f4", **chunks)
        indices = file["X"].create_dataset("indices", dtype="i4", **chunks)
        file["X"].create_dataset("indptr", data=np.arange(0, n * N_STORED + 1, N_STORED))
        for start in range(0, n, BLOCK):
            stop = min(n, start + BLOCK)
            rank = rng.random((stop - start, N_GENES), dtype=np.float32)
            np.put_along_axis(
                rank,
                markers[types[start:stop]],
                np.take_along_axis(rank, markers[types[start:stop]], 1) * 0.5,
                axis=1,
            )
            genes = np.sort(np.argpartition(rank, N_STORED, axis=1)[:, :N_STORED], axis=1)
            where = slice(start * N_STORED, stop * N_STORED)
            indices[where] = genes.ravel()
            data[where] = np.log1p(rng.exponential(2, genes.size))


def trained(path: Path, run: Path) -> dict[str, float]:
    """Train one round on the backed file by defaults."""
    adata = ad.read_h5ad(path, backed="r")
    si.model.Classifier.setup_anndata(adata, labels_key="label", site_key="site")
    model, key = si.model.Classifier(adata), si.privacy.Key(bytes(range(32)), federation="large")
    clocks = time.process_time(), time.perf_counter()
    model.train(1, key=key, progress=False)
    cpu, wall = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
    model.save(run)
    accuracy = float(model.history["validation_balanced_accuracy"].iloc[-1])
    return {"CPU seconds of a round": cpu, "seconds": wall, "balanced accuracy": accuracy}


def predicted(path: Path, run: Path) -> dict[str, float]:
    """Label all cells of the backed file."""
    adata = ad.read_h5ad(path, backed="r")
    model = si.model.Classifier.load(run)
    model.unlock(si.privacy.Key(bytes(range(32)), federation="large"))
    clock = time.process_time()
    right = float((model.predict(adata) == adata.obs["label"].astype(str).to_numpy()).mean())
    return {"CPU seconds of prediction": time.process_time() - clock, "accuracy": right}


def plain(path: Path, n: int, n_rows: int) -> dict[str, float]:
    """Time the same network in plain torch on dense batches of 256."""
    torch.set_num_threads(1)
    adata = ad.read_h5ad(path, backed="r")[:n].to_memory()
    codes = torch.from_numpy(adata.obs["label"].cat.codes.to_numpy().astype(np.int64))
    network = si.module.ClassifierModule(N_GENES, N_TYPES)
    optimizer = torch.optim.AdamW(network.parameters(), 6e-3, weight_decay=0.01, fused=True)
    clock = time.process_time()
    for rows in torch.randperm(n).split(256):
        optimizer.zero_grad()
        x = torch.from_numpy(adata.X[rows.numpy()].toarray())
        network.loss((x, codes[rows])).backward()
        optimizer.step()
    return {"CPU seconds of a round": (time.process_time() - clock) / n * n_rows}


def memory() -> dict[str, float]:
    """Peak of the resident memory and what is anonymous now, in GB."""
    text = Path("/proc/self/status").read_text()
    found = dict(line.split(":", 1) for line in text.splitlines())
    names = {"VmHWM": "peak resident GB", "RssAnon": "anonymous at the end GB"}
    return {name: int(found[field].split()[0]) / 2**20 for field, name in names.items()}


def main() -> None:
    """Run each part in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--plain", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=["import", "train", "predict", "plain"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    folder = options.folder or Path(tempfile.mkdtemp())
    path, run = folder / "cells.h5ad", folder / "run"
    if options.part is not None:
        parts = {
            "import": dict,
            "train": lambda: trained(path, run),
            "predict": lambda: predicted(path, run),
            "plain": lambda: plain(path, min(options.plain, options.cells), int(options.cells * 0.9) * 2),
        }
        print(json.dumps({**parts[options.part](), **memory()}))
        return
    if not path.exists():
        write_cells(path, options.cells)
    print(f"{options.cells:,} cells, {path.stat().st_size / 2**30:.2f} GB on file")
    for part in ("import", "train", "plain", "predict"):
        command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
        command += ["--cells", str(options.cells), "--plain", str(options.plain)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
        print(f"{part:8s}" + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
