"""CPU seconds to the quality of cell-gears, and a pass at the size of the Norman screen.

Both sides get the same generated cells, split, graphs and differential genes, the quartic loss and no prior; each keeps
its best epoch or round on the validation conditions. cell-gears 0.1.2 trains its own 3 epochs with its own settings in
an environment of its own (its data layer does not run with current scipy, so `gears_peer.py` feeds its network and loss
from prepared arrays). The rounds of scinfl were fixed on other seeds. Preparation is timed apart on both sides.

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 torch-geometric pandas scipy scanpy dcor tqdm networkx
    PEER/bin/pip install --no-deps cell-gears==0.1.2
    OMP_WAIT_POLICY=PASSIVE python benchmarks/gears.py --peer PEER/bin/python [--size quality|pass|equal] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import scinfl as si
from scinfl.model.gears._cell_gears import translated
from scinfl.model.gears._coexpression import strongest_edges
from scinfl.model.gears._data import ConditionBatches, Design, SiteCells
from scinfl.model.gears._graphs import Vocabulary
from scinfl.model.gears._moments import Moments
from scinfl.model.gears._sums import own_second_moments
from scinfl.module import Conditions, GEARSModule, Targets, change_loss

ROUNDS, LOCAL_EPOCHS, LR = 3, 5, 6e-3  # fixed on seeds 100, 101 and 102
PEER = Path(__file__).with_name("gears_peer.py")


def generated(size: str, seed: int):
    settings = {
        "quality": {"n_genes": 2000, "n_singles": 60, "n_doubles": 40, "n_cells": 38, "n_controls": 400},
        "pass": {
            "n_genes": 5000, "n_singles": 150, "n_doubles": 130, "n_cells": 294, "n_controls": 7700, "depth": 2000.0,
        },
    }[size]  # fmt: skip
    adata = si.datasets.perturbseq_simulated(**settings, rng=seed)
    terms = adata.uns["gene_terms"]
    del adata.layers["counts"], adata.uns["true_change"]
    warnings.simplefilter("ignore")  # genes that no cell happens to show
    shown = np.asarray(adata.X.sum(0)).ravel() > 0
    adata = adata if shown.all() else adata[:, shown].copy()
    si.pp.perturbations(adata, known_genes=list(terms))
    si.pp.split_perturbations(adata, "simulation" if size == "quality" else "no_split", split_controls=False)
    adata.uns["gene_terms"] = terms
    return adata


def new_model(adata, seed: int):
    si.model.GEARS.setup_anndata(adata, condition_key="infl_perturbation")
    return si.model.GEARS(
        adata, gene_ontology=adata.uns["gene_terms"], prior=None, key_scheme=None, rng=seed, perturbation_genes=()
    )


def arrays_for_peer(adata, path: Path) -> None:
    """The same cells, split, graphs and differential genes as plain arrays."""
    model = new_model(adata, 0)
    design = Design.of(adata, model._setup_args(), {})
    cells = SiteCells.of(design, "train", "all", 2)
    names = ["ctrl", *adata.uns["infl"]["perturbations"]["conditions"]]
    edges, weights = strongest_edges(own_second_moments(adata.X, cells), n_neighbours=20, threshold=0.4)
    ontology = Vocabulary.of(
        adata, model._setup_args(), source=adata.uns["gene_terms"], further=[], n_neighbours=20
    ).ontology
    condition = adata.obs["infl_perturbation"].astype(str).to_numpy()
    parts = dict(zip(condition, adata.obs["infl_split"].astype(str), strict=True))
    top = adata.uns["infl"]["perturbations"]["top_de"]
    members = [[model._rows[gene] for gene in name.split("+")] if name != "ctrl" else [] for name in names]
    np.savez(
        path,
        x=adata.X.toarray(),
        codes=pd.Index(names).get_indexer(condition),
        names=np.array(names, dtype=str),
        members=np.array([[*row, *[-1] * (2 - len(row))] for row in members]),
        part=np.array([{"train": 0, "val": 1, "test": 2}[parts[name]] for name in names]),
        top=np.array([[0] * 20, *[adata.var_names.get_indexer(row) for row in top]]),
        n_perts=len(model.perturbation_genes),
        G_go=ontology[0],
        G_go_weight=ontology[1],
        G_coexpress=edges,
        G_coexpress_weight=weights.astype(np.float32),
    )


def run_peer(python: str, path: Path, *arguments: str) -> dict:
    command = [python, "-P", str(PEER), str(path), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})  # noqa: S603
    if result.returncode:
        sys.exit(f"cell-gears failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def timed(function):
    """The function, and a list that its CPU seconds are added to: rounds, without what comes before them."""
    seconds = []

    def call(*arguments, **options):
        started = time.process_time()
        function(*arguments, **options)
        seconds.append(time.process_time() - started)

    return call, seconds


def test_error(adata, model) -> float:
    table = si.tl.score_perturbations(adata, {"model": model}, baselines=False)
    return float(table.loc[table["metric"] == "mse_de", "value"].mean())


def quality(python: str, seeds: list[int]) -> None:
    rows = []
    for seed in seeds:
        adata = generated("quality", seed)
        started = time.process_time()
        model = new_model(adata, seed)
        model._federate, seconds = timed(model._federate)
        model.train(ROUNDS, local_epochs=LOCAL_EPOCHS, lr=LR, loss="quartic", rng=seed, progress=False)
        whole = time.process_time() - started
        own = {"cpu": sum(seconds), "whole": whole, "test": test_error(adata, model)}
        baseline = si.tl.score_perturbations(adata, {})
        baseline = baseline[baseline["metric"] == "mse_de"].groupby("method")["value"].mean()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "arrays.npz"
            arrays_for_peer(adata, path)
            rounds = run_peer(python, path, "--seed", str(seed))["rounds"]
        best = min(rounds, key=lambda entry: entry["validation"])
        rows.append(
            {
                "seed": seed,
                "cell-gears, CPU s": rounds[-1]["cpu"],
                "cell-gears, test MSE(de)": best["test"],
                "scinfl, CPU s": own["cpu"],
                "scinfl, with preparation": own["whole"],
                "scinfl, test MSE(de)": own["test"],
                "times sooner": rounds[-1]["cpu"] / own["cpu"],
                "with preparation, times sooner": rounds[-1]["cpu"] / own["whole"],
                "no change": baseline["no change"],
                "train mean": baseline["train mean"],
            }
        )
        print(pd.DataFrame(rows[-1:]).T.to_string(header=False), "\n", flush=True)
    print("mean over seeds\n", pd.DataFrame(rows).drop(columns="seed").mean().to_string(), sep="")


def one_pass(python: str) -> None:
    started = time.perf_counter()
    adata = generated("pass", 0)
    print(f"generated {adata.shape} in {time.perf_counter() - started:.0f} s", flush=True)
    model = new_model(adata, 0)
    design = Design.of(adata, model._setup_args(), {})
    started = time.perf_counter()
    cells = SiteCells.of(design, "train", "all", 2)
    moments = cells.moments(adata.X)
    print(f"moments of {len(moments)} conditions in {time.perf_counter() - started:.1f} s", flush=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    network: GEARSModule = model.module
    prior = np.zeros_like(moments.mean)
    batches = ConditionBatches(
        cells.conditions, moments, prior, np.ones(len(moments)), model._rows, torch.device("cpu")
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    network.train()
    seconds = []
    for number in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches.batches(32, torch.Generator().manual_seed(number)):
            optimizer.zero_grad()
            network.loss(batch, loss="quartic").backward()
            optimizer.step()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = min(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"scinfl: a pass over {len(batches)} conditions {wall:.2f} s ({cpu:.2f} CPU s)")
    print(f"peak memory {peak:.1f} GB, of it {before:.1f} GB before training (cells, moments)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        arrays_for_peer(adata, path)
        del adata
        peer = run_peer(python, path, "--steps", "20")
    n, whole = peer["steps_a_pass"], peer["wall"] * peer["steps_a_pass"]
    print(
        f"cell-gears: a step of 32 cells {peer['wall']:.2f} s; a pass of {n} steps {whole:.0f} s (extrapolated from 20)"
    )
    print(f"ratio {whole / wall:.0f} (wall), {peer['cpu'] * n / cpu:.0f} (CPU)")


def equal(python: str) -> None:
    """The same weights predict the same, and moments give the loss and gradients of cells."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        run_peer(python, path, "--reference", "500", "60", "64")
        with np.load(path) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    members = [(0,), (1, 2), (), (0, 3), (0,), (4,), (1, 2)]
    for name, uncertainty, n_layers in (("plain", None, 1), ("deep", "published", 2)):
        state = {key.split("/state/")[1]: value for key, value in arrays.items() if key.startswith(f"{name}/state/")}
        graphs = {key: state.pop(key) for key in list(state) if key.startswith("G_")}
        network = GEARSModule(
            [f"gene_{i}" for i in range(500)], [f"perturbation_{i}" for i in range(60)], uncertainty=uncertainty,
            n_ontology_layers=n_layers, n_coexpression_layers=n_layers, compat=True,
        )  # fmt: skip
        network.load_state_dict(translated(state))
        network.set_graph("ontology", graphs["G_go"], graphs["G_go_weight"])
        network.set_graph("coexpression", graphs["G_coexpress"], graphs["G_coexpress_weight"])
        with torch.no_grad():
            for mode in ("eval", "train"):
                change = network.train(mode == "train")(Conditions.of(members))
                difference = (change - arrays[f"{name}/{mode}"]).abs().max()
                print(f"{name} network, {mode}: largest difference from cell-gears {difference:.1e}")
    moments_against_cells()


