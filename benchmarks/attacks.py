"""How the lock performs against attackers that know how it works, on TCGA proteins split by hospital region.

Trains each key scheme (2 x 64 hidden units, 30 rounds of 2 local epochs, test samples of held-out patients) and prints
balanced accuracy on the test samples: with the right key, with 50 wrong ones, with modules removed, and by model
stealing with n labelled samples (fit free scales, fine-tune, fit a surrogate key), beside training a plain network from
scratch on the same n. Attacks keep their best checkpoint on the test samples. The attacker's samples come from patients
that took part in no training.

Then the watching server: the share of the key's permutation of the features that it recovers by matching updates to
public samples, from updates in the open, under keyed sums, and from the final weights alone.

    python benchmarks/attacks.py [--seeds 3] [--data PATH]
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
SCHEMES = {
    "plain, no key": {"key_scheme": None},
    "permuted": {"key_scheme": "permuted"},
    "pooled": {"key_scheme": "pooled"},
    "coordinate": {"key_scheme": "coordinate"},
    "coordinate, trained meta learner": {"key_scheme": "coordinate", "train_meta": True},
}
STEALING = {"free scales": attacks.fit_scales, "fine-tuning": attacks.fine_tune, "surrogate key": attacks.fit_key}
SAMPLES = (50, 200, 1000)


def splits(adata, seed):
    """Rows to train on, rows of the attacker, rows to test on: by patient."""
    rows = np.arange(adata.n_obs)
    patients = adata.obs["patient"].to_numpy()
    rest, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(rows, groups=patients))
    train, own = next(GroupShuffleSplit(1, test_size=0.5, random_state=seed).split(rest, groups=patients[rest]))
    return rest[train], np.random.default_rng(seed).permutation(rest[own]), test


def fit(train, seed, key, protections=(), **scheme):
    si.model.Classifier.setup_anndata(train, labels_key="cancer", site_key="region", group_key="patient")
    model = si.model.Classifier(train, n_hidden=64, dropout=0.1, input_dropout=0.0, rng=seed, **scheme)
    key = key if scheme["key_scheme"] else None
    model.train(30, lr=3e-3, key=key, protections=protections, rng=seed, progress=False)
    return model


def run(adata, seed):
    train, own, test = splits(adata, seed)
    key = si.privacy.Key.generate()
    labels = sorted(adata.obs["cancer"].unique())
    true, x_test = adata.obs["cancer"].astype(str).to_numpy()[test], torch.from_numpy(adata.X[test])

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, np.array(labels)[network(x_test).argmax(1).numpy()])

    codes = torch.from_numpy(np.searchsorted(labels, adata.obs["cancer"].astype(str).to_numpy()[own]))
    x = torch.from_numpy(adata.X[own])
    table = {}
    for name, scheme in SCHEMES.items():
        network = fit(adata[train].copy(), seed, key, **scheme).module.eval()
        row = {"right key": score(network)}
        if scheme["key_scheme"]:
            wrong = attacks.wrong_keys(network, score)
            row |= {"wrong, mean": wrong.mean(), "wrong, best": wrong.max()}
            row["removed"] = attacks.removed_modules(network, score)
            for attack, function in STEALING.items():
                for n in SAMPLES:
                    row[f"{attack} {n}"] = function(network, x[:n], codes[:n], score, rng=seed)
        else:
            for n in SAMPLES:
                row[f"from scratch {n}"] = attacks.train_from_scratch(network, x[:n], codes[:n], score, rng=seed)
        table[name] = row
    return pd.DataFrame(table).T, watch(adata, train, own, seed, key)


def watch(adata, train, public, seed, key):
    """Share of the permutation of the first layer that a server recovers."""
    found = {}
    for name, protections in (("open", []), ("keyed sums", [si.privacy.KeyedSum(key)])):
        watcher = attacks.Watcher()
        model = fit(adata[train].copy(), seed, key, [*protections, watcher], key_scheme="coordinate")
        layer = model.module.encoder[1]
        true = np.argsort(key.coordinates("encoder.1/permutation", (layer.in_features,)))
        seen = watcher.mean("encoder.1.weight", (layer.out_features, layer.in_features))
        found[f"updates, {name}"] = (attacks.match_features(seen, adata.X[public], rng=seed) == true).mean()
    final = layer.weight.detach().numpy()
    found["final weights"] = (attacks.match_features([final], adata.X[public], rng=seed) == true).mean()
    found["chance"] = 1 / len(true)
    return pd.Series(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    started = time.time()
    adata = si.datasets.tcga_proteins(options.data)
    tables, watched = zip(*(run(adata, seed) for seed in range(options.seeds)), strict=True)
    seeds = pd.concat(tables, keys=range(options.seeds), names=["seed", "scheme"]).astype(float)
    print(f"balanced accuracy, mean of {options.seeds} seeds (chance {1 / adata.obs['cancer'].nunique():.3f})\n")
    print(seeds.groupby("scheme", sort=False).mean().T.round(3).to_string(na_rep=""))
    print("\nshare of the key's permutation that a watching server recovers, by seed\n")
    print(pd.DataFrame(watched).T.round(3).to_string())
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
