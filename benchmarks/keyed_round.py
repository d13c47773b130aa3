"""Seconds a round of keyed training against unkeyed training: the key, and the sum that the server cannot read.

All sides train the same network on the same TCGA protein sites in one process, in short alternating blocks of rounds so
that a busy machine slows all alike. Prints the median ratio over the blocks with its quartiles: the key alone (frozen
meta learner, key at the boundary), and the key with keyed sums, which are the default. Beside them the transfer itself
(one unlock and one lock) and, as the reference, a training step with the key inside the forward pass.

    python benchmarks/keyed_round.py [--blocks 20] [--data PATH]
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

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))


def train(adata, key, n_hidden, batch_size, protections=()):
    """Train a new model for five rounds; returns it and the median seconds of the last four.

    The first round also derives the layers' coordinates from the key (some milliseconds, once a run). Each model lies
    elsewhere in memory, which alone makes a round up to 5 % slower or faster, so every block makes a new one.
    """
    model = si.model.Classifier(adata, n_hidden=n_hidden, key_scheme="coordinate" if key else None)
    model.train(5, key=key, batch_size=batch_size, protections=protections, progress=False)
    return model, model.history["seconds"].iloc[1:].median()


def transfer(model, repeats=200):
    """Milliseconds of one unlock and one lock of the model's state."""
    state = {name: p.detach() for name, p in model.module.named_parameters() if "meta" not in name}
    started = time.perf_counter()
    for _ in range(repeats):
        si.nn.lock(model.module, si.nn.unlock(model.module, state))
    return 1e3 * (time.perf_counter() - started) / repeats


def inside(model, x, codes, batch_size, repeats=300):
    """Step time with the key inside the forward pass over step time of the plain network."""
    plain = si.nn.unkeyed(copy.deepcopy(model.module))
    seconds = {}
    for name, network in (("inside", model.module), ("plain", plain)):
        network.train()
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], fused=True)
        started = time.perf_counter()
        for step in range(repeats):
            rows = torch.arange(step, step + batch_size) % len(x)
            optimizer.zero_grad()
            network.loss((x[rows], codes[rows])).backward()
            optimizer.step()
        seconds[name] = time.perf_counter() - started
    return seconds["inside"] / seconds["plain"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    adata = si.datasets.tcga_proteins(options.data)
    si.model.Classifier.setup_anndata(adata, labels_key="cancer", site_key="region")
    x = torch.from_numpy(adata.X)
    codes = torch.from_numpy(adata.obs["cancer"].cat.codes.to_numpy().astype(np.int64))
    key = si.privacy.Key.generate()
    rows = {}
    for n_hidden in (64, 256):
        for batch_size in (32, 256):
            sides = [(None, ()), (key, "default"), (key, ())]
            seconds = np.empty((options.blocks + 1, len(sides)))
            for block in range(options.blocks + 1):
                for side in np.roll(range(len(sides)), block):
                    used_key, protections = sides[side]
                    _, seconds[block, side] = train(adata, used_key, n_hidden, batch_size, protections)
            seconds = seconds[1:]  # the first block warms up
            ratios = [np.percentile(seconds[:, side] / seconds[:, 0], [50, 25, 75]) for side in (2, 1)]
            model = train(adata, key, n_hidden, batch_size)[0]
            rows[n_hidden, batch_size] = {
                "unkeyed, s": f"{np.median(seconds[:, 0]):.3f}",
                "key": "{:.3f} ({:.3f} to {:.3f})".format(*ratios[0]),
                "key + keyed sums": "{:.3f} ({:.3f} to {:.3f})".format(*ratios[1]),
                "transfer, ms": f"{transfer(model):.2f}",
                "inside forward": f"{inside(model, x, codes, batch_size):.2f}",
            }
    print("seconds a round over 7 sites; ratios to the unkeyed round, median and quartiles\n")
    print(pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["hidden", "batch"]).to_string())


if __name__ == "__main__":
    main()
