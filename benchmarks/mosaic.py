"""Sections that measured different omics, in one embedding: the authors' simulated mosaic, and one of our own.

``--what domains``: the authors' replicate 1 (section 1 RNA and protein, 2 RNA, 3 protein; five domains; counts).
Agreement of k-means at five with the domains over seeds: pooled, federated (a section a site, section 1 the only
bridge), federated and keyed, all with default settings, beside simple baselines; and how well the two modalities of
section 1 match.
``--what lock``: the keyed model with wrong keys, without its modules, and untrained networks of its shape.
``--what imputation``: the files hold no truth for what a section did not measure, so a random half of section 1 keeps
one modality to itself (as a section of its own, whose other half then lies beside it, as in no real mosaic); likewise
sections 2 and 3 of generated mosaics, whose truth is known; beside the mean, and nearest neighbours in what was
measured.
``--what three``: generated RNA, protein and accessibility, unevenly over three sections.
``--what memory``: what the contrast of 8,000 spots in two modalities takes, forth and back, in a process of its own
(``spamosaic_peer.py contrast`` measures the original's).

    OMP_NUM_THREADS=1 python benchmarks/mosaic.py [--what domains lock imputation three memory] [--seeds 5] [--keys 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scinfl as si
from scinfl.federation import Payload
from scinfl.model.spamosaic._basis_fit import fit_bases
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import BasisOptions
from scinfl.model.spamosaic._spots import read_spots
from scinfl.module import contrastive_loss
from scinfl.privacy import Key

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
NAME = "spamosaic_sim_r{}_{}_adata_{}.h5ad"
MEASURED = {"rna": ("s1", "s2"), "adt": ("s1", "s3")}
OPTIONS = BasisOptions(n_components=30, n_features=2000, n_target=None, n_hops=2)


def replicate(folder, split=None, seed=0, number=1):
    """A replicate as MuData; ``split`` names a modality that a random half of section 1 keeps to itself."""
    mods, truth = {}, None
    for modality, names in MEASURED.items():
        parts = {}
        for name in names:
            adata = ad.read_h5ad(folder / NAME.format(number, name, modality))
            obs = pd.DataFrame({"domain": adata.obs["gt"].astype(str)}, index=adata.obs_names)
            var = pd.DataFrame(index=[f"{modality}_{feature}" for feature in adata.var_names])
            own = ad.AnnData(np.asarray(adata.layers["counts"], np.float32), obs, var)
            own.obsm["spatial"] = np.asarray(adata.obsm["spatial"])
            parts[name] = own
        if split is not None:
            whole = parts.pop("s1")
            aside = np.random.default_rng(seed).permutation(whole.n_obs) % 2 == 1
            parts = {"s1": whole[~aside].copy(), **parts}
            if modality == split:
                truth = whole[aside].copy()
            else:
                parts["s1 aside"] = whole[aside].copy()
        mods[modality] = si.pp.join_sections(parts, section_key="section")
    return joined(mods), truth


def joined(mods):
    mdata = md.MuData(mods)
    for column in ("section", "domain"):
        values = pd.concat([adata.obs[column].astype(str) for adata in mods.values()])
        mdata.obs[column] = values[~values.index.duplicated()].reindex(mdata.obs_names)
    return mdata


def a_key(*numbers):
    return Key(np.random.default_rng([11, *numbers]).bytes(32), federation="mosaic")


def fitted(mdata, seed, *, site_key, key=None, **options):
    si.model.SpaMosaic.setup_mudata(mdata, "section", site_key=site_key)
    model = si.model.SpaMosaic(mdata, key_scheme="coordinate" if key else None, rng=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Two sites", UserWarning)
        model.train(key=key, rng=seed, progress=False, **options)
    return model


# ---- baselines


def targets(mdata, seed):
    """Smoothed and aligned directions of each modality, which the networks learn to say, and its spots."""
    found = read_spots(mdata, section_key="section", site_key=None, spatial_key="spatial", layers={})
    fits = fit_bases(found, OPTIONS, key=None, protections=None, payload=Payload(), rng=seed)
    return {name: (fits[name].target, own.rows) for name, own in found.items()}


def by_ridge(mdata, seed):
    """No network: what a modality lacks is told by a ridge regression on the bridge, and both are joined."""
    parts = targets(mdata, seed)
    told = {name: np.full((mdata.n_obs, x.shape[1]), np.nan) for name, (x, _) in parts.items()}
    for name, (x, rows) in parts.items():
        told[name][rows] = x
    for name, (_, rows) in parts.items():
        for other, (_, own) in parts.items():
            if other != name:
                both = np.intersect1d(rows, own)
                lacking = np.setdiff1d(rows, own)
                fit = Ridge(1.0).fit(told[name][both], told[other][both])
                told[other][lacking] = fit.predict(told[name][lacking])
    return np.hstack(list(told.values()))


METHODS = {
    "directions and ridge on the bridge, no network": by_ridge,
    "SpaMosaic, pooled": lambda mdata, seed: fitted(mdata, seed, site_key=None),
    "SpaMosaic, federated": lambda mdata, seed: fitted(mdata, seed, site_key="section"),
    "SpaMosaic, federated and keyed": lambda mdata, seed: fitted(mdata, seed, site_key="section", key=a_key(seed)),
    "SpaMosaic, federated, with contrast": lambda mdata, seed: fitted(
        mdata, seed, site_key="section", contrast_weight=0.1
    ),
}


def agreement(mdata, embedding, seed, n_domains):
    found = KMeans(n_domains, n_init=10, random_state=seed).fit_predict(embedding)
    truth = mdata.obs["domain"]
    scores = {"ari": adjusted_rand_score(truth, found), "nmi": normalized_mutual_info_score(truth, found)}
    for section in sorted(set(mdata.obs["section"])):
        own = (mdata.obs["section"] == section).to_numpy()
        scores[f"ari {section}"] = adjusted_rand_score(truth[own], found[own])
    return scores


def matching(mdata, model):
    bridge = np.logical_and.reduce([model.spots()[name] for name in model.feature_names])
    both = [model.get_latent_representation(modality=name)[bridge] for name in list(model.feature_names)[:2]]
    table = si.metrics.modality_alignment(*both, labels=mdata.obs["domain"][bridge]).set_index("metric")["value"]
    return table[["matching_score", "foscttm", "label_transfer"]].to_dict()


def domains(mdata, seeds, n_domains):
    rows = []
    for seed in seeds:
        for method, function in METHODS.items():
            started = time.perf_counter()
            result = function(mdata, seed)
            scores = {}
            if not isinstance(result, np.ndarray):
                scores, result = matching(mdata, result), result.get_latent_representation()
            seconds = time.perf_counter() - started
            rows.append({"method": method, **agreement(mdata, result, seed, n_domains), **scores, "seconds": seconds})
    show(rows, "method", list(METHODS))


def show(rows, by, order):
    table = pd.DataFrame(rows).groupby(by, sort=False).agg(["mean", "sem"]).loc[order]
    for name in order:
        print(f"\n{name}")
        one = table.loc[name].unstack()
        print(
            "  "
            + "   ".join(f"{m} {v['mean']:.3f} ± {v['sem']:.3f}" for m, v in one.iterrows() if v["mean"] == v["mean"])
        )


# ---- without the key


def lock(mdata, seeds, n_keys, n_domains):
    rows = []
    for seed in seeds:
        model = fitted(mdata, seed, site_key="section", key=a_key(seed))
        said = [("right key", model.get_latent_representation())]
        said.append(("modules removed", model.stripped().get_latent_representation()))
        for number in range(n_keys):
            model.unlock(a_key(seed, 1 + number), force=True)
            said.append(("wrong keys", model.get_latent_representation()))
            said.append(("untrained", untrained(mdata, model, number)))
        rows += [
            {"network": network, **carried(mdata, x), **agreement(mdata, x, seed, n_domains)} for network, x in said
        ]
    table = pd.DataFrame(rows)
    for network, own in table.groupby("network", sort=False):
        print(f"\n{network} (n = {len(own)})")
        for column in ("label_transfer", "ari"):
            values = own[column].to_numpy()
            spread = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else np.nan
            print(f"  {column:15s} {values.mean():.3f} [{values.mean() - spread:.3f}, {values.mean() + spread:.3f}]")


def untrained(mdata, model, number):
    """A network of the same shape that never trained, on the same features."""
    other = si.model.SpaMosaic(mdata, key_scheme=None, rng=1000 + number)
    other._bases, other._normalise, other.is_trained_ = model._bases, model._normalise, True
    return other.get_latent_representation()


def carried(mdata, embedding):
    """How well the domains of section 1 name those of sections 2 and 3 (macro F1 of 10 neighbours)."""
    first = (mdata.obs["section"] == sorted(set(mdata.obs["section"]))[0]).to_numpy()
    labels = mdata.obs["domain"].to_numpy()
    told = KNeighborsClassifier(10).fit(embedding[first], labels[first]).predict(embedding[~first])
    return {"label_transfer": f1_score(labels[~first], told, average="macro")}


# ---- imputation


def imputed(mdata, truth, modality, section, seed):
    """Scores of what is told of one section, by method."""
    model = fitted(mdata, seed, site_key="section", key=a_key(seed))
    measured = ad.AnnData(truth.X, truth.obs, truth.var)
    counts = measured.X.toarray() if hasattr(measured.X, "toarray") else np.asarray(measured.X)
    how = model._normalise[modality]
    weights = model._bases[modality].weights
    wanted = normalised(counts.astype(np.float32), how, weights if len(weights) else None)
    bridge = model.normalised(modality)
    told = si.tl.impute(mdata, model, modality=modality, sections=[section])
    order = told.obs_names.get_indexer(truth.obs_names)
    near = si.tl.impute(mdata, pooled_with(mdata, seed), modality=modality, sections=[section], method="neighbours")
    results = {
        "decoder, across sites": told.X[order],
        "neighbours in the embedding, pooled": near.X[near.obs_names.get_indexer(truth.obs_names)],
        "nearest neighbours in what was measured": of_components(mdata, model, modality, truth.obs_names),
        "mean": np.tile(bridge.mean(0), (len(wanted), 1)),
    }
    wrong = []
    for number in range(5):
        model.unlock(a_key(seed, 1 + number), force=True)
        wrong.append(model.impute(modality)[mdata.obs_names.get_indexer(truth.obs_names)])
    rows = [{"method": name, **scored(wanted, x)} for name, x in results.items()]
    rows += [{"method": "wrong keys", **scored(wanted, x)} for x in wrong]
    other = si.model.SpaMosaic(mdata, key_scheme=None, rng=1000 + seed)
    other._bases, other._normalise, other.is_trained_ = model._bases, model._normalise, True
    rows.append(
        {"method": "untrained", **scored(wanted, other.impute(modality)[mdata.obs_names.get_indexer(truth.obs_names)])}
    )
    return rows


def pooled_with(mdata, seed):
    return fitted(mdata, seed, site_key=None)


def of_components(mdata, model, modality, names):
    """Mean of the 10 spots of the bridge that are nearest in the smoothed directions of the other modality."""
    parts = targets(mdata, 0)
    (other,) = (name for name in parts if name != modality)
    x, rows = parts[other]
    place = np.full(mdata.n_obs, -1)
    place[rows] = np.arange(len(rows))
    bridge = np.intersect1d(rows, parts[modality][1])
    wanted = mdata.obs_names.get_indexer(names)
    nearest = NearestNeighbors(n_neighbors=10).fit(x[place[bridge]]).kneighbors(x[place[wanted]])[1]
    return model.normalised(modality, rows=bridge)[nearest.ravel()].reshape(len(wanted), 10, -1).mean(1)


def scored(measured, told):
    table = si.metrics.imputation(measured, told).set_index("metric")["value"]
    return table[["pcc_cell", "pcc_feature", "cmd_cell", "cmd_feature", "rmse"]].to_dict()


def imputation(folder, seeds):
    cases = {}
    for seed in seeds:
        for modality in MEASURED:
            mdata, truth = replicate(folder, split=modality, seed=seed)
            case = f"replicate 1, {modality} of a random half of section 1"
            cases.setdefault(case, []).extend(imputed(mdata, truth, modality, "s1 aside", seed))
        mdata, whole = si.datasets.mosaic_simulated(rng=seed), si.datasets.mosaic_simulated(complete=True, rng=seed)
        for modality, section in (("adt", "section_2"), ("rna", "section_3")):
            own = mdata.obs_names[mdata.obs["section"] == section]
            case = f"generated, {modality} of {section}"
            cases.setdefault(case, []).extend(imputed(mdata, whole[modality][own].copy(), modality, section, seed))
    for case, rows in cases.items():
        print(f"\n== {case}")
        show(rows, "method", list(dict.fromkeys(row["method"] for row in rows)))


def three(seeds):
    rows = []
    for seed in seeds:
        mdata = si.datasets.mosaic_simulated(modalities=("rna", "adt", "atac"), rng=seed)
        for name, site_key, key in (
            ("pooled", None, None),
            ("federated", "site", None),
            ("federated and keyed", "site", a_key(seed)),
        ):
            started = time.perf_counter()
            model = fitted(mdata, seed, site_key=site_key, key=key)
            seconds = time.perf_counter() - started
            scores = agreement(mdata, model.get_latent_representation(), seed, mdata.obs["domain"].nunique())
            rows.append({"method": name, **scores, "seconds": seconds})
    show(rows, "method", ["pooled", "federated", "federated and keyed"])


def memory(n_spots=8000):
    """Peak memory of the contrastive loss and its gradient above what was there before, beside the published masks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    codes = [torch.randn(n_spots, 32, requires_grad=True) for _ in range(2)]
    started = time.perf_counter()
    contrastive_loss(codes).backward()
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    masks = 2 * (2 * n_spots) ** 2 * 4 / 1e9
    print(f"\n{n_spots} spots × 2: {grown:.2f} GB and {seconds:.1f} s; the two published masks alone {masks:.2f} GB")


def main():
    warnings.filterwarnings("ignore", "From 0.4", FutureWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["domains", "lock", "imputation", "three", "memory"]
    parser.add_argument("--what", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "spatial")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    if "memory" in arguments.what:  # first, and forked, because only the peak of a process is known
        memory_alone = multiprocessing.get_context("fork").Process(target=memory)
        memory_alone.start()
        memory_alone.join()
    if "domains" in arguments.what:
        domains(replicate(arguments.data)[0], seeds, 5)
    if "lock" in arguments.what:
        lock(replicate(arguments.data)[0], [0], arguments.keys, 5)
    if "imputation" in arguments.what:
        imputation(arguments.data, list(seeds)[:3])
    if "three" in arguments.what:
        three(list(seeds)[:3])


if __name__ == "__main__":
    main()
