"""A federation of real processes on one machine, from the first command to the model.

Server and three sites train over Flower with TLS on loopback: proteins of The Cancer Genome Atlas, one region per site
(or bundled blood cells where the table is absent), keyed sums. Prints the seconds of every round, how many of them were
local training, whether the model is that of the same training in one process to the last bit, whether a site that is
not registered is refused, and whether database, logs and memory of the server hold the key, a coordinate or a
parameter.

    python benchmarks/flower.py --out federation_demo
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from _secret_scan import find_in_files, find_in_memory, secret_bytes
from cryptography.hazmat.primitives.asymmetric import ec

import scinfl as si
from scinfl.flower.setup._kit import LINK_KEY, _openssh
from scinfl.model.base import ModelView

JOB = """[federation]
sites = {sites}
min_sites = 3
deadline = 120

[model]
class = "Classifier"
n_hidden = {n_hidden}

[setup]
labels_key = "{label}"

[train]
n_rounds = {n_rounds}
"""
COORDINATES = ["encoder.1/permutation", "encoder.1/inputs", "encoder.1/outputs", "head/inputs"]


def hospitals(path: Path) -> tuple[ad.AnnData, str, str]:
    """Three regions of real proteins, or three sites of bundled blood cells."""
    if path.is_file():
        adata = si.datasets.tcga_proteins(path)
        adata = adata[adata.obs["region"].isin(["Northeast", "Europe", "South"])].copy()
        adata.obs["site"] = adata.obs["region"].astype(str).str.lower()
        adata.obs["cancer"] = adata.obs["cancer"].cat.remove_unused_categories()
        return adata, "cancer", "TCGA proteins, one region per site"
    adata = si.datasets.pbmc()
    si.pp.split_sites(adata, n_sites=3, by="bulk_labels", rng=0)
    adata.obs["site"] = adata.obs["site"].astype(str)
    return adata, "bulk_labels", "bundled blood cells (no TCGA table found)"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "scinfl.cli", "federation", *map(str, arguments)]


def start(out: Path, name: str, *arguments: object) -> subprocess.Popen:
    print("$ scinfl federation", *arguments, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (out / f"{name}.log").open("w") as log:
        return subprocess.Popen(command(*arguments), stdout=log, stderr=log, env=environment, start_new_session=True)  # noqa: S603


def follow(path: Path, process: subprocess.Popen, until: str, shown: int) -> int:
    """Print new lines of a log until one holds a word."""
    while True:
        lines = path.read_text().splitlines()
        for line in lines[shown:]:
            print("   server:", line, flush=True)
            shown += 1
            if until in line:
                return shown
        if process.poll() is not None and shown == len(path.read_text().splitlines()):
            return shown
        time.sleep(0.1)


def stop(running: dict[str, subprocess.Popen]) -> None:
    """Kill the processes that still run, with all that they started."""
    for process in running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def prepare(out: Path, sites: list[str], job: str) -> si.privacy.Key:
    """Key of the sites, and the folders that `scinfl federation init` makes of a job."""
    key = si.privacy.Key.generate("demo")
    key.save(out / "consortium.key")
    (out / "job.toml").write_text(job)
    initial = ("init", "--sites", ",".join(sites), "--address", f"127.0.0.1:{free_port()}", "--job", out / "job.toml")
    print("$ scinfl federation", *initial, "--out", out / "kit")
    subprocess.run(command(*initial, "--out", out / "kit"), check=True)  # noqa: S603
    return key


def search(server: subprocess.Popen, kit: Path, secrets: dict[str, bytes]) -> list[str]:
    """Stop the server's processes, look into them, and let them go on."""
    pids = [server.pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server.pid:
                pids.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    found = [hit for pid in pids for hit in find_in_memory(pid, secrets)] + find_in_files(kit, secrets)
    n_bytes = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    print(f"searched the memory of {len(pids)} processes and {n_bytes / 1e6:.1f} MB of files of the server for")
    print(f"  {len(secrets)} secrets (key, coordinates, parameters): found {found or 'none'}", flush=True)
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def overhead(out: Path, sites: list[str], n_rounds: int) -> str:
    """Seconds per round that no site spent training."""
    local = {}
    for site in sites:
        (journal,) = (out / "kit" / f"site_{site}" / "runs").iterdir()
        events = si.federation.Journal(journal).events()
        local[site] = [event["local_seconds"] for event in events if event["event"] == "step"]
    history = (out / "kit/server/run/history.csv").read_text().splitlines()[1:]
    seconds = np.array([float(line.split(",")[4]) for line in history])
    slowest = np.array([max(own[number] for own in local.values()) for number in range(1, n_rounds + 1)])
    beside = seconds - slowest
    return (
        f"{n_rounds} rounds × {seconds.mean():.2f} s = {seconds.sum():.1f} s; the slowest site trained "
        f"{slowest.mean():.2f} s per round; {np.median(beside):.2f} s per round (median) went into everything else"
    )


def trained(adata, label, key, options, *, run):
    """The same training in one process: the model, and a mean that was sent, not a moving average."""
    started = time.perf_counter()
    si.model.Classifier.setup_anndata(adata, label, site_key="site")
    models = [si.model.Classifier(adata, n_hidden=options.hidden) for _ in range(2)]
    models[0].train(options.rounds, key=key, run=run, progress=False)
    print(f"the same training in one process took {time.perf_counter() - started:.1f} s\n")
    models[1].train(options.rounds, key=key, run=run, smoothing=0.0, progress=False)
    return models


def main() -> int:  # noqa: PLR0915 (a story from the first command to the last)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("federation_demo"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=256)
    shared = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/bulk/tcga_rppa.h5ad")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    adata, label, what = hospitals(options.data)
    sites = sorted(adata.obs["site"].unique())
    counts = adata.obs["site"].value_counts()
    print(f"{what}: {adata.n_vars} features, {adata.obs[label].nunique()} labels, {dict(counts)}")
    for site in sites:
        adata[adata.obs["site"] == site].copy().write_h5ad(out / f"{site}.h5ad")
    job = JOB.format(sites=json.dumps(sites), n_hidden=options.hidden, label=label, n_rounds=options.rounds)
    key = prepare(out, sites, job)
    kit = out / "kit" / "server"
    begin = time.perf_counter()
    running = {"server": start(out, "server", "server", kit, "--job", kit / "job.toml", "--host", "127.0.0.1")}
    try:
        stranger = out / "stranger"  # has all that a site has but the key that the server knows it by
        shutil.copytree(out / "kit" / f"site_{sites[0]}", stranger)
        (stranger / LINK_KEY).write_bytes(_openssh(ec.generate_private_key(ec.SECP384R1())))
        folders = {site: out / "kit" / f"site_{site}" for site in sites}
        for site, folder in {"stranger": stranger, **folders}.items():
            own = out / f"{sites[0] if folder == stranger else site}.h5ad"
            secret = ("--data", own, "--key", out / "consortium.key", "--yes")
            running[site] = start(out, site, "site", folder, *secret)
            if site == sites[-2]:  # before the last site comes: a short run could be over first
                shown = follow(out / "server.log", running["server"], "listening", 0)
                (started, *_) = si.federation.Journal(kit / "run").events()
                model, sent = trained(adata, label, key, options, run=started["run"])
                running["stranger"].wait(120)
        shown = follow(out / "server.log", running["server"], f"round {options.rounds}/", shown)
        server = running["server"].pid
        os.kill(server, signal.SIGSTOP)  # a short run could be over before it is searched
        parameters, means = (
            {name: tensor.numpy() for name, tensor in ModelView(own).state_without_offsets.items()}
            for own in (model, sent)
        )
        secrets = secret_bytes(key, parameters, COORDINATES)
        secrets |= {f"a mean's {what}": own for what, own in secret_bytes(key, means).items() if "parameters" in what}
        clean = search(running["server"], kit, secrets) == []
        follow(out / "server.log", running["server"], "is finished", shown)
        total = time.perf_counter() - begin
        for process in running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                continue
    finally:
        stop(running)

    print()
    equal = True
    for site in sites:
        own = si.model.Classifier.load(out / "kit" / f"site_{site}" / "model")
        own.unlock(key)
        state = {name: tensor.numpy() for name, tensor in ModelView(own).state_without_offsets.items()}
        equal &= all(np.array_equal(state[name], array) for name, array in parameters.items())
    last = (out / "stranger.log").read_text().strip().splitlines()[-1]
    refused = "it was never registered" in last
    print(f"a site that is not registered: {last}")
    print(f"models of {len(sites)} sites equal to that of one process, to the last bit: {equal}")
    print(f"no key, coordinate or parameter found at the server: {clean}")
    print(overhead(out, sites, options.rounds))
    print(f"{total:.0f} s from the first command to the model, starting of processes included")
    return 0 if equal and clean and refused else 1


if __name__ == "__main__":
    sys.exit(main())
