"""Models of several modalities of scvi-tools, federated and keyed, beside scvi-tools' own on pooled cells.

TOTALVI: RNA and proteins of 400 real blood cells, two kits, two halves of each as sites. PEAKVI and MULTIVI: generated
genes and peaks of four types at three sites, of which one lacks the peaks for MULTIVI. CondSCVI: five real batches of
cell lines. One row a seed: evidence lower bound per cell on cells that were held out (higher is better), and where
there are types the balanced accuracy of the vote of the nearest cells of other sites; then the worst seed.

    python benchmarks/scvi_modalities.py [--seeds 3] [--rounds 20]
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from inspect import signature
from pathlib import Path

import anndata as ad
import mudata as mu
import numpy as np
import pandas as pd
import scvi
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
PLAIN = {"use_batch_norm": "none", "use_layer_norm": "both", "n_hidden": 64, "n_latent": 10}
ARGUMENTS = {"TOTALVI": PLAIN, "PEAKVI": PLAIN, "MULTIVI": PLAIN, "CondSCVI": {"n_hidden": 64, "n_latent": 5}}


def varying(counts, n):
    """Columns whose logarithms of counts per cell vary most."""
    logged = np.log1p(1e4 * counts / counts.sum(1, keepdims=True).clip(1))
    return np.sort(np.argsort(-logged.var(0))[:n])


def proteins_and_genes():
    """RNA and proteins of two kits, halves of which are sites."""
    sets = [ad.read_h5ad(SHARED / f"data/singlecell/scvi_pbmc_{n}k_protein_v3_200cells.h5ad") for n in (5, 10)]
    genes = sets[0].var_names.intersection(sets[1].var_names)
    tables = [pd.DataFrame(own.obsm["protein_expression"], columns=own.uns["protein_names"]) for own in sets]
    measured = pd.concat(tables, join="inner", ignore_index=True)
    rna = np.concatenate([own[:, genes].X.toarray() for own in sets])
    obs = pd.DataFrame({"site": [f"{kit}{half}" for kit in "ab" for half in "12" for _ in range(100)]})
    obs.index = [f"cell_{i}" for i in range(len(rna))]
    kept = varying(rna, 400)
    tables = {
        "rna": ad.AnnData(rna[:, kept].astype(np.float32), obs.copy(), pd.DataFrame(index=genes[kept])),
        "protein": ad.AnnData(measured.to_numpy(np.float32), obs.copy(), pd.DataFrame(index=measured.columns)),
    }
    mdata = mu.MuData(tables)
    mdata.obs = obs
    return si.pp.join_modalities(mdata)


def genes_and_peaks(rng, *, is_mosaic):
    """Generated genes and peaks of four types at three sites."""
    generator = np.random.default_rng(rng)
    types, sites = generator.integers(4, size=900), np.arange(900) % 3
    sizes, tables = generator.lognormal(0, 0.4, (900, 1)), {}
    obs = pd.DataFrame({"site": [f"s{i}" for i in sites], "label": [f"t{i}" for i in types]})
    obs.index = [f"cell_{i}" for i in range(900)]
    for name, n, level in (("rna", 200, 0.0), ("atac", 300, -1.5)):
        rates = np.exp(generator.normal(level, 0.8, (4, n)))[types] * np.exp(generator.normal(0, 0.4, (3, n)))[sites]
        values = generator.poisson(rates * sizes).astype(np.float32)
        tables[name] = ad.AnnData(values, obs.copy(), pd.DataFrame(index=[f"{name}_{i}" for i in range(n)]))
    if not is_mosaic:
        return tables["atac"]
    tables["atac"].X[sites == 2] = 0
    mdata = mu.MuData(tables)
    mdata.obs = obs
    return si.pp.join_modalities(mdata)


def cell_lines():
    """Five batches of cell lines."""
    cells = ad.read_h5ad(SHARED / "data/singlecell/sc_mixology_5batches.h5ad")
    counts = cells.X.toarray().astype(np.float32)
    kept = varying(counts, 400)
    obs = pd.DataFrame({"site": cells.obs["batch"].astype(str), "label": cells.obs["cell_line"].astype(str)})
    return ad.AnnData(counts[:, kept], obs, pd.DataFrame(index=cells.var_names[kept]))


def read(kind, seed):
    """Cells of a model."""
    if kind == "TOTALVI":
        return proteins_and_genes()
    return cell_lines() if kind == "CondSCVI" else genes_and_peaks(seed, is_mosaic=kind == "MULTIVI")


def scores(model, cells, test):
    """Bound per held-out cell of a model of scvi-tools on all cells, and the vote of other sites."""
    scvi.settings.seed = 0
    try:
        found = {"ELBO": float(model.get_elbo(indices=np.flatnonzero(test), return_mean=True))}
    except (ValueError, RuntimeError):  # a wrong key leaves what is no parameter of a distribution
        return {"ELBO": np.nan}
    if "label" in cells.obs and type(model).__name__ != "CondSCVI":  # which reads the label
        codes, site, label = model.get_latent_representation(), cells.obs["site"], cells.obs["label"].to_numpy()
        voted = np.empty(len(label), object)
        for name in site.unique():
            own = (site == name).to_numpy()
            voted[own] = KNeighborsClassifier(10).fit(codes[~own], label[~own]).predict(codes[own])
        found["kNN accuracy"] = balanced_accuracy_score(label, voted.astype(str))
    return found


def pooled(model, cells, test, epochs, seed):
    """scvi-tools' own model and trainer on the cells that are not held out."""
    scvi.settings.seed = seed
    native = model._agreed.native()  # the same arguments, and layer normalisation where the class insists on another
    native.adata = model._agreed.native_form(cells)
    train = np.random.default_rng(seed).permutation(np.flatnonzero(~test))
    n_aside = len(train) // 10  # as at the sites
    parts = [train[n_aside:], train[:n_aside], np.flatnonzero(test)]
    options = {
        "external_indexing": parts,
        "datasplitter_kwargs": {"external_indexing": parts},
        "early_stopping": False,
        "reduce_lr_on_plateau": False,
        "adversarial_mixing": False,
    }
    known = signature(native.train).parameters
    if "external_indexing" in known:
        del options["datasplitter_kwargs"]
    native.train(
        epochs,
        lr=1e-3,
        batch_size=128,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **{name: value for name, value in options.items() if name in known},
    )
    return native


