"""The bars that the lock must clear against attackers that know how it works, the scheme of version 0.1 beside it.

Victims are classifiers that three sites train in the open, with the key; a thief has unsealed weights and labelled
samples of others (three tenths; half is trained on, a fifth judges). For each victim, stored as in 0.1 (no offsets) and
as now:

- what is found of the order of the features by the Gram matrix of the first layer (`privacy.attacks.align_gram`), from
  one file, from the mean of a hundred, from differences of two files, of a model before and after `rekey`, of two
  rounds, and of two sites of a round. The true order is scored as well: where it scores higher than all that the search
  finds, the information is there, whether or not this search found it;
- what the weights are worth as they are, with wrong keys, without modules, beside untrained networks;
- what a thief gains on training from scratch with the same samples and seeds.

With `--schemes`, also balanced accuracy under every key scheme, published ones included.

    python benchmarks/attacks.py [--victims 4] [--restarts 20] [--steps 12000000] [--first 0] [--data PATH] [--schemes]
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from sklearn.metrics import balanced_accuracy_score

import scinfl as si
from scinfl.privacy import attacks

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
LAYER, WEIGHT = "encoder.1", "encoder.1.weight"
SCHEMES = {
    "plain, no key": {"key_scheme": None},
    "permuted": {"key_scheme": "permuted"},
    "pooled": {"key_scheme": "pooled"},
    "coordinate": {"key_scheme": "coordinate"},
    "coordinate, trained meta learner": {"key_scheme": "coordinate", "train_meta": True},
}
STEALING = {"free scales": attacks.fit_scales, "fine-tuning": attacks.fine_tune, "surrogate key": attacks.fit_key}


def read(path, n_features):
    """Proteins of the 15 commonest cancers, or the most variable genes of cells of five lines; with groups."""
    if "rppa" in path.name:
        adata = si.datasets.tcga_proteins(path, site_key=None)
        common = adata.obs["cancer"].value_counts().index[:15]
        adata = adata[adata.obs["cancer"].isin(common)].copy()
        adata.obs["label"], adata.obs["group"] = adata.obs["cancer"].astype(str), adata.obs["patient"].astype(str)
        return adata
    adata = ad.read_h5ad(path)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=n_features)
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.scale(adata, max_value=5)
    adata.obs["label"], adata.obs["group"] = adata.obs["cell_line"].astype(str), adata.obs_names.astype(str)
    return adata


class Parties:
    """Samples of the victim, the thief and the judge; no group is in two of them."""

    def __init__(self, adata, seed):
        groups, of = np.unique(adata.obs["group"], return_inverse=True)
        place = np.random.default_rng(seed).permutation(len(groups))[of] / len(groups)
        self.labels, codes = np.unique(adata.obs["label"], return_inverse=True)
        x, y = torch.from_numpy(np.asarray(adata.X, dtype=np.float32)), torch.from_numpy(codes)
        own, test = (place >= 0.5) & (place < 0.8), place >= 0.8
        self.train = adata[place < 0.5].copy()
        self.train.obs["site"] = np.random.default_rng(seed).integers(0, 3, self.train.n_obs).astype(str)
        self.x, self.y, self.x_test, self.y_test = x[own], y[own], x[test], codes[test]

    def score(self, network):
        with torch.inference_mode():
            return balanced_accuracy_score(self.y_test, network.eval()(self.x_test).argmax(1).numpy())

    def sample(self, n, seed):
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.x))[:n])
        return self.x[chosen], self.y[chosen]

    def fit(self, seed, key, n_rounds, protections="default", **scheme):
        si.model.Classifier.setup_anndata(self.train, labels_key="label", site_key="site", group_key="group")
        model = si.model.Classifier(self.train, rng=seed, **scheme)
        model.train(n_rounds, key=key, protections=protections, rng=seed, progress=False)
        return model


def stored(model, key, new_key, model_id):
    """The plain network of a model, and how a key stores it under an id."""
    plain = si.nn.unkeyed(copy.deepcopy(model.module))
    state = si.nn.unlock(model.module, model.module.state_dict())
    network = copy.deepcopy(model.module)
    si.nn.set_model_id(plain, None)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    si.nn.set_model_id(network, model_id)
    si.nn.set_key(network, (new_key or key).coordinates)
    network.load_state_dict(si.nn.lock(network, plain.state_dict()), strict=False)
    return plain.eval(), network.eval()


def stored_weight(plain, network, key):
    """The first layer as one more file holds it."""
    network = copy.deepcopy(network)
    si.nn.set_model_id(network, si.nn.new_model_id())
    si.nn.set_key(network, key.coordinates)
    return si.nn.lock(network, plain.state_dict())[WEIGHT].numpy()


def align(parties, old, stolen, key, options, seed):
    """Share of the order that is found, and scores of the true and of random orders."""
    n = parties.x.shape[1]
    order = np.argsort(key.coordinates(f"{LAYER}/permutation", (n,)), kind="stable")
    signs = np.where(key.coordinates(f"{LAYER}/input signs", (n,)) < 0, -1.0, 1.0)
    references = attacks.train_references(old, LAYER, parties.x, parties.y, n_steps=1500, rng=seed)
    generator = np.random.default_rng(seed)
    for name, weight in stolen.items():
        started, evidence = time.time(), attacks.GramEvidence(weight, references)
        found = attacks.align_gram(evidence, n_restarts=options.restarts, n_steps=options.steps, rng=seed)
        random = [evidence.score(generator.permutation(n), generator.choice([-1.0, 1.0], n)) for _ in range(500)]
        yield {
            "victim": seed, "stored": name, "order found": (found.order == order).mean(),
            "signs": abs(np.mean(found.signs * signs)), "best": round(found.score),
            "true": round(evidence.score(order, signs)), "random": f"{np.mean(random):.0f} ± {np.std(random):.0f}",
            "restarts as good as best": int((found.scores > found.score - 5).sum()), "s": round(time.time() - started),
        }  # fmt: skip


def steal(parties, old, new, options, seed):
    """What each attack gains on training from scratch, with the same samples and seeds."""
    bare = copy.deepcopy(new)
    si.nn.set_model_id(bare, None)  # as they are, not divided by the scale of the offsets
    opened = partial(attacks.match_surrogate, n_references=8, n_restarts=8, n_alignment_steps=options.steps)
    by_name = {
        "0.1: fine-tuned": (old, attacks.fine_tune),
        "0.1: first layer frozen": (old, partial(attacks.fine_tune, frozen=[LAYER])),
        "0.1: first layer aligned": (old, opened),
        "as it is": (bare, attacks.fine_tune),
        "divided by the scale": (new, attacks.fine_tune),
        "divided, first layer frozen": (new, partial(attacks.fine_tune, frozen=[LAYER])),
        "first layer aligned": (new, opened),
    }
    for n in (50, 200, len(parties.x)):
        for attacker in range(options.attackers):
            x, y = parties.sample(n, 100 * seed + attacker)
            common = {"rng": 100 * seed + attacker, "n_steps": options.training}
            scratch = attacks.train_from_scratch(old, x, y, parties.score, **common)
            for name, (network, attack) in by_name.items():
                if attack is opened and (attacker or n < len(parties.x)):
                    continue  # takes half a minute, and finds nothing with fewer samples
                gain = attack(network, x, y, parties.score, **common) - scratch
                yield {"victim": seed, "samples": n, "attack": name, "from scratch": scratch, "gain": gain}


def as_it_is(parties, plain, new, seed):
    """Balanced accuracy without the key, beside untrained networks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = (parties.x.shape[1], len(parties.labels))
        untrained = np.array([parties.score(si.module.ClassifierModule(*shape)) for _ in range(50)])
    wrong = attacks.wrong_keys(new, parties.score, n_keys=50)
    with torch.inference_mode():
        difference = float((new(parties.x_test) - plain(parties.x_test)).abs().max())
    return {
        "victim": seed, "plain": parties.score(plain), "right key": parties.score(new), "logits differ": difference,
        "wrong keys": wrong.mean(), "untrained": untrained.mean(), "best wrong": wrong.max(),
        "best untrained": untrained.max(), "removed": attacks.removed_modules(new, parties.score),
    }  # fmt: skip


