"""Does federation help a cell line? Three glioblastoma lines as sites, nine kinases repressed.

    python benchmarks/lines.py                          # a kinase that no line has repressed
    python benchmarks/lines.py --prior none             # the same, by the network alone as published
    python benchmarks/lines.py --here                   # a kinase that the other two lines have repressed

Cells of McFaline-Figueroa et al. (2024). Each seed deals the nine kinases into three parts; each part is held out in
turn, so every kinase is tested once a seed. A line's cells are compared with its own controls, one half to predict from
and the other to score with. Baselines are of the line's own training cells and of all lines. Prints mean scores, errors
by line, the worst seed, and paired differences over kinases (mean over lines and seeds; 95 %, t distribution).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import stats

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
METRICS = ["mse_de", "pearson_delta", "pearson_delta_perturbed", "discrimination_l2", "energy_distance"]
LINE = "cell_type"


def screen():
    adata = si.datasets.mcfaline(SHARED / "perturb" / "mcfaline2023_3lines_9kinases.h5ad")
    sc.pp.filter_genes(adata, min_cells=1)
    si.pp.perturbations(adata, unknown="keep")
    terms = pd.read_csv(SHARED / "go" / "gene2go_human_direct.tsv.gz", sep="\t")
    terms = terms[terms["symbol"].isin(kinases(adata))]
    return adata, terms.groupby("symbol")["go_id"].agg(list).to_dict()


def kinases(adata) -> list[str]:
    return [str(name) for name in adata.uns["infl"]["perturbations"]["conditions"]]


def parts(adata, seed: int) -> list[list[str]]:
    return [list(own) for own in np.array_split(np.random.default_rng(seed).permutation(kinases(adata)), 3)]


def split(adata, held_out, seed: int) -> None:
    sets = {"train": [name for name in kinases(adata) if name not in held_out], "val": [], "test": held_out}
    si.pp.split_perturbations(adata, "custom", custom=sets, site_key=LINE, rng=seed)


def new_to_all(adata, terms, seed: int, options) -> pd.DataFrame:
    """Kinases that no line has repressed."""
    tables = []
    for held_out in parts(adata, seed):
        split(adata, held_out, seed)
        table = si.tl.compare_perturbations(
            adata,
            terms,
            site_key=LINE,
            by_site=True,
            methods=options.methods,
            n_seeds=1,
            rng=seed,
            init={"prior": None if options.prior == "none" else options.prior},
            train=options.train,
            progress=False,
        )
        tables.append(table)
    return pd.concat(tables)


def new_to_one(adata, terms, seed: int, options) -> pd.DataFrame:
    """Kinases that one line has not repressed, the others have: trained over all lines with a key."""
    tables = []
    for held_out in parts(adata, seed):
        others = [name for name in kinases(adata) if name not in held_out]
        for line in adata.obs[LINE].cat.categories:
            split(adata, held_out, seed)
            at_line = (adata.obs[LINE] == line).to_numpy()
            own = adata[at_line].copy()
            si.pp.perturbations(own, unknown="keep")
            here = own.obs["infl_split"].copy()
            # in the other lines these kinases are for training, in this line their cells are in no set
            tested = adata.obs["infl_perturbation"].isin(held_out).to_numpy()
            adata.obs.loc[tested & ~at_line, "infl_split"] = "train"
            adata.obs.loc[tested & at_line, "infl_split"] = np.nan
            key = si.privacy.Key.generate()
            si.model.GEARS.setup_anndata(adata, site_key=LINE)
            model = si.model.GEARS(adata, gene_ontology=terms, rng=seed)
            # answered with what was measured, to which the network adds nothing: there is nothing to validate
            model.train(key=key, rng=seed, progress=False, validation_size=0, **options.train)
            right, usual = model.predict_change(held_out), model.predict_change(others).mean()
            model.unlock(si.privacy.Key.generate(), force=True)
            own.obs["infl_split"] = here
            cells = own[(here == "train").to_numpy()]
            alone = si.metrics.mean_changes(cells.X, cells.obs["infl_perturbation"], own.var_names).mean()
            changes = {"keyed": right, "own train mean + what is particular elsewhere": right - usual + alone}
            table = si.tl.score_perturbations(own, {**changes, "wrong key": model})
            tables.append(table.assign(site=line, seed=seed))
    return pd.concat(tables)


def report(scores: pd.DataFrame) -> None:
    scores = scores[scores["metric"].isin(METRICS)].assign(method=scores["method"].astype(str))
    order = [*dict.fromkeys(scores["method"])]
    overall = scores.groupby(["method", "metric", "seed"])["value"].mean()
    print("\nmean over lines and kinases")
    print(overall.groupby(["method", "metric"]).mean().unstack().loc[order, METRICS].round(4).to_string())
    worst = overall.xs("mse_de", level="metric").groupby("method").max()
    lines = scores[scores["metric"] == "mse_de"].groupby(["method", "site"])["value"].mean().unstack()
    print("\nMSE, top 20 DE genes, by line, and the worst seed")
    print(lines.assign(worst=worst).loc[order].round(4).to_string())
    each = scores[scores["metric"] == "mse_de"].groupby(["perturbation", "method"])["value"].mean().unstack()
    for method in [name for name in ("keyed", "FedAvg", "centralised") if name in each]:
        for other in [name for name in ("local-only", "train mean") if name in each]:
            gap = each[method] - each[other]
            low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
            print(f"{method} minus {other}: {gap.mean():+.4f} ({low:+.4f} … {high:+.4f}), of {each[other].mean():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="hold kinases out in one line alone")
    parser.add_argument("--prior", choices=["fitted", "additive", "mean", "none"], default="fitted")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="fewer rounds, to look at what the prior alone does")
    parser.add_argument("--methods", nargs="+", choices=si.tl.PERTURBATION_METHODS, default=si.tl.PERTURBATION_METHODS)
    options = parser.parse_args()
    options.train = {} if options.rounds is None else {"n_rounds": options.rounds, "loss": "squared"}
    warnings.simplefilter("ignore")
    adata, terms = screen()
    tables, started = [], time.perf_counter()
    for seed in range(options.seeds):
        tables.append((new_to_one if options.here else new_to_all)(adata, terms, seed, options))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    report(pd.concat(tables, ignore_index=True))


if __name__ == "__main__":
    main()
