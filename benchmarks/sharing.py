"""What each share rule costs, on TCGA proteins split by hospital region.

Balanced accuracy of a site's model on its own test samples and on those of all sites (means over sites by samples), for
every share rule, with paired 95 % intervals of the difference to local-only and to sharing everything, over the seeds.
Settings are the same for all rules (2 hidden layers, 30 rounds of 2 local epochs, lr 3e-3); the last round counts.

Then what the second layer's gradients still show where the first layer is a secret projection: from the gradient of one
sample, the hidden vector is recovered, and the sample itself is searched for with the right projection (a fellow site,
which has the key) and with a projection of another key (the server). Pearson correlation with the sample, beside the
mean sample as baseline and beside the gradient of an ordinary first layer.

    python benchmarks/sharing.py [--seeds 5] [--data PATH]
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupShuffleSplit

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
RULES = {
    "everything": {},
    "meta learners": {"train_meta": True, "share": "meta"},
    "all but the first layer": {"share": ["encoder.2", "encoder.5", "encoder.6", "head"]},
    "all but the head": {"share": ["encoder"]},
    "projected, 128 units": {"share": "projected", "n_hidden": 128},
    "projected, 512 units": {"share": "projected", "n_hidden": 512},
    "projected, 1024 units": {"share": "projected", "n_hidden": 1024},
}


def fit(train, seed, key=None, *, site_key="region", n_hidden=64, train_meta=False, **options):
    si.model.Classifier.setup_anndata(train, labels_key="cancer", site_key=site_key)
    scheme = {"key_scheme": "coordinate", "train_meta": train_meta} if key else {"key_scheme": None}
    model = si.model.Classifier(train, n_hidden=n_hidden, dropout=0.1, input_dropout=0.0, rng=seed, **scheme)
    model.train(
        30, lr=3e-3, key=key, protections=(), rng=seed, validation_size=0, smoothing=0, progress=False, **options
    )
    return model


def rate(predict, test):
    """Own and all: weighted means over the sites of the site's model on its own and on all test samples."""
    true, sites = test.obs["cancer"].astype(str).to_numpy(), test.obs["region"].astype(str).to_numpy()
    own, everywhere, weights = [], [], []
    for site in np.unique(sites):
        predicted, mine = predict(site), sites == site
        own.append(balanced_accuracy_score(true[mine], predicted[mine]))
        everywhere.append(balanced_accuracy_score(true, predicted))
        weights.append(mine.sum())
    return np.average(own, weights=weights), np.average(everywhere, weights=weights)


def run(adata, seed):
    rows = np.arange(adata.n_obs)
    train, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(rows, groups=adata.obs["patient"]))
    train, test = adata[train].copy(), adata[test].copy()
    key = si.privacy.Key.generate()
    found = {}
    alone = {
        site: fit(train[(train.obs["region"] == site).to_numpy()].copy(), seed, site_key=None)
        for site in train.obs["region"].unique()
    }
    found["nothing (local-only)"] = rate(lambda site: alone[site].predict(test), test)
    payload = {"nothing (local-only)": 0}
    for name, options in RULES.items():
        model = fit(train, seed, key, **options)
        if model.is_personal:
            found[name] = rate(lambda site, model=model: model.predict(test, site=site), test)
        else:
            predicted = model.predict(test)
            found[name] = rate(lambda _, predicted=predicted: predicted, test)
        payload[name] = int(model.history["bytes_sent"].iloc[-1] / model.history["n_sites"].iloc[-1])
    return pd.DataFrame(found, index=["own", "all"]).T, payload


def intervals(seeds, column, reference):
    """Paired 95 % intervals (t) of the difference to a reference."""
    wide = seeds[column].unstack("seed")
    difference = wide.sub(wide.loc[reference], axis=1)
    half = difference.sem(axis=1) * stats.t.ppf(0.975, difference.shape[1] - 1)
    return [f"{mean:+.3f} ± {width:.3f}" for mean, width in zip(difference.mean(axis=1), half, strict=True)]


