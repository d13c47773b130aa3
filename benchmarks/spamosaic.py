"""Seconds and memory of sections of one modality: ours, and the published package in the same run.

The data are the three STARmap sections of the prefrontal cortex, 166 genes. Fewer spots than they have are cut from
their left edges; more are made of mirrored copies of each section side by side, with counts drawn anew (Poisson around
the real ones) and coordinates shifted by a normal of a quarter of the spacing. There are three sections, and more of
them where one would have more than 50,000 spots (`--sections` names another number). `--genes` adds genes that are
found in a twentieth of the spots, as most of a transcriptome is, every second twice as often in a stripe of the tissue.

Both sides pool the spots, as the published package must, and run with their own defaults. An epoch is a pass over all
spots: one step of its optimiser there, many steps on batches here, so whole training runs are compared beside epochs.
Each run is a process of its own with one OpenMP thread, and the quickest of some runs counts; its memory is the peak of
the process, and how much that grew after imports and data. The published package keeps a second core half busy all the
same, so its CPU seconds exceed its wall seconds.

    OMP_NUM_THREADS=1 python benchmarks/spamosaic.py --peer PEER/bin/python [--size 1300 9000 50000 200000] [--profile]
    OMP_NUM_THREADS=1 python benchmarks/spamosaic.py --size 500000 --genes 300
    OMP_NUM_THREADS=1 python benchmarks/spamosaic.py --size 50000 --sections 1 --genes 20000

How to make the environment of the published package stands in `spamosaic_peer.py`. From 20,000 spots on, and without
`--peer`, ours runs alone. Bar: five times faster at 9,000 spots, memory linear in the number of spots.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

SHARED = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
PEER = Path(__file__).with_name("spamosaic_peer.py")
PEER_LIMIT = 20_000
MOST_SPOTS = 50_000  # of a section


# ---- data


def write_sections(path: Path, n_spots: int, source: Path, n_sections: int | None, n_genes: int | None) -> None:
    """Counts, coordinates and sections as plain arrays, for both sides."""
    adata, rng = ad.read_h5ad(source), np.random.default_rng(0)
    names = adata.obs["slice"].astype(str).to_numpy()
    parts = np.array_split(np.arange(n_spots), n_sections or max(3, -(-n_spots // MOST_SPOTS)))
    counts, coordinates, section = [], [], []
    for number, (name, part) in enumerate(zip(cycle(np.unique(names)), parts, strict=False)):
        rows, where = tiled(np.asarray(adata.obsm["spatial"])[names == name], len(part), rng)
        own = sparse.csr_matrix(adata.X[np.flatnonzero(names == name)[rows]], dtype=np.float32)
        if len(part) > (names == name).sum():
            own.data = rng.poisson(own.data).astype(np.float32)
            own.eliminate_zeros()
        if n_genes is not None and n_genes > adata.n_vars:
            own = sparse.hstack([own, rare_genes(where, n_genes - adata.n_vars, rng)], format="csr")
        counts.append(own)
        coordinates.append(where)
        section.append(np.full(len(part), number))
    x = sparse.vstack(counts, format="csr")
    arrays = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape)}
    np.savez(path, coordinates=np.vstack(coordinates), section=np.concatenate(section), **arrays)


def rare_genes(where: np.ndarray, n: int, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts of genes that one spot in twenty has; every second of them twice as often in one of four stripes."""
    stripe = np.minimum((where[:, 0] - where[:, 0].min()) * 4 // max(np.ptp(where[:, 0]), 1e-9), 3).astype(int)
    found = []
    for spots in stripe:
        chosen = np.flatnonzero(rng.random(n) < np.where(np.arange(n) % 8 == 2 * spots, 0.1, 0.05))
        found.append(chosen.astype(np.int32))
    indptr = np.r_[0, np.cumsum([len(chosen) for chosen in found])]
    data = (1 + rng.poisson(0.3, indptr[-1])).astype(np.float32)
    return sparse.csr_matrix((data, np.concatenate(found), indptr), shape=(len(where), n))


def tiled(xy: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which spots to take for n of them, and where they lie."""
    if n <= len(xy):
        rows = np.argsort(xy[:, 0])[:n]
        return rows, xy[rows]
    copies = -(-n // len(xy))
    size = np.ptp(xy, axis=0)
    spacing = np.sqrt(size.prod() / len(xy))
    side = int(np.ceil(np.sqrt(copies)))
    placed = []
    for copy in range(copies):
        column, row = copy % side, copy // side
        mirror = np.where([column % 2, row % 2], -1, 1)
        placed.append((xy - xy.min(0) - size / 2) * mirror + size * (column + 0.5, row + 0.5))
    where = np.vstack(placed)[:n]
    return np.arange(n) % len(xy), where + rng.normal(0, spacing / 4, where.shape)


# ---- one run of ours, in a process of its own


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run_ours(path: Path, *, keyed: bool, profile: bool) -> None:
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import scinfl as si

    torch.set_num_threads(1)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    counts = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), arrays["shape"])
    obs = pd.DataFrame({"section": arrays["section"].astype(str)}, index=np.arange(len(arrays["section"])).astype(str))
    adata = ad.AnnData(counts, obs, obsm={"spatial": arrays["coordinates"]})
    steps, times = [0], []

    class Timed(si.model.SpaMosaic):
        def _federate(self, *args: Any, **kwargs: Any) -> Any:
            times.append(clock())
            return super()._federate(*args, **kwargs)

    def count(*_: Any) -> None:
        steps[0] += 1

    register_optimizer_step_post_hook(count)
    before, recorder = peak_gigabytes(), cProfile.Profile()
    times.append(clock())
    if profile:
        recorder.enable()
    Timed.setup_anndata(adata, "section", site_key="section" if keyed else None)
    model = Timed(adata, key_scheme="coordinate" if keyed else None)
    key = si.privacy.Key(bytes(range(32)), federation="sections") if keyed else None
    model.train(key=key, progress=False)
    times.append(clock())
    model.get_latent_representation()
    recorder.disable()
    times.append(clock())
    if profile:
        pstats.Stats(recorder, stream=sys.stderr).sort_stats("cumulative").print_stats("scinfl", 45)
        pstats.Stats(recorder, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    found: dict[str, Any] = {
        "epochs": 2 * len(model.history),
        "steps": steps[0],
        "before": before,
        "peak": peak_gigabytes(),
    }
    Timed(adata, key_scheme=None).train(n_rounds=5, graph_weight=0.2, progress=False)
    times.append(clock())
    wall, cpu = np.diff(times, axis=0).T
    names = ["preparation", "training", "embedding", "preparation again", "10 epochs with graph"]
    for kind, seconds in (("wall", wall), ("cpu", cpu)):
        found[kind] = {name: value for name, value in zip(names, seconds, strict=True) if name != "preparation again"}
    print(json.dumps(found))


# ---- all runs


def run(*command: str | Path) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, env=environment, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


def line(n: int, who: str, found: dict, kind: str) -> dict:
    seconds = found[kind]
    preparation = seconds.get("preparation", seconds.get("preprocessing", 0) + seconds.get("graphs", 0))
    grown = found["peak"] - found["before"]
    return {
        "spots": n, "": who, "preparation": preparation, "an epoch": seconds["training"] / found["epochs"],
        "epochs": found["epochs"], "steps": found["steps"], "training": seconds["training"],
        "embedding": seconds["embedding"], "whole": whole(found, kind), "peak GB": found["peak"], "grown GB": grown,
        "kB a spot": grown * 1e6 / n,
    }  # fmt: skip


def compare(
    sizes: list[int],
    peer: str | None,
    source: Path,
    *,
    n_sections: int | None,
    n_genes: int | None,
    repeats: int,
    profile: bool,
) -> dict:
    """The quickest of some runs by size and side, which take turns."""
    runs: dict[tuple[int, str], dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            path = Path(folder) / f"{n}.npz"
            write_sections(path, n, source, n_sections, n_genes)
            ours: list[str | Path] = [sys.executable, __file__, "--child", path, *(["--profile"] if profile else [])]
            commands: dict[str, list[str | Path]] = {"scinfl": ours}
            if n <= PEER_LIMIT:
                commands["scinfl, 3 sites, keyed"] = [*ours, "--keyed"]
                if peer:
                    commands["spamosaic 1.0.3"] = [peer, "-P", PEER, "horizontal", path]
            for _ in range(repeats if n <= PEER_LIMIT else 1):
                for who, command in commands.items():
                    found = run(*command)
                    if (n, who) not in runs or whole(found) < whole(runs[n, who]):
                        runs[n, who] = found
            path.unlink()
    return runs


def whole(found: dict, kind: str = "wall") -> float:
    """Seconds of preparation, training and embedding."""
    return sum(seconds for name, seconds in found[kind].items() if name != "10 epochs with graph")


def report(runs: dict[tuple[int, str], dict], sizes: list[int]) -> None:
    for kind, title in (("wall", "wall seconds"), ("cpu", "CPU seconds")):
        table = pd.DataFrame([line(n, who, found, kind) for (n, who), found in runs.items()])
        print(f"{title}\n\n{table.to_string(index=False, float_format='{:.3f}'.format)}\n")
        rows = {(row["spots"], row[""]): row for row in table.to_dict("records")}
        for n in sizes:
            if (n, "spamosaic 1.0.3") not in rows:
                continue
            one, two = rows[n, "scinfl"], rows[n, "spamosaic 1.0.3"]
            parts = ", ".join(f"{p} {two[p] / one[p]:.1f}" for p in ("preparation", "an epoch", "training", "whole"))
            step = two["an epoch"] / (one["training"] / one["steps"])
            print(f"{n} spots, times faster: {parts}, a step {step:.1f}")
            graph = [runs[n, who][kind]["10 epochs with graph"] for who in ("scinfl", "spamosaic 1.0.3")]
            print(f"  an epoch with the graph in both losses: {graph[0] / 10:.3f} and {graph[1] / 10:.3f} s")
            print(f"  times less memory above what imports and data take: {two['grown GB'] / one['grown GB']:.1f}")
        print()
    ours = [(n, runs[n, "scinfl"]["peak"]) for n in sizes]
    for (n, peak), (m, more) in pairwise(ours):
        print(f"memory from {n} to {m} spots: {(more - peak) / (m - n) * 1e6:.2f} kB a spot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with spamosaic 1.0.3")
    parser.add_argument("--size", type=int, nargs="+", default=[1300, 9000, 50_000, 200_000])
    parser.add_argument("--sections", type=int, help="number of sections, at most 50,000 spots each by default")
    parser.add_argument("--genes", type=int, help="number of genes; 166 by default")
    parser.add_argument("--repeats", type=int, default=3, help="runs a side, up to 20,000 spots; the quickest counts")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "spatial" / "starmap_mpfc_3slices_labelled.h5ad")
    parser.add_argument("--profile", action="store_true", help="where ours spends its time")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keyed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_ours(options.child, keyed=options.keyed, profile=options.profile)
        return
    settings = {"n_sections": options.sections, "n_genes": options.genes}
    settings |= {"repeats": options.repeats, "profile": options.profile}
    report(compare(options.size, options.peer, options.data, **settings), options.size)


if __name__ == "__main__":
    main()
