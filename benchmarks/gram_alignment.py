"""The Gram matrix of a stolen first layer against the order of its features, with and without offsets.

Victims are trained on half of the TCGA protein patients; a thief trains networks of his own on the labelled samples of
three tenths; the rest judges. The stolen layer is aligned with his (`privacy.attacks.align_gram`), as it was stored in
version 0.1 (no offsets), as it is stored now, and as differences of two versions. The true order is scored as well:
where it scores higher than all that the search finds, the information is there, whether or not this search found it.
Then what the weights are worth to him as they are, and after fine-tuning.

    python benchmarks/gram_alignment.py [--victims 2] [--restarts 20] [--steps 5000] [--data PATH]
"""

from __future__ import annotations

import argparse
import copy
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score

import scinfl as si
from scinfl.module import ClassifierModule
from scinfl.privacy import attacks

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
LAYER, WEIGHT = "encoder.1", "encoder.1.weight"


def parts(adata, seed):
    """Rows of victim, thief and judge; no patient is in two of them."""
    patients, codes = np.unique(adata.obs["patient"].astype(str), return_inverse=True)
    place = np.empty(len(patients))
    place[np.random.default_rng(seed).permutation(len(patients))] = np.linspace(0, 1, len(patients), endpoint=False)
    return [
        np.flatnonzero((place[codes] >= low) & (place[codes] < high)) for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1))
    ]


def trained(n_hidden, x, y, n_labels, steps, seed):
    """A plain network."""
    torch.manual_seed(seed)
    network = ClassifierModule(x.shape[1], n_labels, n_hidden=n_hidden).train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=5e-4, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return network.eval()


def stored(plain, key, model_id):
    """The network as a key stores it, with the key."""
    network = si.nn.keyed(copy.deepcopy(plain), generator=torch.Generator().manual_seed(0))
    si.nn.set_model_id(network, model_id)
    si.nn.set_key(network, key.coordinates)
    network.load_state_dict(si.nn.lock(network, plain.state_dict()), strict=False)
    return network.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("victims", 2), ("restarts", 20), ("steps", 5000), ("training", 3000), ("hidden", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    adata = si.datasets.tcga_proteins(options.data, site_key=None)
    adata = adata[adata.obs["cancer"].isin(adata.obs["cancer"].value_counts().index[:15])].copy()
    labels, codes = np.unique(adata.obs["cancer"].astype(str), return_inverse=True)
    x, y = torch.from_numpy(np.asarray(adata.X)), torch.from_numpy(codes)
    rows, worth = [], []
    for seed in range(options.victims):
        train, own, test = parts(adata, seed)
        plain = trained(options.hidden, x[train], y[train], len(labels), options.training, seed)
        key, ids = si.privacy.Key.generate(), [si.nn.new_model_id() for _ in range(3)]
        old, one, two = (stored(plain, key, model_id) for model_id in (None, *ids[:2]))
        rekeyed = stored(plain, si.privacy.Key.generate(), ids[2])
        first = {
            name: n.get_parameter(WEIGHT).detach().numpy()
            for name, n in zip("o12r", (old, one, two, rekeyed), strict=True)
        }
        stolen = {
            "no offsets (0.1)": first["o"],
            "offsets": first["1"],
            "two versions": first["1"] - first["2"],
            "rekeyed pair": first["1"] - first["r"],
        }
        n = x.shape[1]
        order = np.argsort(key.coordinates(f"{LAYER}/permutation", (n,)), kind="stable")
        signs = np.where(key.coordinates(f"{LAYER}/input signs", (n,)) < 0, -1.0, 1.0)
        references = attacks.train_references(old, LAYER, x[own], y[own], n_steps=options.training // 2, rng=seed)
        generator = np.random.default_rng(seed)
        for name, weight in stolen.items():
            evidence = attacks.GramEvidence(weight, references)
            found = attacks.align_gram(evidence, n_restarts=options.restarts, n_steps=options.steps, rng=seed)
            random = [evidence.score(generator.permutation(n), generator.choice([-1.0, 1.0], n)) for _ in range(500)]
            true = evidence.score(order, signs)
            rows.append({
                "victim": seed, "stored": name, "true order": round(true), "best found": round(found.score),
                "random": f"{np.mean(random):.0f} ± {np.std(random):.0f}", "order found": (found.order == order).mean(),
            })  # fmt: skip
            print(rows[-1], flush=True)

        def score(network, test=test):
            with torch.inference_mode():
                return balanced_accuracy_score(codes[test], network(x[test]).argmax(1).numpy())

        untrained = [score(ClassifierModule(n, len(labels), n_hidden=options.hidden).eval()) for _ in range(50)]
        wrong = attacks.wrong_keys(one, score, n_keys=50)
        own_rows = generator.permutation(own)
        for size in (50, 200, len(own)):
            chosen = torch.from_numpy(own_rows[:size])
            gained = {
                what: attack(network, x[chosen], y[chosen], score, n_steps=1000, rng=seed)
                for what, attack, network in (
                    ("from scratch", attacks.train_from_scratch, one),
                    ("fine-tuning, no offsets (0.1)", attacks.fine_tune, old),
                    ("fine-tuning, offsets", attacks.fine_tune, one),
                )
            }
            worth.append({"victim": seed, "samples": size, **gained})
            print(worth[-1], flush=True)
        print({
            "right key": score(one), "plain": score(plain), "removed": attacks.removed_modules(one, score),
            "wrong, mean and best": (wrong.mean(), wrong.max()),
            "untrained, mean and best": (np.mean(untrained), np.max(untrained)),
            "largest difference of the right key": float((one(x[test]) - plain(x[test])).abs().max()),
        }, flush=True)  # fmt: skip
    print(pd.DataFrame(rows).to_string(), "\n")
    print(pd.DataFrame(worth).round(3).to_string())


if __name__ == "__main__":
    main()