def moments_against_cells() -> None:
    """Loss and gradients of one batch, by moments and by every pair of cell and control."""
    generator = np.random.default_rng(0)
    x, y = generator.gamma(2.0, 0.5, (40, 300)), generator.gamma(2.0, 0.6, (25, 300))
    moments = Moments.of(np.concatenate([x, y]), [np.arange(40, 65)], [np.arange(40)])
    fields = {name: torch.from_numpy(getattr(moments, name)) for name in ("mean", "variance", "third", "fourth", "top")}
    targets = Targets(
        **fields, retained=torch.from_numpy(moments.expressed), prior=torch.zeros(1, 300), order=torch.ones(1),
        weight=torch.ones(1),
    )  # fmt: skip
    change = torch.from_numpy(generator.normal(0, 0.5, (1, 300))).requires_grad_()
    pairs = torch.from_numpy(y)[:, None] - torch.from_numpy(x)[None]
    cells = (change - pairs.reshape(-1, 300)).pow(4).mean(0).mean()
    losses = change_loss(change, targets), cells
    gradients = [torch.autograd.grad(loss, change)[0] for loss in losses]
    loss = abs((losses[0] - losses[1]).item() / losses[1].item())
    gradient = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    print(f"moments against {len(x) * len(y)} pairs of cells: loss {loss:.1e}, gradient {gradient:.1e} (relative)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of an environment with cell-gears 0.1.2")
    parser.add_argument("--size", choices=["quality", "pass", "equal"], default="quality")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.size == "quality":
        quality(chosen.peer, list(range(chosen.first_seed, chosen.first_seed + chosen.seeds)))
    elif chosen.size == "pass":
        one_pass(chosen.peer)
    else:
        equal(chosen.peer)
