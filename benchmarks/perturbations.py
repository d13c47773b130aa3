"""Perturbation response beside simple baselines: generated screens whose truth is known, and real ones.

    python benchmarks/perturbations.py --data generated     # doubles interact; alone, pooled, federated, keyed, unkeyed
    python benchmarks/perturbations.py --data additive      # doubles are additive in log space
    python benchmarks/perturbations.py --data datlinger     # CROP-seq, stimulated Jurkat cells, 20 genes
    python benchmarks/perturbations.py --data mcf10a        # CROP-seq, MCF10A cells, 28 genes, single and double
    python benchmarks/perturbations.py --data norman        # 18 singles and 15 doubles of Norman et al.

Test perturbations are new ones: unseen doubles of seen singles (generated, mcf10a), unseen singles (datlinger), a
quarter of the genes with all that touches them (norman). Rounds, loss and shrinkage follow from validation
perturbations; settings are the defaults. Prints the mean over seeds with its standard error, the worst seed, the error
of the network relative to the additive baseline with a paired 95 % interval over the seeds (t distribution), and the
shrinkage. On generated data a seed is a new screen; on real data a new split.
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
from scipy import stats

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
METRICS = ["mse", "mse_de", "pearson_delta", "hit_rate", "opposite_direction_de", "energy_distance"]
FIELD = ["pearson_delta_perturbed", "discrimination_l1", "discrimination_l2", "discrimination_cosine"]
FIELD += ["de_overlap", "de_direction"]
ALL = si.tl.PERTURBATION_METHODS


SIZE = {"n_singles": 100, "n_doubles": 130}  # as many as Norman et al. 2019


def generated(seed: int, interaction: float):
    adata = si.datasets.perturbseq_simulated(500, **SIZE, n_cells=40, interaction=interaction, rng=seed)
    si.pp.perturbations(adata)
    si.pp.split_perturbations(adata, "combo_seen2", test_fraction=0.25, rng=1)
    si.pp.split_sites(adata, 5, by="infl_perturbation", alpha=0.5, everywhere=["ctrl"], rng=seed)
    return adata, adata.uns["gene_terms"]


def prepared(adata, ontology, kind: str, seed: int, **options):
    sc.pp.filter_genes(adata, min_cells=1)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    si.pp.perturbations(adata, known_genes=ontology.loc[:, "source"], unknown="drop")
    si.pp.split_perturbations(adata, kind, rng=seed, **options)
    return adata


def datlinger(seed: int):
    ontology = pd.read_csv(SHARED / "go" / "go_datlinger2021.csv")
    adata = ad.read_h5ad(SHARED / "perturb" / "datlinger2021_scifi_cropseq_jurkat.h5ad")
    # stimulation changes more than any perturbation, and controls are not spread over it as perturbations are
    adata = adata[(adata.obs["stimulation"] == "stimulated").to_numpy()].copy()
    adata = prepared(adata, ontology, "simulation_single", seed)
    si.pp.split_sites(
        adata, 4, by="infl_perturbation", alpha=1.0, everywhere=["ctrl"], rng=seed
    )  # a well has one guide
    return adata, ontology


def mcf10a(seed: int):
    adata = ad.read_h5ad(SHARED / "perturb" / "cropseq_mcf10a_28genes.h5ad")
    counts = adata.obs["condition"].value_counts()
    adata = adata[adata.obs["condition"].isin(counts.index[counts >= 5]).to_numpy()].copy()
    genes = sorted({gene for name in adata.obs["condition"].unique() for gene in name.split("+")} - {"ctrl"})
    terms = pd.read_csv(SHARED / "go" / "gene2go_human_direct.tsv.gz", sep="\t")
    terms = terms[terms["symbol"].isin(genes)].groupby("symbol")["go_id"].agg(list).to_dict()
    ontology = si.model._gene_ontology.gene_similarity(terms)
    adata = prepared(adata, ontology, "combo_seen2", seed, test_fraction=0.25)
    si.pp.split_sites(adata, 3, rng=seed)
    return adata, ontology


def norman(seed: int):
    adata = si.datasets.norman_subset(SHARED / "perturb" / "norman2019_subset_33perturbations.h5ad")
    sc.pp.filter_genes(adata, min_cells=1)
    si.pp.perturbations(adata, unknown="keep")
    si.pp.split_perturbations(adata, rng=seed)
    si.pp.split_sites(adata, 3, rng=seed)
    return adata, pd.read_csv(SHARED / "go" / "go_norman2019.csv")


DATA = {
    "norman": (norman, ALL),
    "generated": (lambda seed: generated(seed, 1.0), ALL),
    "additive": (lambda seed: generated(seed, 0.0), ("centralised",)),
    "datlinger": (datlinger, ("centralised", "FedAvg", "keyed", "wrong key", "modules removed")),
    "mcf10a": (mcf10a, ("centralised", "FedAvg", "keyed", "wrong key", "modules removed")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=[*DATA], required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=ALL, help="by default all that make sense for the data")
    parser.add_argument("--size", type=int, nargs=2, metavar=("SINGLES", "DOUBLES"), help="of generated screens")
    parser.add_argument("--loss", choices=["auto", "squared", "quartic"], default="auto")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.size:
        SIZE.update(zip(SIZE, options.size, strict=True))
    make, methods = DATA[options.data]
    methods = tuple(options.methods or methods)
    tables, shrinkage, started = [], {}, time.perf_counter()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        adata, ontology = make(seed)
        table = si.tl.compare_perturbations(
            adata,
            ontology,
            site_key="site",
            methods=methods,
            n_seeds=1,
            rng=seed,
            progress=False,
            train={"loss": options.loss},
        )
        shrinkage |= table.attrs["shrinkage"]
        tables.append(table[table["metric"].isin([*METRICS, *FIELD])])
        print(f"seed {seed}: {adata.shape}, {time.perf_counter() - started:.0f} s", flush=True)
    scores = pd.concat(tables).groupby(["method", "seed", "metric"], observed=True, sort=False)["value"].mean()
    wide = scores.unstack("metric")
    by_method = wide.groupby("method", sort=False, observed=True)
    mean, error, low, high = by_method.mean(), by_method.sem(), by_method.min(), by_method.max()
    for metrics in (METRICS, FIELD):
        print(mean[metrics].map("{:.3g}".format).add(" ± ").add(error[metrics].map("{:.1g}".format)).to_string())
    worst = low.assign(**high[[name for name in wide if name.startswith(("mse", "opposite", "energy"))]])
    print(f"worst seed\n{worst[[*METRICS, *FIELD]].to_string(float_format='{:.3g}'.format)}")
    if "additive" in mean.index:
        for method in [name for name in methods if name in mean.index]:
            ratio = wide.loc[method, "mse_de"] / wide.loc["additive", "mse_de"] - 1
            low, high = np.nan, np.nan
            if len(ratio) > 1:
                low, high = stats.t.interval(0.95, len(ratio) - 1, ratio.mean(), stats.sem(ratio))
            print(f"{method}: MSE(de) relative to additive {ratio.mean():+.1%} (95 % {low:+.1%} … {high:+.1%})")
    if "centralised" in methods:
        for method in [name for name in ("FedAvg", "keyed") if name in methods]:
            gap = wide.loc[method, "pearson_delta"] - wide.loc["centralised", "pearson_delta"]
            print(f"{method} minus centralised, Pearson of the change: {gap.mean():+.3f} ± {gap.sem():.3f}")
    for (method, seed), shares in shrinkage.items():
        print(f"network's part, {method}, seed {seed}:", {order: round(share, 2) for order, share in shares.items()})


if __name__ == "__main__":
    main()
