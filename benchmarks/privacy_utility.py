"""What sample-level differential privacy costs, on TCGA proteins split by hospital region.

Seven regions, nine cancers, about 300 patients a region. A fifth of the patients is held out for testing, anew for each
seed, as in `keyed_proteins.py`. The learning rate is chosen for each seed and method on a quarter of the training
patients, set aside for that; the model is then trained on all of them. Test patients are looked at once, at the end.
Epsilon does not cover that choice. Every patient takes part in every step (batch size above the size of a site), and
the last smoothed round is kept, so that training itself needs no validation patient.

Prints for each epsilon (each patient of each site, all rounds together, delta 0.001): balanced accuracy on the test
patients, and how well a loss threshold tells the patients that were trained on from the test patients. The threshold is
the mean training loss (Yeom et al. 2018); the advantage is the share of members below it less that of others, 0 for a
guess and at most 1. Beside it: the majority class, every site by itself without any noise (nothing leaves it), plain
FedAvg, and clipping alone. A local model that beats a private federation says that the noise costs more than the other
sites bring.

Why published numbers look better. Three things in the code of earlier work, each of which voids its epsilon:

* Epsilon is that of one step or round and is never added up. The second table says what such a claim comes to.
* Gradients are clipped once, before there are any or after those of the last sample, so the sum that is blurred is
  unbounded and no noise hides a sample in it.
* The gradient is clipped again after the noise was added, which takes the noise away with it: large noise ends as a
  step of the chosen length whose size says what was in it.

    python benchmarks/privacy_utility.py [--seeds 3] [--data PATH]
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupShuffleSplit

import scinfl as si
from scinfl.privacy.dp._accounting import gaussian_epsilon, gaussian_noise_multiplier
from scinfl.privacy.dp._sample_dp import SampleDP

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
METHODS = {
    **{f"SampleDP, epsilon {epsilon}": epsilon for epsilon in (1, 3, 8, 20)},
    "SampleDP, clipping alone": math.inf,
    "FedAvg": None,
}
DELTA, ROUNDS = 1e-3, 30
NETWORK = {"n_hidden": 128, "n_layers": 1, "dropout": 0.0, "input_dropout": 0.0}
TRAINING = {"local_epochs": 1, "batch_size": 10_000, "smoothing": 0.8, "validation_size": 0.0}
RATES = (0.03, 0.1)


def fit(train, site_key, seed, epsilon, lr):
    """Train with a budget; ``None`` neither clips nor adds noise, infinity clips alone."""
    protections = []
    if epsilon is not None:
        noise = {"noise_multiplier": 0.0} if math.isinf(epsilon) else {"target_epsilon": epsilon}
        protections = [SampleDP(delta=DELTA, **noise)]
    si.model.Classifier.setup_anndata(train, labels_key="cancer", site_key=site_key, group_key="patient")
    model = si.model.Classifier(train, key_scheme=None, rng=seed, **NETWORK)
    model.train(ROUNDS, protections=protections, lr=lr, rng=seed, progress=False, **TRAINING)
    return model


def parts(adata, share, seed):
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    rest, aside = next(splitter.split(np.arange(adata.n_obs), groups=adata.obs["patient"]))
    return adata[rest].copy(), adata[aside].copy()


def chosen(train, site_key, seed, epsilon):
    """The model with the rate that is best on a part of the training patients."""
    rest, aside = parts(train, 0.25, seed)
    scores = [accuracy(fit(rest, site_key, seed, epsilon, lr), aside) for lr in RATES]
    return fit(train, site_key, seed, epsilon, RATES[int(np.argmax(scores))])


def cancers(adata):
    return adata.obs["cancer"].astype(str).to_numpy()


def accuracy(model, adata):
    return balanced_accuracy_score(cancers(adata), model.predict(adata))


def losses(model, adata):
    soft = model.predict(adata, soft=True)
    codes = soft.columns.get_indexer(cancers(adata))
    return -np.log(np.maximum(soft.to_numpy()[np.arange(len(soft)), codes], 1e-30))


def rated(model, train, test):
    inside, outside = losses(model, train), losses(model, test)
    threshold = inside.mean()
    member = np.repeat([1, 0], [len(inside), len(outside)])
    return {
        "balanced accuracy": accuracy(model, test),
        "membership advantage": (inside <= threshold).mean() - (outside <= threshold).mean(),
        "membership AUC": roc_auc_score(member, -np.concatenate([inside, outside])),
        "epsilon": model.history["epsilon"].iloc[-1] if "epsilon" in model.history else math.inf,
    }


def local_only(train, test, seed):
    """Every site trains alone; rated on its own test samples and on everybody's, mean over sites by samples."""
    rows = []
    for site in train.obs["site"].unique():
        model = chosen(train[(train.obs["site"] == site).to_numpy()].copy(), None, seed, None)
        mine = (test.obs["site"] == site).to_numpy()
        rows.append((accuracy(model, test[mine]), accuracy(model, test), mine.sum()))
    own, everywhere, weights = np.array(rows).T
    return np.average(own, weights=weights), np.average(everywhere, weights=weights)


def run(adata, seed):
    train, test = parts(adata, 0.2, seed)
    true = cancers(test)
    majority = pd.Series(cancers(train)).mode()[0]
    results = {"majority": {"balanced accuracy": balanced_accuracy_score(true, np.full(len(true), majority))}}
    own, everywhere = local_only(train, test, seed)
    results["local-only, own test samples"] = {"balanced accuracy": own}
    results["local-only, all test samples"] = {"balanced accuracy": everywhere}
    for name, epsilon in METHODS.items():
        results[name] = rated(chosen(train, "site", seed, epsilon), train, test)
    return pd.DataFrame(results).T


def composed():
    """What a claim of one epsilon for every step comes to over the steps of this run."""
    multipliers = {claim: gaussian_noise_multiplier(claim, DELTA) for claim in (1, 3, 8)}
    return {claim: gaussian_epsilon(noise / math.sqrt(ROUNDS), DELTA) for claim, noise in multipliers.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    started = time.time()
    adata = si.datasets.tcga_proteins(options.data)
    adata.obs["site"] = adata.obs["region"]
    tables = []
    for seed in range(options.seeds):
        tables.append(run(adata, seed))
        print(f"seed {seed}: {time.time() - started:.0f} s", flush=True)
    seeds = pd.concat(tables, keys=range(options.seeds), names=["seed", "method"])
    print(f"\n{adata.n_obs} samples x {adata.n_vars} proteins, 9 cancers, 7 sites, {ROUNDS} rounds, delta {DELTA:g}")
    print("mean and range over seeds; chance for balanced accuracy is 0.111\n")
    table = seeds.groupby("method", sort=False).agg(["mean", "min", "max"]).round(3)
    print(table.drop(columns=[("epsilon", "min"), ("epsilon", "max")]).to_string(na_rep="-"))
    print(f"\nwhat an epsilon claimed for each of {ROUNDS} steps comes to over all of them:")
    print(pd.Series(composed(), name="in all").rename_axis("each step").round(1).to_frame().T.to_string())
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
