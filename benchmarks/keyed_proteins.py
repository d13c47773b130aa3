"""What the key costs and what it is worth, on TCGA proteins split by hospital region.

Sites are regions (9 cancers) or a Dirichlet split (14 cancers). A fifth of the patients is held out for testing, anew
for each seed. Settings are chosen for each seed and method on the sites' validation samples alone; test samples are
looked at once, at the end. Prints utility (macro-F1 and balanced accuracy on the test samples) and the lock (balanced
accuracy without the right key; chance is one over the number of classes).

    python benchmarks/keyed_proteins.py [--classes 9|14] [--seeds 3] [--data PATH]
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
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import GroupShuffleSplit

import scinfl as si
from scinfl.privacy.attacks import removed_modules, wrong_keys

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
ROUNDS = 50
FEDERATED = [
    {"n_hidden": 256, "lr": 6e-3},
    {"n_hidden": 512, "lr": 6e-3},
    {"n_hidden": 512, "lr": 1e-2},
]
CENTRALISED = [
    {"n_hidden": 256, "lr": 2e-3},
    {"n_hidden": 512, "lr": 1e-3},
    {"n_hidden": 512, "lr": 2e-3},
]


def load(path, n_classes):
    adata = si.datasets.tcga_proteins(path, site_key="region" if n_classes == 9 else None)
    if n_classes == 9:
        adata.obs["site"] = adata.obs["region"]
        return adata
    frequent = adata.obs["cancer"].value_counts().index[:n_classes]
    return adata[adata.obs["cancer"].isin(frequent).to_numpy()].copy()


def fit(train, site_key, seed, *, n_hidden, lr, key=None, key_scheme=None, local_epochs=2):
    si.model.Classifier.setup_anndata(train, labels_key="cancer", site_key=site_key, group_key="patient")
    model = si.model.Classifier(train, n_hidden=n_hidden, dropout=0.5, key_scheme=key_scheme, rng=seed)
    model.train(ROUNDS, lr=lr, local_epochs=local_epochs, key=key, rng=seed, validation_size=0.15, progress=False)
    return model


def chosen(train, site_key, seed, candidates):
    """The setting whose last ten rounds are best on the sites' own validation samples."""
    models = [fit(train, site_key, seed, **setting) for setting in candidates]
    best = int(np.argmax([model.history["validation_balanced_accuracy"].tail(10).mean() for model in models]))
    return models[best], candidates[best]


def utility(true, predicted):
    return {
        "macro-F1": f1_score(true, predicted, average="macro"),
        "balanced accuracy": balanced_accuracy_score(true, predicted),
    }


def local_only(train, test, seed, setting):
    """Every site trains alone; rated on its own test samples and on everybody's, mean over sites by samples."""
    own, everywhere, weights = [], [], []
    for site in train.obs["site"].unique():
        part = train[(train.obs["site"] == site).to_numpy()].copy()
        model = fit(part, None, seed, **setting)
        mine = (test.obs["site"] == site).to_numpy()
        predicted, true = model.predict(test), test.obs["cancer"].astype(str).to_numpy()
        own.append(utility(true[mine], predicted[mine]))
        everywhere.append(utility(true, predicted))
        weights.append(mine.sum())
    means = [pd.DataFrame(rows).T @ (np.array(weights) / sum(weights)) for rows in (own, everywhere)]
    return means[0].to_dict(), means[1].to_dict()


def run(adata, seed):
    rows = np.arange(adata.n_obs)
    train_rows, test_rows = next(
        GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(rows, groups=adata.obs["patient"])
    )
    train, test = adata[train_rows].copy(), adata[test_rows].copy()
    true = test.obs["cancer"].astype(str).to_numpy()
    results, notes = {}, {}

    majority = train.obs["cancer"].astype(str).mode()[0]
    results["majority"] = utility(true, np.full(len(true), majority))
    labels = train.obs["cancer"].astype(str)
    logistic = LogisticRegression(max_iter=2000).fit(train.X, labels)
    results["logistic regression, pooled"] = utility(true, logistic.predict(test.X))
    trees = ExtraTreesClassifier(300, class_weight="balanced", n_jobs=2, random_state=seed).fit(train.X, labels)
    results["extra trees, pooled"] = utility(true, trees.predict(test.X))

    model, notes["centralised"] = chosen(train, None, seed, CENTRALISED)
    results["centralised"] = utility(true, model.predict(test))
    model, setting = chosen(train, "site", seed, FEDERATED)
    notes["federated"] = setting
    results["FedAvg"] = utility(true, model.predict(test))
    own, everywhere = local_only(train, test, seed, notes["centralised"])
    results["local-only, own test samples"], results["local-only, all test samples"] = own, everywhere

    key = si.privacy.Key.generate()
    model = fit(train, "site", seed, key=key, key_scheme="coordinate", **setting)
    results["keyed FedAvg"] = utility(true, model.predict(test))
    x, names = torch.from_numpy(test.X), np.array(model.labels)

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, names[network(x).argmax(1).numpy()])

    wrong = wrong_keys(model.module, score, n_keys=50)
    lock = {"wrong key, mean of 50": wrong.mean(), "wrong key, best of 50": wrong.max()}
    lock["modules removed"] = removed_modules(model.module, score)
    return results, lock, notes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, choices=[9, 14], default=9)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    started = time.time()
    adata = load(options.data, options.classes)
    utilities, locks = [], []
    for seed in range(options.seeds):
        if options.classes == 14:
            si.pp.split_sites(adata, n_sites=7, by="cancer", alpha=0.5, rng=seed)
        results, lock, notes = run(adata, seed)
        print(f"seed {seed}: chosen on site validation: {notes}", flush=True)
        utilities.append(pd.DataFrame(results).T)
        locks.append(pd.Series(lock))
    print(f"\n{adata.n_obs} samples x {adata.n_vars} proteins, {options.classes} cancers, 7 sites, {ROUNDS} rounds\n")
    seeds = pd.concat(utilities, keys=range(options.seeds), names=["seed", "method"])
    table = seeds.groupby("method", sort=False).agg(["mean", "min", "max"]).round(3)
    print(table.to_string())
    print()
    for method, other in (("keyed FedAvg", "FedAvg"), ("FedAvg", "centralised")):
        gap = (seeds.xs(method, level="method") - seeds.xs(other, level="method"))["macro-F1"]
        error = gap.std() / np.sqrt(len(gap))
        print(
            f"{method} minus {other}, macro-F1 by seed: {gap.round(3).to_list()}, mean {gap.mean():+.3f} ± {error:.3f}"
        )
    print(f"\nthe lock, balanced accuracy (chance {1 / options.classes:.3f}), by seed")
    print(pd.DataFrame(locks).T.round(3).to_string())
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