def gradient_of_one(network, layer, x, y):
    """Direction of the input of a layer, from the gradient of its weight for one sample (rank one)."""
    network.zero_grad()
    network.loss((x[None], y[None])).backward()
    return np.linalg.svd(layer.weight.grad.numpy())[2][0]


def search_sample(projection, norm, hidden, start, sign, n_steps=400):
    """Sample whose hidden vector points where the recovered one does."""
    target = torch.from_numpy(sign * hidden).float()
    x = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        guess = torch.nn.functional.gelu(norm(torch.nn.functional.linear(x, projection)))
        distance = 1 - torch.cosine_similarity(guess, target, dim=0)
        distance.backward()
        optimizer.step()
    return x.detach().numpy(), distance.item()


def leak(adata, n_samples=20, n_hidden=512):
    """Pearson correlation of recovered with true samples."""
    key, other = si.privacy.Key.generate(), si.privacy.Key.generate()
    model = fit(adata.copy(), 0, key, share="projected", n_hidden=n_hidden)
    network = si.nn.unkeyed(copy.deepcopy(model.module))
    si.nn.set_key(network, key.coordinates)
    state = si.nn.unlock(model.module, model.module.state_dict())
    network.load_state_dict({name: value for name, value in state.items() if "meta" not in name})
    network.eval()
    plain = fit(adata.copy(), 0).module.eval()
    codes = torch.from_numpy(adata.obs["cancer"].cat.codes.to_numpy().astype(np.int64))
    chosen = np.random.default_rng(0).choice(adata.n_obs, n_samples, replace=False)
    mean = torch.from_numpy(adata.X.mean(0))
    norm, second = network.encoder[2], network.encoder[5]
    shape = (n_hidden, adata.n_vars)
    scale = np.sqrt(3 / adata.n_vars)
    projections = {
        name: torch.from_numpy((k.coordinates("encoder.1/projection", shape) * scale).astype(np.float32))
        for name, k in (("fellow site (right key)", key), ("server (another key)", other))
    }
    rows = []
    for index in chosen:
        x = torch.from_numpy(adata.X[index])
        row = {"mean sample (baseline)": np.corrcoef(mean, x)[0, 1]}
        direct = gradient_of_one(plain, plain.encoder[1], x, codes[index])
        row["ordinary first layer"] = abs(np.corrcoef(direct, x)[0, 1])
        hidden = gradient_of_one(network, second, x, codes[index])
        true = torch.nn.Sequential(*list(network.encoder)[:4])(x[None])[0].detach().numpy()
        row["hidden vector"] = abs(np.corrcoef(hidden, true)[0, 1])
        for name, projection in projections.items():
            tries = [search_sample(projection, norm, hidden, mean, sign) for sign in (1.0, -1.0)]
            row[name] = np.corrcoef(min(tries, key=lambda found: found[1])[0], x)[0, 1]
        rows.append(row)
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    started = time.time()
    adata = si.datasets.tcga_proteins(options.data)
    tables, payloads = zip(*(run(adata, seed) for seed in range(options.seeds)), strict=True)
    seeds = pd.concat(tables, keys=range(options.seeds), names=["seed", "shared"])
    table = seeds.groupby("shared", sort=False).mean().round(3)
    order = seeds["own"].unstack("seed").index
    for column in ("own", "all"):
        for reference, short in (("nothing (local-only)", "local"), ("everything", "all shared")):
            table.loc[order, f"{column} - {short}"] = intervals(seeds, column, reference)
    table["bytes a site"] = pd.Series(payloads[0])
    print(f"balanced accuracy (chance 0.111), {options.seeds} seeds; differences with paired 95 % intervals\n")
    print(table.to_string())
    print("\nwhat a gradient of one sample shows (Pearson correlation with the sample; 20 samples)\n")
    print(leak(adata).agg(["mean", "min", "max"]).T.round(3).to_string())
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
