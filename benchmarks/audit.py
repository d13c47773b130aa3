"""What the audit finds in models of each key scheme, and who was in the training data, on TCGA proteins by region.

Audits the plain network, both published key schemes, and the coordinate scheme with shared and with projected first
layer (2 x 64 hidden units, 30 rounds of 2 local epochs; a twin is trained on 60 % of the patients, the rest is split
between attackers and judge), and prints for each what every adversary learns, with its baseline: cells read off one
step (Pearson correlation and share of cells re-identified), off the local round of a site of 10 and of 50 cells, the
order of the features that a watching server recovers, use of the model without the key, model stealing with 50 and 200
labelled samples, membership, class proportions, crafted weights. Reconstruction by optimisation knows the key, does not
know it, or searches for it together with the cells. Then membership of a deliberately overfitted network, of one with
the usual settings and of one trained with differential privacy.

    python benchmarks/audit.py [--seeds 1] [--quick] [--membership] [--data PATH] [--table PATH]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupShuffleSplit

import scinfl as si
from scinfl.privacy import attacks

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
METHODS = {
    "plain": ({"key_scheme": None}, {}),
    "permuted": ({"key_scheme": "permuted"}, {}),
    "pooled": ({"key_scheme": "pooled"}, {}),
    "coordinate": ({"key_scheme": "coordinate"}, {}),
    "coordinate, projected": ({"key_scheme": "coordinate"}, {"share": "projected"}),
}
TRAIN = {"n_rounds": 30, "lr": 3e-3, "validation_size": 0, "protections": ()}
SHOWN = {  # by family, the scores that are printed
    "reconstruction": ("Pearson", "re-identified"),
    "the key": None,
    "use of the model": None,
    "membership": ("AUC", "advantage", "TPR at 1% FPR", "TPR at 0.1% FPR"),
    "shares of a site": None,
    "cells by crafted weights": None,
    "typical cell of a class": None,
    "attribute of a person": None,
}


def audited(adata, method, seed, *, quick):
    """Table of one method, with its settings and time."""
    init, train = METHODS[method]
    data = adata.copy()
    si.model.Classifier.setup_anndata(data, "cancer", site_key="region", group_key="patient")
    model = si.model.Classifier(data, n_hidden=64, dropout=0.1, input_dropout=0.0, rng=seed, **init)
    key = si.privacy.Key.generate() if init["key_scheme"] else None
    arguments = {**TRAIN, **train, "rng": seed}
    model.train(key=key, progress=False, **{**arguments, "n_rounds": 1})  # a twin is attacked, not this one
    started = time.time()
    si.tl.audit(data, model, key=key, train=arguments, attributes=["region"], quick=quick, rng=seed, progress=False)
    audit = data.uns["infl"]["audit"]
    return audit["table"], audit["parameters"]["balanced_accuracy"], time.time() - started, audit["verdicts"]


def run_audits(adata, seeds, *, quick, path):
    tables, accuracy, seconds, verdicts = [], {}, {}, {}
    for seed in range(seeds):
        for method in METHODS:
            table, right, took, words = audited(adata, method, seed, quick=quick)
            tables.append(table.assign(method=method, seed=seed, accuracy=right, seconds=took))
            if path is not None:
                pd.concat(tables).to_csv(path, index=False)
            accuracy.setdefault(method, []).append(right)
            seconds.setdefault(method, []).append(took)
            verdicts[method] = words
    table = pd.concat(tables)
    print("balanced accuracy with the right key (chance 0.111), and seconds of an audit\n")
    print(pd.DataFrame({"accuracy": accuracy, "seconds": seconds}).map(np.mean).round(3).to_string())
    keys = ["attack", "setting", "adversary", "uploads", "metric"]
    table["setting"] = table["setting"].str.replace(r"single cells.*", "", regex=True)
    for family, metrics in SHOWN.items():
        own = table[(table["family"] == family) & (table["metric"].isin(metrics) if metrics else True)]
        if own.empty:
            continue
        own = own.assign(metric=own["metric"].str.replace(r" \(right.*", "", regex=True))
        means = own.groupby([*keys, "method"], sort=False)[["score", "baseline"]].mean().unstack("method")
        baseline = means["baseline"].mean(axis=1).rename("baseline")
        columns = [name for name in METHODS if name in means["score"]]
        print(f"\n{family}\n")
        print(pd.concat([means["score"][columns], baseline], axis=1).round(3).to_string(na_rep=""))
    for method, by_adversary in verdicts.items():
        print(f"\n{method}")
        for adversary, words in by_adversary.items():
            print(f"  {adversary}: {words}")


def membership(adata, seed, *, n_shadows):
    """Tell who was inside overfitted, usual and private networks on the same small split."""
    groups = adata.obs["patient"].to_numpy()
    inside, outside = next(GroupShuffleSplit(1, test_size=0.6, random_state=seed).split(groups, groups=groups))
    train = adata[inside].copy()
    rows = np.concatenate([inside, outside])
    member = np.arange(len(rows)) < len(inside)
    x = torch.from_numpy(adata.X[rows])
    y = torch.from_numpy(adata.obs["cancer"].cat.codes.to_numpy()[rows].astype(np.int64))
    cases = {
        "overfitted": ({"dropout": 0.0, "input_dropout": 0.0}, {"n_rounds": 60}),
        "usual": ({"dropout": 0.3, "input_dropout": 0.2}, {"n_rounds": 30}),
    }
    for epsilon in (8, 1):
        private = si.privacy.SampleDP(target_epsilon=epsilon, delta=1e-4, max_norm=1.0, unit="row")
        cases[f"epsilon {epsilon}"] = (cases["overfitted"][0], {"n_rounds": 30, "protections": [private]})
    found = []
    for name, (init, arguments) in cases.items():
        si.model.Classifier.setup_anndata(train, "cancer", site_key="region", group_key="patient")
        model = si.model.Classifier(train, n_hidden=128, key_scheme=None, rng=seed, **init)
        model.train(progress=False, **{**TRAIN, "rng": seed, **arguments})
        network = model.module.eval()
        confidence = attacks.confidence(network, x, y)
        shadows, part = attacks.train_shadows(
            network, x, y, n_models=n_shadows, share=0.4, n_epochs=2 * arguments["n_rounds"], lr=3e-3, rng=seed
        )
        scores = {
            "loss threshold": confidence,
            "likelihood ratio, offline": attacks.likelihood_ratio(confidence, shadows, part, online=False),
            "likelihood ratio, online": attacks.likelihood_ratio(confidence, shadows, part),
        }
        with torch.no_grad():
            guess = network(x[~member]).argmax(1)
        accuracy = balanced_accuracy_score(y[~member], guess)
        for attack, score in scores.items():
            table = attacks.membership_scores(score, member, rng=seed)
            for metric, row in table.iterrows():
                text = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                found.append({"network": f"{name} ({accuracy:.2f})", "attack": attack, "metric": metric, "text": text})
    return pd.DataFrame(found).pivot_table(
        index=["network", "attack"], columns="metric", values="text", aggfunc="first", sort=False
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--membership", action="store_true", help="leave the audits out")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    parser.add_argument("--table", type=Path, help="write all findings to a csv file, after every audit")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    adata = si.datasets.tcga_proteins(options.data)
    if not options.membership:
        run_audits(adata, options.seeds, quick=options.quick, path=options.table)
    for seed in range(options.seeds):
        print(f"\nmembership by network (balanced accuracy on outsiders), 95 % intervals, seed {seed}\n")
        print(membership(adata, seed, n_shadows=4 if options.quick else 16).to_string())


if __name__ == "__main__":
    main()
