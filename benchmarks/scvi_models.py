"""Models of scvi-tools trained over real sites, with and without a key: five batches of cell lines, or three embryos.

Prints, with one row a seed and then the worst of each arm, how well cells of a site are labelled by their nearest cells
of the other sites, how k-means clusters agree with the labels, how sites mix, and how the differences between labels
that the decoder expects correlate with those of the counts; of SCANVI how it labels the site whose labels it was not
given. Arms: federated keyed, the same read with wrong keys and with the keyed modules removed, federated without a key,
scvi-tools itself on pooled cells with batch and layer normalisation, one site alone, principal components, Harmony on
them (``pip install harmonypy``), and untrained networks. Then processor seconds an epoch with and without key, and of
scvi-tools' own trainer, in alternating blocks.

    python benchmarks/scvi_models.py [--data cell_lines embryos] [--parts atlas scanvi times] [--seeds 3] [--quick]
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
DATA = {  # file, site, label
    "cell_lines": ("singlecell/sc_mixology_5batches.h5ad", "batch", "cell_line"),
    "embryos": ("spatial/seqfish_mouse_embryo_3embryos.h5ad", "section", "celltype"),
}
PARTS = ["atlas", "scanvi", "times"]
SITE, LABEL = "site", "label"
LAYER_NORM = {"use_batch_norm": "none", "use_layer_norm": "both"}


def read(name, n_genes=800):
    """Counts of the genes that vary most on a log scale."""
    path, *columns = DATA[name]
    cells = ad.read_h5ad(SHARED / "data" / path)
    cells.obs = cells.obs[columns].astype(str).astype("category").set_axis([SITE, LABEL], axis=1)
    logged = cells.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    dense = [x.toarray() if hasattr(x, "toarray") else np.asarray(x) for x in (logged.X, cells.X)]
    genes = np.sort(np.argsort(-dense[0].var(0))[:n_genes])
    cells = cells[:, genes].copy()
    cells.X = dense[1][:, genes].astype(np.float32)
    cells.obsm["logged"] = dense[0][:, genes]
    return cells


def scores(embedding, cells):
    """Balanced accuracy of the vote of other sites' cells, agreement of clusters, and mixing."""
    site, label = (cells.obs[name].astype(str).to_numpy() for name in (SITE, LABEL))
    voted = np.empty(len(label), object)
    for name in np.unique(site):
        own = site == name
        neighbours = KNeighborsClassifier(10).fit(embedding[~own], label[~own])
        voted[own] = neighbours.predict(embedding[own])
    found = KMeans(len(set(label)), n_init=10, random_state=0).fit_predict(embedding)
    table = si.metrics.integration(embedding, batch=site, labels=label, clusters=found.astype(str))
    table = table.set_index("metric")["value"]
    return {
        "kNN accuracy": balanced_accuracy_score(label, voted.astype(str)),
        "ARI": table["ari"],
        "mixing": table["mixing"],
    }


def contrasts(model, cells):
    """Correlation of the log differences between labels that a decoder expects with those of the counts."""
    scvi.settings.seed = 0
    expected = np.log(1e-6 + model.get_normalized_expression(n_samples=1, return_numpy=True))
    observed = np.log(1e-6 + cells.X / cells.X.sum(1, keepdims=True).clip(1))
    labels, means = cells.obs[LABEL].to_numpy(), []
    for values, average in ((expected, np.mean), (observed, lambda x, axis: np.log(1e-6 + np.exp(x).mean(axis)))):
        own = np.stack([average(values[labels == label], 0) for label in np.unique(labels)])
        means.append((own - own.mean(0)).ravel())
    return np.corrcoef(*means)[0, 1]


def untrained(cells, seed):
    """A model with initial weights."""
    model = si.model.from_scvi("SCVI", cells.copy(), site_key=SITE, key_scheme=None, rng=seed)
    model.is_trained_ = True
    return model


def native(cells, epochs, seed, **options):
    """scvi-tools' own model and trainer on pooled cells; returns it and the processor seconds an epoch."""
    scvi.settings.seed = seed
    own = cells.copy()
    scvi.model.SCVI.setup_anndata(own, batch_key=SITE)
    model = scvi.model.SCVI(own, **options)
    started = time.process_time()
    model.train(
        epochs, train_size=0.9, batch_size=128, accelerator="cpu", enable_progress_bar=False, logger=False,
        enable_model_summary=False,
    )  # fmt: skip
    return model, (time.process_time() - started) / epochs


def federated(cells, key, rounds, seed, **options):
    """A trained model over all sites."""
    own = cells.copy()
    scheme = None if key is None else "coordinate"
    model = si.model.from_scvi("SCVI", own, site_key=SITE, key_scheme=scheme, rng=seed, **options)
    model.train(rounds, key=key, rng=seed, progress=False)
    return model