def bars(adata, options, seed):
    parties, key, watcher = Parties(adata, seed), si.privacy.Key.generate(), attacks.Watcher()
    model = parties.fit(seed, key, options.rounds, [watcher])
    plain, old = stored(model, key, None, None)
    new, other = (stored(model, key, None, si.nn.new_model_id())[1] for _ in range(2))
    rekeyed = stored(model, key, si.privacy.Key.generate(), si.nn.new_model_id())[1]
    first, second, third = (n.get_parameter(WEIGHT).detach().numpy() for n in (new, other, rekeyed))
    mean = np.mean([stored_weight(plain, new, key) for _ in range(100)], axis=0)
    rounds = watcher.mean(WEIGHT, first.shape)
    site, peer = (update.state[WEIGHT] for update in watcher.seen[len(rounds)][:2])
    stolen = {
        "0.1: one file": old.get_parameter(WEIGHT).detach().numpy(), "one file": first, "mean of 100 files": mean,
        "two files": first - second,
        "rekeyed pair": first - third, "two rounds": rounds[-1] - rounds[-2], "two sites of a round": site - peer,
    }  # fmt: skip
    aligned = []
    for row in align(parties, old, stolen, key, options, seed):
        print(row, flush=True)
        aligned.append(row)
    judged = as_it_is(parties, plain, new, seed)
    print(judged, flush=True)
    return aligned, [judged], list(steal(parties, old, new, options, seed))


