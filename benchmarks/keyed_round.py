"""Seconds a round of keyed training (frozen meta learner, key at the boundary) against unkeyed training.

Both sides train the same network on the same TCGA protein sites in one process, in short alternating blocks of rounds
so that a busy machine slows both alike. Prints the median ratio over the blocks with its quartiles. Also times the
transfer itself (unlock and lock) and, as the reference, training with the key inside the forward pass.

    python benchmarks/keyed_round.py [--blocks 15] [--data PATH]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import scinfl as si

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))


def make(adata, key, n_hidden, batch_size):
    """Two rounds of training that go on where the last call stopped; returns their mean seconds a round."""
    si.model.Classifier.setup_anndata(adata, labels_key="cancer", site_key="region")
    model = si.model.Classifier(adata, n_hidden=n_hidden, key_scheme="coordinate" if key else None)
    fitted = {"model": model}

    def block():
        model.train(2, key=key, batch_size=batch_size, progress=False)
        return model.history["seconds"].mean()

    return block, fitted


def transfer(model, repeats=200):
    """Milliseconds of one unlock and one lock of the model's state."""
    state = {name: p.detach() for name, p in model.module.named_parameters() if "meta" not in name}
    started = time.perf_counter()
    for _ in range(repeats):
        si.nn.lock(model.module, si.nn.unlock(model.module, state))
    return 1e3 * (time.perf_counter() - started) / repeats


def inside(model, x, codes, batch_size, repeats=300):
    """Step time with the key inside the forward pass over step time of the plain network."""
    import copy

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
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "bulk" / "tcga_rppa.h5ad")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    adata = si.datasets.tcga_proteins(options.data)
    x = torch.from_numpy(adata.X)
    codes = torch.from_numpy(adata.obs["cancer"].cat.codes.to_numpy().astype(np.int64))
    key = si.privacy.Key.generate()
    print("hidden  batch  plain s/round  keyed s/round  ratio (quartiles)     transfer ms  inside the forward pass")
    for n_hidden in (64, 256):
        for batch_size in (32, 256):
            plain, _ = make(adata.copy(), None, n_hidden, batch_size)
            keyed, fitted = make(adata.copy(), key, n_hidden, batch_size)
            plain(), keyed()  # warm up
            times = np.array(
                [(plain(), keyed()) if block % 2 else (keyed(), plain())[::-1] for block in range(options.blocks)]
            )
            low, middle, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
            seconds = np.median(times, axis=0)
            print(
                f"{n_hidden:6d}  {batch_size:5d}  {seconds[0]:13.3f}  {seconds[1]:13.3f}  "
                f"{middle:.3f} ({low:.3f} … {high:.3f})  {transfer(fitted['model']):11.2f}  "
                f"{inside(fitted['model'], x, codes, batch_size):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
