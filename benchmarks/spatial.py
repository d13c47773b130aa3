"""Three sections of three mice at three sites, integrated without pooling: STARmap of the prefrontal cortex.

A section is a site; the truth are four layers; domains are k-means at four. Prints, as means over seeds with their
standard errors, agreement with the layers and mixing of the sections, beside simple baselines that pool the spots; the
lock (right key, 20 wrong keys, modules removed, 20 untrained networks of the same shape on the same features); and
every array that left one site. Mixing at 30 neighbours sees little but the spots an embedding was smoothed over, at 90
it sees beyond them.

The target of SpaMosaic is what its network learns to say, so that row tells what the network is worth beside its lock.

    OMP_NUM_THREADS=1 python benchmarks/spatial.py [--seeds 5] [--keys 20] [--data PATH]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import stats

import scinfl as si
from scinfl.federation import Payload
from scinfl.model.spamosaic._basis_fit import fit_bases
from scinfl.model.spamosaic._batches import centred, hop_matrix, propagated
from scinfl.model.spamosaic._spatial_basis import BasisOptions
from scinfl.model.spamosaic._spatial_graph import spatial_graph
from scinfl.model.spamosaic._spots import read_spots
from scinfl.privacy import Key

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
N_LAYERS, N_COMPONENTS, N_NEIGHBOURS, N_HOPS = 4, 30, 30, 2
COLUMNS = ["ari", "nmi", "mixing 90", "ilisi 90", "mixing 30", "label_transfer", "pas", "seconds"]
UNSEEN = ["ari", "mixing 90", "ilisi 90", "label_transfer"]
NETWORKS = ["right key", "wrong keys", "untrained", "modules removed"]


def read(path):
    adata = ad.read_h5ad(path)
    adata.obs = adata.obs[["z", "slice"]].astype(str).set_axis(["domain", "section"], axis=1)
    return adata


# ---- baselines: components are fitted on pooled spots, offsets and the target on sums over sites


def components(adata, *, by_section=False, scaled=True):
    work = adata.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    x = work.X.toarray() if hasattr(work.X, "toarray") else work.X
    parts = sections(adata) if by_section else [slice(None)]
    for own in parts if scaled else []:
        deviation = x[own].std(0)
        x[own] = (x[own] - x[own].mean(0)) / np.where(deviation > 0, deviation, 1)
    return sc.pp.pca(x, N_COMPONENTS, random_state=0)


def sections(adata):
    return [(adata.obs["section"] == name).to_numpy() for name in adata.obs["section"].unique()]


def smoothed(adata, x=None, *, by_section=False, n_neighbours=N_NEIGHBOURS):
    x = components(adata, by_section=by_section) if x is None else x
    graph = spatial_graph(adata.obsm["spatial"], section_of(adata), n_neighbours=n_neighbours)
    return propagated(x, hop_matrix(graph), N_HOPS)[-1]


def with_offsets(adata, x, seed, **options):
    work = ad.AnnData(np.zeros((adata.n_obs, 1), np.float32), adata.obs, obsm={"X_pca": x})
    si.pp.federated_offsets(work, site_key="section", key=a_key(seed), rng=seed, **options)
    return work.obsm["X_pca_aligned"]


def with_harmony(adata, x, seed):
    try:
        from harmonypy import run_harmony
    except ImportError as error:
        msg = "Expected harmonypy for the rows of Harmony, found none. Run `pip install harmonypy`."
        raise ImportError(msg) from error
    return run_harmony(x, adata.obs, "section", verbose=False, random_state=seed, ncores=1).Z_corr.astype(np.float32)


def aligned_target(adata, seed):
    """What the network of SpaMosaic learns to say, itself: sums over sites, and no network at all."""
    found = read_spots(adata, section_key="section", site_key="section", spatial_key="spatial", layers={})
    options = BasisOptions(n_components=30, n_features=2000, n_target=None, n_hops=2)
    (fit,) = fit_bases(found, options, key=None, protections=None, payload=Payload(), rng=seed).values()
    return fit.target


NARROW = {"diversity": 0.0, "width": 0.05, "n_prototypes": 39}  # as SpaMosaic aligns its target
BASELINES = {
    "PCA": lambda adata, _: components(adata),
    "PCA, centred per section": lambda adata, _: centred(components(adata), section_of(adata)),
    "smoothed PCA": lambda adata, _: smoothed(adata),
    "smoothed PCA, centred": lambda adata, _: centred(smoothed(adata), section_of(adata)),
    "PCA + Harmony": lambda adata, seed: with_harmony(adata, components(adata), seed),
    "smoothed PCA + Harmony": lambda adata, seed: with_harmony(adata, smoothed(adata), seed),
    "PCA + Harmony, smoothed": lambda adata, seed: smoothed(adata, with_harmony(adata, components(adata), seed)),
    "PCA of unscaled genes + Harmony, smoothed": lambda adata, seed: smoothed(
        adata, with_harmony(adata, components(adata, scaled=False), seed)
    ),
    "smoothed PCA, scaled per section": lambda adata, _: smoothed(adata, by_section=True),
    "smoothed PCA, offsets": lambda adata, seed: with_offsets(adata, smoothed(adata), seed),
    "smoothed PCA, centred, narrow offsets": lambda adata, seed: with_offsets(
        adata, centred(smoothed(adata), section_of(adata)), seed, **NARROW
    ),
    "target of SpaMosaic, no network": aligned_target,
}


def section_of(adata):
    return adata.obs["section"].to_numpy()


# ---- SpaMosaic


def a_key(*numbers):
    return Key(np.random.default_rng([7, *numbers]).bytes(32), federation="mice")


def fitted(adata, seed, *, site_key, key=None, **options):
    si.model.SpaMosaic.setup_anndata(adata, "section", site_key=site_key)
    model = si.model.SpaMosaic(adata, key_scheme="coordinate" if key else None, rng=seed)
    model.train(key=key, rng=seed, progress=False, **options)
    return model


MODELS = {
    "SpaMosaic, pooled": lambda adata, seed: fitted(adata, seed, site_key=None),
    "SpaMosaic, federated": lambda adata, seed: fitted(adata, seed, site_key="section"),
    "SpaMosaic, federated and keyed": lambda adata, seed: fitted(adata, seed, site_key="section", key=a_key(seed)),
}


# ---- scores


def scores(adata, embedding, seed):
    work = ad.AnnData(obs=adata.obs, obsm={"X": embedding})
    si.tl.cluster(work, N_LAYERS, use_rep="X", key_added="domain", rng=seed)
    found = {}
    for n in (90, 30):
        table = si.metrics.integration(
            embedding,
            batch=adata.obs["section"],
            labels=adata.obs["domain"],
            clusters=work.obs["domain"],
            coordinates=adata.obsm["spatial"],
            n_neighbours=n,
        )
        one = table.set_index("metric")["value"]
        found |= {f"{name} {n}" if name in ("mixing", "ilisi") else name: value for name, value in one.items()}
    return found


def compare(adata, seeds):
    rows, models = [], []
    for seed in seeds:
        for method, function in (BASELINES | MODELS).items():
            started = time.perf_counter()
            result = function(adata, seed)
            if method in MODELS:
                model, result = result, result.get_latent_representation()
            seconds = time.perf_counter() - started
            rows.append({"method": method, "seed": seed, **scores(adata, result, seed), "seconds": seconds})
        models.append(model)
    return pd.DataFrame(rows), models


def unseen(adata, seeds):
    """All sections embedded by a model that one of them took no part in."""
    rows = []
    for seed in seeds:
        for own in sections(adata):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Two sites")
                model = fitted(adata[~own].copy(), seed, site_key="section", key=a_key(seed))
            found = scores(adata, model.get_latent_representation(adata), seed)
            rows.append({"section left out": section_of(adata)[own][0], "seed": seed, **found})
    return pd.DataFrame(rows)


# ---- the lock


def lock(adata, models, n_keys):
    """Label transfer and ARI with and without the key, and of networks that were never trained."""
    rows = []
    si.model.SpaMosaic.setup_anndata(adata, "section")
    for seed, model in enumerate(models):
        rows.append(score_model(adata, model, "right key", seed))
        rows.append(score_model(adata, model.stripped(), "modules removed", seed))
        for number in range(n_keys):
            rows.append(score_model(adata, untrained(adata, model, 1000 * (seed + 1) + number), "untrained", seed))
            model.unlock(a_key(seed, 1, number), force=True)
            rows.append(score_model(adata, model, "wrong keys", seed))
        model.unlock(a_key(seed))
    return pd.DataFrame(rows)


def untrained(adata, model, seed):
    """The plain network of the model with random weights, on the same features."""
    other = si.model.SpaMosaic(adata, key_scheme=None, rng=seed)
    other._bases, other._normalise, other.is_trained_ = model._bases, model._normalise, True
    return other


def score_model(adata, model, name, seed):
    found = scores(adata, model.get_latent_representation(), seed)
    return {"network": name, "seed": seed, **{metric: found[metric] for metric in ("label_transfer", "ari")}}


# ---- what left a site


def payload(adata):
    """Table of what left one site."""
    sent = fitted(adata, 0, site_key="section", key=a_key(0)).payload
    return sent[sent["site"] == section_of(adata)[0]].drop(columns=["site", "norm"])


def merged(table):
    """One line an array: prototypes, whose number grows, by their largest shape, and all numbers of spots together."""
    weights = (table["array"] == "weight") | table["purpose"].str.startswith("total of")
    lines = []
    for (purpose, name), own in table[~weights].groupby(["purpose", "array"], sort=False):
        shape = own["shape"].iloc[0] if len(own) == 1 else f"≤ {own.loc[own['bytes'].idxmax(), 'shape']}"
        lines.append((purpose, name, shape, own["rounds"].sum(), own["bytes"].sum()))
    lines.append(("all of them", "weight and its total", "1", *table.loc[weights, ["rounds", "bytes"]].sum()))
    return pd.DataFrame(lines, columns=["purpose", "array", "shape", "times", "bytes"])


# ---- tables


def mean_and_error(values):
    return f"{values.mean():.3f} ± {values.sem():.3f}" if len(values) > 1 else f"{values.mean():.3f}"


def mean_and_interval(values):
    n, mean = len(values), values.mean()
    half = stats.t.ppf(0.975, n - 1) * values.sem() if n > 1 else np.nan
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]" if n > 1 else f"{mean:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "spatial" / "starmap_mpfc_3slices_labelled.h5ad")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    adata = read(options.data)
    n_sections = adata.obs["section"].nunique()
    print(f"{adata.n_obs} spots, {adata.n_vars} genes, {n_sections} sections; {options.seeds} seeds\n")
    table, models = compare(adata, range(options.seeds))
    print("mean ± standard error; pas is better when low\n")
    shown = table.groupby("method", sort=False)[COLUMNS].agg(mean_and_error)
    for part in (COLUMNS[:4], COLUMNS[4:]):
        print(shown[part].to_string(), end="\n\n")
    left_out = unseen(adata, range(options.seeds)).groupby("section left out")
    print("keyed, two sites: all sections embedded by a model that one of them took no part in\n")
    print(left_out[UNSEEN].agg(mean_and_error).to_string(), end="\n\n")
    locks = lock(adata, models, options.keys)
    groups = locks.groupby("network", sort=False)
    metrics = ["label_transfer", "ari"]
    print(f"the lock: mean [95 % interval] over seeds, and over {options.keys} keys or networks each\n")
    print(groups[metrics].agg(mean_and_interval).loc[NETWORKS].to_string())
    print("\nlabel transfer by seed: mean [95 % interval] of wrong keys and of untrained networks\n")
    by_seed = locks.groupby(["network", "seed"])["label_transfer"].agg(mean_and_interval).unstack("network")
    print(by_seed[NETWORKS].to_string())
    arrays = payload(adata)
    print(f"\nwhat left site '{section_of(adata)[0]}', each number as a masked 64-bit integer\n")
    print(merged(arrays).to_string(index=False))
    trained = arrays.loc[arrays["purpose"] == "training", "bytes"].sum()
    print(f"\nall: {arrays['bytes'].sum()} bytes, of which rounds of training {trained}")
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