def row(kind, seed, rounds):
    """Arms of one seed."""
    cells = read(kind, seed)
    test = np.random.default_rng(seed).random(cells.n_obs) < 0.2
    train, labels = cells[~test].copy(), {"labels_key": "label"} if kind == "CondSCVI" else {}
    key = si.privacy.Key.generate("benchmark")
    model = si.model.from_scvi(kind, train, site_key="site", rng=seed, **labels, **ARGUMENTS[kind])
    untrained = si.model.from_scvi(
        kind, train.copy(), site_key="site", rng=seed, key_scheme=None, **labels, **ARGUMENTS[kind]
    )
    untrained.is_trained_ = True
    model.train(rounds, key=key, rng=seed, progress=False)
    yield "federated, keyed", scores(model.to_scvi(cells), cells, test)
    model.unlock(si.privacy.Key.generate(), force=True)
    yield "wrong key", scores(model.to_scvi(cells), cells, test)
    yield "untrained", scores(untrained.to_scvi(cells), cells, test)
    yield "pooled scvi-tools", scores(pooled(untrained, cells, test, 2 * rounds, seed), cells, test)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", choices=ARGUMENTS, default=list(ARGUMENTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for kind in given.kinds:
        for seed in range(given.seeds):
            for arm, found in row(kind, seed, given.rounds):
                rows.append({"model": kind, "arm": arm, "seed": seed, **found})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby(["model", "arm"], sort=False)
    print(table.agg(["mean", "min"]).round(3).to_string())


if __name__ == "__main__":
    main()
