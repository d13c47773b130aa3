"""GEARS with its defaults beside simple rules, on generated screens of several generators and on real ones.

    python benchmarks/screens.py                         # quick: few conditions, two seeds, pooled
    python benchmarks/screens.py --full                  # more seeds, sizes, and three sites with a key
    python benchmarks/screens.py --data hill norman --seeds 5 --sites 3

Generators: ``programmes`` (:func:`scinfl.datasets.perturbseq_simulated`), ``loglinear`` (additive logarithms with
multiplicative noise, no interactions), ``hill`` (genes read pathways through a steep Hill function, counts are
Poisson), ``signs`` (most single genes do nothing, a few genes of a pair turn their sign, negative binomial counts)
and ``network`` (a sparse regulatory network settles with the perturbed genes switched off, a third of the cells
escape, no terms). Held out are every sixth perturbed gene with all its pairs, and a third of the other pairs; of real
screens one part of five.

Prints the mean squared error over the 20 most changed genes relative to the best simple rule (no change, train mean,
additive; the one that is best on the test perturbations, which nobody knows beforehand), and to each of them; and how
many held-out values lie within the predicted error.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import stats

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
RULES = ["no change", "train mean", "additive"]
SIZES = {"few": (20, 16), "many": (40, 60)}  # single genes and pairs
N_GENES, N_CELLS, N_CONTROLS = 200, 30, 300


def programmes(rng, n_singles, n_doubles, *, interaction=1.0):
    adata = si.datasets.perturbseq_simulated(
        N_GENES,
        n_singles=n_singles,
        n_doubles=n_doubles,
        n_cells=N_CELLS,
        n_controls=N_CONTROLS,
        interaction=interaction,
        rng=int(rng.integers(1 << 30)),
    )
    return adata, adata.uns["gene_terms"]


def _design(rng, n_singles, n_doubles):
    """Pathway of each perturbed gene, pairs, and terms that know most pathways."""
    pathway = rng.integers(0, max(3, n_singles // 5), n_singles)
    pairs = list(combinations(range(n_singles), 2))
    pairs = [pairs[index] for index in rng.choice(len(pairs), n_doubles, replace=False)]
    terms = {
        f"G{gene}": [*(f"path{own}:{k}" for k in range(4) if rng.random() < 0.8), f"other{rng.integers(9)}"]
        for gene, own in enumerate(pathway)
    }
    return pathway, [(gene,) for gene in range(n_singles)] + pairs, terms


def _screen(means, sets, draw):
    """Cells of each condition: ``means`` (conditions × genes, controls first) with noise."""
    sizes = [N_CONTROLS, *[N_CELLS] * len(sets)]
    names = ["ctrl", *("+".join(f"G{gene}" for gene in sorted(own)) for own in sets)]
    x = np.concatenate([draw(mean, size) for mean, size in zip(means, sizes, strict=True)])
    obs = pd.DataFrame({"condition": np.repeat(names, sizes)}, index=[f"cell{i}" for i in range(len(x))])
    return ad.AnnData(x.astype(np.float32), obs, pd.DataFrame(index=[f"G{gene}" for gene in range(N_GENES)]))


def loglinear(rng, n_singles, n_doubles):
    pathway, sets, terms = _design(rng, n_singles, n_doubles)
    shared = rng.normal(0, 0.5, (pathway.max() + 1, N_GENES)) * (rng.random((pathway.max() + 1, N_GENES)) < 0.2)
    effect = shared[pathway] * rng.uniform(0.3, 1.5, (n_singles, 1))
    effect += rng.normal(0, 0.4, effect.shape) * (rng.random(effect.shape) < 0.08)
    base = rng.uniform(0.5, 3, N_GENES)
    means = np.stack([base, *(base + effect[list(own)].sum(0) for own in sets)])
    return _screen(means, sets, lambda m, n: np.clip(m + rng.normal(0, 0.6, (n, len(m))), 0, None)), terms


def hill(rng, n_singles, n_doubles):
    pathway, sets, terms = _design(rng, n_singles, n_doubles)
    reads = rng.normal(0, 1.3, (pathway.max() + 1, N_GENES)) * (rng.random((pathway.max() + 1, N_GENES)) < 0.35)
    dose = np.zeros((n_singles, pathway.max() + 1))
    dose[np.arange(n_singles), pathway] = rng.uniform(0.6, 1.6, n_singles)
    dose[np.arange(n_singles), rng.integers(0, dose.shape[1], n_singles)] += rng.uniform(0, 0.8, n_singles)
    base = rng.normal(0, 1, N_GENES)

    def change(own):
        total = dose[list(own)].sum(0) ** 4
        active = total / (0.9**4 + total)
        return active @ reads / (1 + 0.8 * max(active.sum() - 1, 0))  # and pathways buffer each other

    means = np.stack([base, *(base + change(own) for own in sets)])

    def draw(mean, n):
        rate = np.exp(mean) / np.exp(mean).sum()
        return _logged(rng.poisson(rate * rng.lognormal(np.log(2000), 0.3, (n, 1))))

    return _screen(means, sets, draw), terms


def signs(rng, n_singles, n_doubles):
    _, sets, terms = _design(rng, n_singles, n_doubles)
    effect = rng.laplace(0, 0.6, (n_singles, N_GENES)) * (rng.random((n_singles, N_GENES)) < 0.15)
    effect[rng.random(n_singles) < 0.6] = 0
    base = rng.normal(0, 1, N_GENES)
    means = [base]
    for own in sets:
        turn = np.where((rng.random(N_GENES) < 0.15) & (len(own) > 1), -1, 1)
        means.append(base + turn * effect[list(own)].sum(0))

    def draw(mean, n):
        rate = 2000 * np.exp(mean) / np.exp(mean).sum()
        return _logged(rng.negative_binomial(3, 3 / (3 + np.tile(rate, (n, 1)))))

    return _screen(np.stack(means), sets, draw), terms


def network(rng, n_singles, n_doubles):
    _, sets, _ = _design(rng, n_singles, n_doubles)
    regulates = rng.normal(0, 0.5, (N_GENES, N_GENES)) * (rng.random((N_GENES, N_GENES)) < 4 / N_GENES)
    regulates[:, :n_singles] += rng.normal(0, 0.8, (N_GENES, n_singles)) * (rng.random((N_GENES, n_singles)) < 0.06)
    base, cycle = rng.normal(0, 1.2, N_GENES), rng.normal(0, 0.5, N_GENES) * (rng.random(N_GENES) < 0.1)

    def settled(own):
        state = np.zeros(N_GENES)
        for _ in range(60):
            pull = regulates @ np.tanh(state)
            pull[list(own)] = -2.5
            state = (state + pull) / 2
        return base + state

    rest = settled(())

    def draw(mean, n):
        level = np.where(rng.random((n, 1)) < 0.3, rest, mean) + rng.normal(0, 1, (n, 1)) * cycle
        rate = np.exp(level + rng.normal(0, 0.15, level.shape))
        return _logged(rng.poisson(rate / rate.sum(1, keepdims=True) * rng.lognormal(np.log(4000), 0.4, (n, 1))))

    return _screen(np.stack([rest, *map(settled, sets)]), sets, draw), None


def _logged(counts):
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 2000)


def additive(rng, n_singles, n_doubles):
    return programmes(rng, n_singles, n_doubles, interaction=0.0)


GENERATED = {f.__name__: f for f in (programmes, additive, loglinear, hill, signs, network)}


def _real(name, condition, *, prepare=False, keep=lambda adata: adata):
    adata = keep(ad.read_h5ad(SHARED / "perturb" / name))
    adata.obs["condition"] = condition(adata).astype(str).to_numpy()
    if prepare:
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
    genes = sorted({gene for own in adata.obs["condition"].unique() for gene in own.split("+")} - {"ctrl"})
    terms = pd.read_csv(SHARED / "go" / "gene2go_human_direct.tsv.gz", sep="\t")
    return adata, terms[terms["symbol"].isin(genes)].groupby("symbol")["go_id"].agg(list).to_dict()


def norman():
    return _real("norman2019_subset_33perturbations.h5ad", lambda a: a.obs["condition_gears"])


def mcf10a():
    def often(adata):
        counts = adata.obs["condition"].value_counts()
        return adata[adata.obs["condition"].isin(counts.index[counts >= 5]).to_numpy()].copy()

    return _real("cropseq_mcf10a_28genes.h5ad", lambda a: a.obs["condition"], prepare=True, keep=often)


def mcfaline():
    return _real(
        "mcfaline2023_3lines_9kinases.h5ad", lambda a: a.obs["condition"].astype(str).replace("control", "ctrl")
    )


def papalexi():
    return _real("papalexi2021_eccite_thp1_299genes.h5ad", lambda a: a.obs["condition"], prepare=True)


REAL = {f.__name__: f for f in (norman, mcf10a, mcfaline, papalexi)}


def _held_out(names: list[str], rng, *, fold: int | None, n_folds: int = 5) -> set[str]:
    """Perturbations to test on; of generated screens all pairs of some genes, and some other pairs."""
    order = list(rng.permutation(names))
    singles, pairs = ([name for name in order if ("+" in name) == several] for several in (False, True))
    if fold is not None:
        return {*singles[fold::n_folds], *pairs[fold::n_folds]}
    unseen = set(singles[::6])
    touched = [pair for pair in pairs if unseen & set(pair.split("+"))]
    return {*unseen, *touched, *[pair for pair in pairs if pair not in touched][::3]}


def tasks(kind: str, size: str, seed: int) -> Iterator[tuple[ad.AnnData, object]]:
    """Screens with a split: one if generated, one for each fold if real."""
    rng = np.random.default_rng([seed, list(GENERATED | REAL).index(kind), size == "many"])
    for fold in [None] if kind in GENERATED else range(5):
        source = GENERATED[kind](rng, *SIZES[size]) if fold is None else REAL[kind]()
        adata, terms = source
        si.pp.perturbations(adata, unknown="keep")
        names = adata.obs["infl_perturbation"].astype(str)
        aside = _held_out(
            sorted(set(names) - {"ctrl"}),
            np.random.default_rng(seed) if fold is not None else rng,
            fold=fold,
        )
        part = np.where(names.isin(aside), "test", "train").astype(object)
        controls = np.flatnonzero(names == "ctrl")
        part[rng.permutation(controls)[: len(controls) // 2]] = "test"
        adata.obs["infl_split"] = part
        seen = set(names[part == "train"])
        groups: dict[str, list[str]] = {}
        for name in sorted(aside):
            known = "+" in name and all(gene in seen for gene in name.split("+"))
            groups.setdefault(f"{'pair' if '+' in name else 'single'}, {'seen' if known else 'unseen'}", []).append(
                name
            )
        adata.uns["infl"]["split"] = {"test": groups}
        yield adata, terms


def measure(adata, terms, *, seed: int, n_sites: int, train: dict) -> tuple[pd.DataFrame, si.model.GEARS]:
    """Scores of the model and of the rules on held-out perturbations."""
    key, site = None, None
    if n_sites > 1:
        key, site = si.privacy.Key.generate(), "site"
        si.pp.split_sites(adata, n_sites, by="infl_perturbation", alpha=1.0, everywhere=["ctrl"], rng=seed)
    si.model.GEARS.setup_anndata(adata, site_key=site)
    model = si.model.GEARS(adata, gene_ontology=terms, rng=seed)
    model.train(key=key, rng=seed, progress=False, **train)
    table = si.tl.score_perturbations(adata, model, metrics="mse_de")
    return pd.concat([table, _coverage(adata, model)]), model


def _coverage(adata, model) -> pd.DataFrame:
    """Share of held-out mean changes within one standard deviation of the prediction, and within that of 90 %."""
    names, test = adata.obs["infl_perturbation"].astype(str), (adata.obs["infl_split"] == "test").to_numpy()
    mean = sc.get.aggregate(adata[test], "infl_perturbation", "mean").to_df("mean")
    wanted = sorted(set(names[test]) - {"ctrl"})
    found = model.predict(wanted)
    missed = np.abs(mean.loc[wanted] - mean.loc["ctrl"] - found.layers["delta"]).to_numpy() / found.layers["error"]
    known = np.isfinite(missed)
    inside = {
        f"within {name}": np.mean(missed[known] < z) for name, z in (("1 sd", 1.0), ("90 %", 1.645)) if known.any()
    }
    return pd.DataFrame({"method": list(inside), "value": list(inside.values()), "metric": "coverage"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=[*GENERATED, *REAL])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES])
    parser.add_argument("--sites", type=int, nargs="+", help="numbers of sites; more than one train with a key")
    parser.add_argument("--rounds", type=int, help="fewer rounds, to look at what the rules alone do")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kinds = options.data or [*GENERATED, *(REAL if options.full else ["norman"])]
    seeds = options.seeds or (5 if options.full else 2)
    sizes = options.sizes or [*SIZES][: 2 if options.full else 1]
    train = {} if options.rounds is None else {"n_rounds": options.rounds, "loss": "squared"}
    tables, started = [], time.perf_counter()
    for kind in kinds:
        for size in sizes if kind in GENERATED else ["real"]:
            for seed in range(seeds):
                for n_sites in options.sites or ([1, 3] if options.full else [1]):
                    for fold, (adata, terms) in enumerate(tasks(kind, size, seed)):
                        begun = time.perf_counter()
                        table, model = measure(adata, terms, seed=seed, n_sites=n_sites, train=train)
                        tables.append(table.assign(data=kind, size=size, seed=seed, sites=n_sites, fold=fold))
                        took = time.perf_counter() - begun
                        shares = {name: round(share, 2) for name, share in (model.shrinkage or {}).items()}
                        print(
                            f"{kind} {size} seed {seed} sites {n_sites} fold {fold}: {took:.0f} s, {shares}", flush=True
                        )
    report(pd.concat(tables))
    print(f"{time.perf_counter() - started:.0f} s")


def report(scores: pd.DataFrame) -> None:
    """Errors by screen and by kind of perturbation, relative to the best simple rule of all test perturbations."""
    screen = ["data", "size", "sites", "seed"]
    covered = scores[scores["metric"] == "coverage"].groupby([*screen[:3], "method"])["value"].mean().unstack()
    scores = scores[scores["metric"] == "mse_de"]
    wide = scores.groupby([*screen, "method"])["value"].mean().unstack("method")
    best = wide[RULES].min(axis=1)
    relative = (wide["GEARS"] / best - 1).rename("to best")
    rows = relative.groupby(level=[0, 1, 2]).agg(["mean", "max", "count"])
    rows = rows.join(wide.groupby(level=[0, 1, 2])[["GEARS", *RULES, "linear"]].mean()).join(covered)
    print("\nMSE(de) of GEARS against the best simple rule, by screen (mean and worst seed), and mean errors")
    print(rows.to_string(float_format="{:.3f}".format))
    print(f"all {len(relative)} screens: mean {relative.mean():+.3f}, worst {relative.max():+.3f}")
    kinds = scores.groupby([*screen[:3], "subgroup", "method"])["value"].mean().unstack("method")
    print("\nby kind of perturbation")
    print(kinds[["GEARS", *RULES]].to_string(float_format="{:.3f}".format))
    for kind in [name for name in REAL if name in set(scores["data"])]:
        each = scores[scores["data"] == kind].groupby(["sites", "perturbation", "method"])["value"].mean().unstack()
        for rule in ("additive", "train mean"):
            gap = each["GEARS"] - each[rule]
            low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
            print(f"{kind}: GEARS minus {rule}, paired over perturbations {gap.mean():+.4f} ({low:+.4f} … {high:+.4f})")


if __name__ == "__main__":
    main()