def schemes(adata, options, seed):
    """Balanced accuracy under every key scheme."""
    parties, key, table = Parties(adata, seed), si.privacy.Key.generate(), {}
    for name, scheme in SCHEMES.items():
        is_keyed = scheme["key_scheme"] is not None
        network = parties.fit(seed, key if is_keyed else None, options.rounds, **scheme).module.eval()
        row = {"right key": parties.score(network)}
        if is_keyed:
            wrong = attacks.wrong_keys(network, parties.score)
            row |= {"wrong, mean": wrong.mean(), "wrong, best": wrong.max()}
            row["removed"] = attacks.removed_modules(network, parties.score)
        for attack, function in (STEALING if is_keyed else {"from scratch": attacks.train_from_scratch}).items():
            for n in (50, 200, 1000):
                row[f"{attack} {n}"] = function(network, *parties.sample(n, seed), parties.score, rng=seed)
        table[name] = row
    return pd.DataFrame(table).T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"victims": 4, "restarts": 20, "steps": 12_000_000, "rounds": 60, "attackers": 3, "training": 1000}
    for name, default in {**numbers, "first": 0, "features": 120}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    parser.add_argument("--schemes", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    started, adata = time.time(), read(options.data, options.features)
    seeds = range(options.first, options.first + options.victims)
    found = zip(*(bars(adata, options, seed) for seed in seeds), strict=True)
    aligned, judged, gained = (pd.DataFrame([row for rows in one for row in rows]) for one in found)
    print("\nwhat the Gram matrix of the first layer shows of the order of the features\n", aligned.to_string())
    print("\nbalanced accuracy without labels\n", judged.round(6).to_string())
    gains = gained.groupby(["samples", "attack"], sort=False)["gain"].agg(["mean", "sem", "max", "count"])
    gains.insert(0, "from scratch", gained.groupby(["samples", "attack"], sort=False)["from scratch"].mean())
    gains["95 %"] = [f"{m - 2 * s:+.3f} to {m + 2 * s:+.3f}" for m, s in zip(gains["mean"], gains["sem"], strict=True)]
    print("\ngain on training from scratch, same samples and seeds\n", gains.round(3).to_string())
    if options.schemes:
        tables = pd.concat([schemes(adata, options, seed) for seed in seeds], keys=seeds, names=["seed", "scheme"])
        print("\nbalanced accuracy by key scheme\n", tables.groupby("scheme", sort=False).mean().T.round(3).to_string())
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