def arms(cells, seed, rounds):
    """Names of arms with their models, or for those without a decoder their embeddings."""
    key = si.privacy.Key.generate("benchmark")
    keyed = federated(cells, key, rounds, seed)
    yield "federated, keyed", keyed
    yield "keyed modules removed", keyed.stripped()
    for number in range(5):
        keyed.unlock(si.privacy.Key.generate("other"), force=True)
        yield f"wrong key {number}", keyed
    yield "federated, no key", federated(cells, None, rounds, seed)
    yield "pooled scvi-tools, batch norm", native(cells, 2 * rounds, seed)[0]
    yield "pooled scvi-tools, layer norm", native(cells, 2 * rounds, seed, **LAYER_NORM)[0]
    alone = cells[cells.obs[SITE] == cells.obs[SITE].cat.categories[0]].copy()
    model = si.model.from_scvi("SCVI", alone, site_key=None, key_scheme=None, rng=seed)
    model.train(rounds, rng=seed, progress=False)
    yield "one site alone", model.get_latent_representation(cells)
    components = sc.pp.pca(cells.obsm["logged"], n_comps=10, random_state=seed)
    yield "principal components", components
    try:
        from harmonypy import run_harmony
    except ImportError:
        print("no row of Harmony: pip install harmonypy")
    else:
        found = np.asarray(run_harmony(components, cells.obs, SITE, random_state=seed, verbose=False).Z_corr)
        yield "Harmony", found if len(found) == cells.n_obs else found.T
    for number in range(20):
        yield f"untrained {number}", untrained(cells, 100 * seed + number)


def score(arm, found, cells, seed):
    """One row of the table."""
    row = {"arm": arm.rstrip("0123456789 "), "seed": seed, "contrasts": np.nan}
    if not isinstance(found, np.ndarray):
        plain = found.to_scvi() if isinstance(found, si.model.ScviModel) else found
        row["contrasts"], found = contrasts(plain, cells), found.get_latent_representation()
    return {**row, **scores(found, cells)}


def scanvi(cells, seed, rounds):
    """Balanced accuracy of SCANVI on each site without labels there: right key, wrong key, pooled scvi-tools."""
    rows = []
    for hidden in cells.obs[SITE].cat.categories:
        own, is_hidden = cells.copy(), (cells.obs[SITE] == hidden).to_numpy()
        truth = own.obs[LABEL].astype(str).to_numpy()
        own.obs[LABEL] = pd.Categorical(np.where(is_hidden, "unknown", truth))
        names = {"labels_key": LABEL, "unlabeled_category": "unknown"}
        pooled = own.copy()
        model, key = si.model.from_scvi("SCANVI", own, site_key=SITE, rng=seed, **names), si.privacy.Key.generate()
        model.train(rounds, key=key, rng=seed, progress=False)
        right = model.predict()
        model.unlock(si.privacy.Key.generate(), force=True)
        wrong = model.predict()
        scvi.settings.seed = seed
        scvi.model.SCANVI.setup_anndata(pooled, batch_key=SITE, **names)
        peer = scvi.model.SCANVI(pooled, **LAYER_NORM)
        peer.train(2 * rounds, accelerator="cpu", enable_progress_bar=False, logger=False, enable_model_summary=False)
        found = {"federated, keyed": right, "wrong key": wrong, "pooled scvi-tools": peer.predict()}
        score = {name: balanced_accuracy_score(truth[is_hidden], p[is_hidden]) for name, p in found.items()}
        rows.append({"seed": seed, "hidden": hidden, **score})
    return rows


def times(cells, blocks):
    """Processor seconds an epoch over all cells, batches of 128, in alternating blocks of six rounds of two epochs."""
    rows, key = [], si.privacy.Key.generate()
    for block in range(blocks):
        row = {}
        for name, secret, protections in (("plain", None, ()), ("key", key, ()), ("key and keyed sum", key, "default")):
            own = cells.copy()
            scheme = None if secret is None else "coordinate"
            model = si.model.from_scvi("SCVI", own, site_key=SITE, key_scheme=scheme, rng=block)
            started = time.process_time()
            model.train(6, key=secret, protections=protections, batch_size=128, progress=False)
            row[name] = (time.process_time() - started) / 12
        row["scvi-tools"] = native(cells, 12, block, **LAYER_NORM)[1]
        rows.append(row)
    table = pd.DataFrame(rows)
    ratios = pd.DataFrame(
        {
            "key / plain": table["key"] / table["plain"],
            "key and keyed sum / plain": table["key and keyed sum"] / table["plain"],
            "plain / scvi-tools": table["plain"] / table["scvi-tools"],
        }
    )
    return table.median(), ratios.quantile([0.25, 0.5, 0.75])


def atlas(cells, seeds, rounds):
    """Print the table of all arms."""
    rows = []
    for seed in range(seeds):
        for arm, found in arms(cells, seed, rounds):
            rows.append(score(arm, found, cells, seed))
            print(pd.Series(rows[-1]).to_dict(), flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("arm", sort=False)
    print(table.agg(["mean", "min", "max"]).round(3).to_string(), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", choices=DATA, default=["cell_lines"])
    parser.add_argument(
        "--parts", nargs="+", choices=["atlas", "scanvi", "times"], default=["atlas", "scanvi", "times"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, four rounds, no SCANVI")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.rounds, given.blocks = 1, 4, 1
        given.parts = [part for part in given.parts if part != "scanvi"]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pd.set_option("display.width", 150)
    for name in given.data:
        cells = read(name)
        print(f"{name}: {cells.n_obs} cells, {cells.n_vars} genes, {cells.obs[SITE].nunique()} sites", flush=True)
        if "atlas" in given.parts:
            atlas(cells, given.seeds, given.rounds)
        if "times" in given.parts:
            median, ratios = times(cells, given.blocks)
            print(median.round(3).to_string(), ratios.round(3).to_string(), sep="\n", flush=True)
        if "scanvi" in given.parts:
            found = pd.DataFrame([row for seed in range(given.seeds) for row in scanvi(cells, seed, given.rounds)])
            print(found.round(3).to_string())
            print(found.drop(columns=["seed", "hidden"]).agg(["mean", "min"]).round(3).to_string())


if __name__ == "__main__":
    main()
