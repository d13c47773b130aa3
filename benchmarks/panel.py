"""Every labelled set × model × seed beside its simple baselines, in one table: defaults only, bad rows included.

A default that was set with the labels of one set in view fits that set; the table shows whether it holds on others.

- sections: SpaMosaic, pooled and one site a section with a key, beside principal components: plain, after Harmony, and
  averaged over 20 neighbours twice. Adjusted Rand index of k-means at the true number of labels, all sections at once.
- mosaics: SpaMosaic beside a ridge regression on the bridge without any network; the same score.
- classes: Classifier over its sites with a key beside logistic regression, pooled and of single sites. Macro-F1 on held
  out samples, of other patients where patients are known.
- perturbations: GEARS, pooled and over sites with a key, beside no change, the train mean and the additive rule. MSE of
  the 20 genes that change most, test perturbations, by how much of them was seen in training.

``margin`` is the mean of the model minus that of the best baseline (for errors: their relative difference, positive
where the model is better); the best of several baselines is picked with the labels in view, which favours baselines.
A run that ends in an error is a row too. Without ``--full`` small sets, two seeds.

    pip install harmonypy
    OMP_NUM_THREADS=1 python benchmarks/panel.py [--full] [--tasks sections mosaics classes perturbations] [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import mosaic
import numpy as np
import pandas as pd
import perturbations
import scanpy as sc
import spatial
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

import scinfl as si
from scinfl.privacy import Key

DATA = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
TOLERANCE = 0.02
COLUMNS = ["task", "set", "score", "model", "mean", "worst", "seeds", "margin", "baselines", "published"]
COLUMNS += ["seconds", "errors"]


@dataclass(frozen=True)
class Case:
    """A set of data: what reads it by seed, whether the quick panel has it, and what was published for it."""

    read: Callable
    quick: bool = True
    published: str = ""


def timed(function):
    """What a run gives, and its CPU seconds; the error, if it ends in one."""
    started, value, error = time.process_time(), np.nan, ""
    try:
        value = function()
    except ImportError:
        raise
    except Exception as raised:  # noqa: BLE001 a run that fails is a row
        error = f"{type(raised).__name__}: {raised}".splitlines()[0]
    return {"value": value, "seconds": time.process_time() - started, "error": error}


def a_key(seed):
    return Key(np.random.default_rng([13, seed]).bytes(32), federation="panel")


# ---- sections and mosaics


def sections(label, section, *files):
    """Spots with a label, ``obs["domain"]``, in the sections ``obs["section"]``."""

    def read(_):
        parts = []
        for file in files:
            adata = ad.read_h5ad(DATA / "spatial" / f"{file}.h5ad")
            obs = {"domain": adata.obs[label].astype(str)}
            obs["section"] = adata.obs[section].astype(str) if section else "1"
            parts.append(ad.AnnData(adata.X, pd.DataFrame(obs), adata.var, obsm={"spatial": adata.obsm["spatial"]}))
        adata = ad.concat(parts, index_unique="-")
        return adata[(adata.obs["domain"] != "nan").to_numpy()].copy()

    return read


def spamosaic(adata, seed, *, keyed):
    if not keyed:
        return spatial.fitted(adata, seed, site_key=None).get_latent_representation()
    return spatial.fitted(adata, seed, site_key="section", key=a_key(seed)).get_latent_representation()


def with_harmony(adata, seed):
    return spatial.with_harmony(adata, spatial.components(adata), seed)


WIDTH = {"n_neighbours": 20}
ONE_SECTION = {
    "PCA": lambda adata, _: spatial.components(adata),
    "PCA, smoothed": lambda adata, _: spatial.smoothed(adata, **WIDTH),
    "PCA of unscaled genes, smoothed": lambda adata, _: spatial.smoothed(
        adata, spatial.components(adata, scaled=False), **WIDTH
    ),
}
MORE_SECTIONS = {
    "PCA": ONE_SECTION["PCA"],
    "PCA + Harmony": with_harmony,
    "PCA + Harmony, smoothed": lambda adata, seed: spatial.smoothed(adata, with_harmony(adata, seed), **WIDTH),
    "PCA of unscaled genes + Harmony, smoothed": lambda adata, seed: spatial.smoothed(
        adata, spatial.with_harmony(adata, spatial.components(adata, scaled=False), seed), **WIDTH
    ),
}


def of_sections(adata, seed):
    several = len(set(adata.obs["section"])) > 1
    methods = dict(MORE_SECTIONS if several else ONE_SECTION)
    methods["SpaMosaic, pooled"] = lambda *args: spamosaic(*args, keyed=False)
    if several:
        methods["SpaMosaic, keyed sites"] = lambda *args: spamosaic(*args, keyed=True)
    yield from clustered(adata, seed, methods)


def of_mosaics(mdata, seed):
    def embedding(function):
        def run(*args):
            found = function(*args)
            return found if isinstance(found, np.ndarray) else found.get_latent_representation()

        return run

    names = {
        "directions and ridge on the bridge, no network": "ridge on the bridge",
        "SpaMosaic, pooled": "SpaMosaic, pooled",
        "SpaMosaic, federated and keyed": "SpaMosaic, keyed sites",
    }
    methods = {shown: embedding(mosaic.METHODS[name]) for name, shown in names.items()}
    yield from clustered(mdata, seed, methods)


def clustered(data, seed, methods):
    truth = data.obs["domain"]
    for name, function in methods.items():

        def score(function=function):
            found = KMeans(truth.nunique(), n_init=10, random_state=seed).fit_predict(function(data, seed))
            return adjusted_rand_score(truth, found)

        yield "", "ARI", name, timed(score)


# ---- classes


def proteins(_):
    return classes(si.datasets.tcga_proteins(DATA / "bulk" / "tcga_rppa.h5ad"), "cancer", "region", "patient")


def mirna(_):
    return classes(si.datasets.tcga_mirna(DATA / "bulk" / "tcga_mirnaseq.h5ad"), "cancer", "region", "patient")


def reference_materials(_):
    adata = ad.read_h5ad(DATA / "bulk" / "quartet_proteomics_48x2539.h5ad")
    return classes(adata, "condition", "client")


def cell_lines(_):
    adata = ad.read_h5ad(DATA / "singlecell" / "sc_mixology_5batches.h5ad")
    adata = adata[(adata.obs["demuxlet_cls"] == "SNG").to_numpy()].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=1000)
    return classes(adata[:, adata.var["highly_variable"]].copy(), "cell_line", "batch")


def blood(seed):
    adata = sc.datasets.pbmc68k_reduced()
    si.pp.split_sites(adata, 3, by="bulk_labels", alpha=1.0, rng=seed)
    return classes(adata, "bulk_labels", "site")


def classes(adata, label, site, group=None):
    """The same with ``obs["class"]``, ``obs["site"]`` and ``obs["group"]``, and nothing else."""
    group = pd.Series(adata.obs_names, adata.obs_names) if group is None else adata.obs[group]
    obs = pd.DataFrame({"class": adata.obs[label], "site": adata.obs[site], "group": group}).astype(str)
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    return ad.AnnData(np.asarray(x, np.float32), obs, pd.DataFrame(index=adata.var_names))


def of_classes(adata, seed):
    grouped = adata.obs["group"].duplicated().any()
    splitter = (GroupShuffleSplit if grouped else StratifiedShuffleSplit)(1, test_size=0.25, random_state=seed)
    rows, test_rows = next(splitter.split(adata.X, adata.obs["class"], adata.obs["group"]))
    train, test = adata[rows].copy(), adata[test_rows].copy()

    def macro_f1(predicted):
        return f1_score(test.obs["class"], predicted, average="macro")

    def logistic(own):
        labels = own.obs["class"]
        if len(set(labels)) == 1:
            return macro_f1(np.full(test.n_obs, labels.iloc[0]))
        return macro_f1(LogisticRegression(max_iter=1000).fit(own.X, labels).predict(test.X))

    def single_sites():
        sites = train.obs["site"]
        return np.mean([logistic(train[(sites == site).to_numpy()]) for site in sites.unique()])

    def classifier():
        si.model.Classifier.setup_anndata(train, labels_key="class", site_key="site", group_key="group")
        model = si.model.Classifier(train, rng=seed)
        model.train(key=a_key(seed), rng=seed, progress=False)
        return macro_f1(model.predict(test))

    yield "", "macro-F1", "logistic regression, pooled", timed(lambda: logistic(train))
    yield "", "macro-F1", "logistic regression, single sites", timed(single_sites)
    yield "", "macro-F1", "Classifier, keyed sites", timed(classifier)


# ---- perturbations


def of_perturbations(screen, seed):
    adata, ontology = screen
    names = {"centralised": "GEARS, pooled", "keyed": "GEARS, keyed sites"}

    def table(methods):
        options = {"site_key": "site", "n_seeds": 1, "n_keys": 1, "rng": seed, "progress": False}
        found = si.tl.compare_perturbations(adata, ontology, methods=methods, **options)
        return found[found["metric"] == "mse_de"].groupby(["subgroup", "method"], observed=True)["value"].mean()

    shown_baselines = False
    for method, shown in names.items():
        result = timed(lambda method=method: table((method,)))
        if result["error"]:
            yield "", "MSE(de)", shown, result
            continue
        for (subgroup, name), value in result["value"].items():
            if name == method:
                yield f": {subgroup}", "MSE(de)", shown, result | {"value": value}
            elif not shown_baselines:
                yield f": {subgroup}", "MSE(de)", name, result | {"value": value, "seconds": np.nan}
        shown_baselines = True


TASKS = {
    "sections": of_sections,
    "mosaics": of_mosaics,
    "classes": of_classes,
    "perturbations": of_perturbations,
}
SETS = {
    "sections": {
        "STARmap, layers": Case(sections("z", "slice", "starmap_mpfc_3slices_labelled")),
        "STARmap, cell types": Case(sections("c", "slice", "starmap_mpfc_3slices_labelled"), quick=False),
        "osmFISH cortex, regions": Case(sections("Region", "section", "osmfish_sscortex")),
        "DLPFC 151510, layers": Case(sections("layer", "section", "dlpfc_151510_500genes")),
        "olfactory bulb, layers": Case(sections("layer", None, "mob_st_rep11")),
        "seqFISH embryos, cell types": Case(sections("celltype", "section", "seqfish_mouse_embryo_3embryos")),
        "popari, generated domains": Case(sections("domain", "section", "sim_popari_2sections_domains")),
        "lymph nodes (protein), regions": Case(
            sections("final_annot", "src", "spamosaic_hln_s1_adt", "spamosaic_hln_s2_adt"), quick=False
        ),
    },
    "mosaics": {
        "simulated mosaic 1": Case(
            lambda _: mosaic.replicate(DATA / "spatial")[0], published="0.875 (spamosaic 1.0.3, its authors' settings)"
        ),
        "simulated mosaic 2": Case(lambda _: mosaic.replicate(DATA / "spatial", number=2)[0]),
    },
    "classes": {
        "TCGA proteins": Case(proteins, quick=False),
        "TCGA micro-RNAs": Case(mirna, quick=False),
        "Quartet proteomics": Case(reference_materials),
        "cell lines, 5 batches": Case(cell_lines),
        "blood cells, simulated sites": Case(blood),
    },
    "perturbations": {
        "Norman, 33 perturbations": Case(perturbations.norman),
        "Jurkat, 20 genes": Case(perturbations.datlinger, quick=False),
        "MCF10A, 28 genes": Case(perturbations.mcf10a, quick=False),
        "generated, interactions": Case(lambda seed: perturbations.generated(seed, 1.0)),
        "generated, additive": Case(lambda seed: perturbations.generated(seed, 0.0), quick=False),
    },
}
MODELS = ("SpaMosaic", "Classifier", "GEARS")


# ---- runs and tables


def run(task, name, case, seed):
    """One row for each method of a set."""
    for suffix, metric, method, result in TASKS[task](case.read(seed), seed):
        row = {"task": task, "set": name + suffix, "score": metric, "method": method, "seed": seed}
        yield {**row, **result, "published": case.published}


def summary(rows):
    """A line for each set and model: mean and worst seed, beside all baselines."""
    lines = []
    for (task, name, metric), own in rows.groupby(["task", "set", "score"], sort=False):
        model = own["method"].str.startswith(MODELS)
        means = own[~model].groupby("method", sort=False)["value"].agg(lambda values: values.mean(skipna=False))
        lower = metric.startswith("MSE")
        best = means.min() if lower else means.max()
        shown = "; ".join(f"{method} {value:.3f}" for method, value in means.items())
        for method, runs in own[model].groupby("method", sort=False):
            mean = runs["value"].mean(skipna=False)
            worst = runs["value"].max() if lower else runs["value"].min()
            margin = 1 - mean / best if lower else mean - best
            line = (task, name, metric, method, mean, worst, len(runs), margin, shown, own["published"].iloc[0])
            lines.append((*line, runs["seconds"].mean(), " ".join(sorted(set(own["error"]) - {""}))[:200]))
    return pd.DataFrame(lines, columns=COLUMNS)


def markdown(table):
    shown = table.assign(margin=table["margin"].map("{:+.3f}".format), seconds=table["seconds"].map("{:.1f}".format))
    shown[["mean", "worst"]] = shown[["mean", "worst"]].map("{:.3f}".format)
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sets, five seeds")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--sets", nargs="+", default=[""], help="parts of the names of the sets to run")
    parser.add_argument("--seeds", type=int, help="2, or 5 of the full panel")
    parser.add_argument("--out", type=Path, help="folder for rows.csv (every run), panel.csv and panel.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not options.full:
        perturbations.SIZE.update(n_singles=24, n_doubles=36)
    started, rows = time.time(), []
    for task in options.tasks:
        for name, case in SETS[task].items():
            named = any(part.lower() in name.lower() for part in options.sets if part)
            if not (named if any(options.sets) else options.full or case.quick):
                continue
            for seed in range(options.seeds or (5 if options.full else 2)):
                rows += run(task, name, case, seed)
                print(f"{time.time() - started:5.0f} s  {name}, seed {seed}", file=sys.stderr, flush=True)
            if options.out:
                write(options.out, pd.DataFrame(rows))
    table = summary(pd.DataFrame(rows))
    print(markdown(table))
    behind = (table["errors"] != "") | ~(table["margin"] >= -TOLERANCE)
    print(f"\n{behind.sum()} of {len(table)} rows fail or are more than {TOLERANCE} behind their best baseline")


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    table = summary(rows)
    rows.to_csv(folder / "rows.csv", index=False)
    table.to_csv(folder / "panel.csv", index=False)
    (folder / "panel.md").write_text(markdown(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
