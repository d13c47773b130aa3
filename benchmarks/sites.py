"""What a federation costs as its sites become many, under Flower's simulation: 3, 10, 20 and 100 sites on one machine.

Sites are real: each has a folder, data, a key and an identity of its own, greets, masks, signs, and reads the sums.
Flower carries their messages in memory and lets them take turns in a few processes. Prints seconds of a round, seconds
of CPU and memory of the server, and seconds of CPU and bytes of a site. With ``--faults``, one site is slow in all
rounds, and in each round another one dies: it trains, and ends before it answers, as long as the round lasts.

Needs ``pip install 'flwr[simulation]'``.

    python benchmarks/sites.py --out sites --sites 3 10 20 100
    python benchmarks/sites.py --out sites --sites 20 --faults
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _standard_flower import StandardFlower

import scinfl as si
from scinfl.model.base import ModelView

N_CELLS, N_GENES, N_HIDDEN = 60, 200, 128
DEADLINE, PATIENT, SLOW = 20, 900, 4.0  # seconds
RUN_FILE = "server/run/run.json"
JOB = """[federation]
sites = {sites}
min_sites = 3
deadline = {deadline}
[model]
n_hidden = {n_hidden}
[setup]
labels_key = "label"
[train]
n_rounds = {n_rounds}
"""
APP = '''"""The apps of scinfl, with a clock; and faults where they are asked for."""

import json
import os
import time
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from scinfl.flower import apps
from scinfl.flower.protocol._records import from_flower
from scinfl.flower.server import run_in_grid

client_app = ClientApp()
server_app = ServerApp()
OUT, FAULTS, SLOW = Path({out!r}), {faults!r}, {slow!r}


def note(name, **fields):
    with (OUT / name).open("a") as file:
        file.write(json.dumps(fields) + "\\n")


@client_app.train()
@client_app.query()
def answer(carrier, context):
    number, asked = context.node_config["partition-id"], from_flower(carrier)
    step = asked.fields.get("step", 0) if asked.kind == "step" else 0
    if FAULTS and number == 0 and step:
        time.sleep(SLOW)
    wall, cpu = time.monotonic(), time.process_time()
    reply = apps.client_app(carrier, context)
    sent = from_flower(reply)
    note(
        f"site_{{number}}.jsonl",
        step=step,
        kind=sent.kind,
        seconds=time.monotonic() - wall,
        cpu=time.process_time() - cpu,
        received=len(asked.to_bytes()),
        sent=len(sent.to_bytes()),
    )
    if FAULTS and step and sent.kind == "step" and number == 1 + step % (context.node_config["num-partitions"] - 1):
        raise RuntimeError("this site died")
    return reply


@server_app.main()
def main(grid, context):
    def report(line):
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        note("server.jsonl", line=line, time=time.time(), cpu=time.thread_time(), rss=rss)

    report("start")
    run_in_grid(grid, context.run_config, report=report)
    report("end")
'''


def make_data(n_sites: int) -> ad.AnnData:
    """Cells of four types, all of them at every site."""
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=n_sites * N_CELLS)
    values = generator.normal(0, 1.0, (4, N_GENES))[labels] + generator.normal(0, 1, (len(labels), N_GENES))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(labels, [f"type_{i}" for i in range(4)]),
            "site": [f"hospital_{i % n_sites:03d}" for i in range(len(labels))],
        },
        index=[f"cell_{i}" for i in range(len(labels))],
    )
    return ad.AnnData(values.astype(np.float32), obs, pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)]))


def prepare(out: Path, adata: ad.AnnData, n_rounds: int, *, faults: bool) -> si.privacy.Key:
    """Folders, data and key of the sites, the app, and the file of the nodes."""
    sites = sorted(set(adata.obs["site"]))
    deadline = DEADLINE if faults else PATIENT
    job = JOB.format(sites=json.dumps(sites), deadline=deadline, n_hidden=N_HIDDEN, n_rounds=n_rounds)
    (out / "job.toml").write_text(job)
    si.flower.make_kit(out / "kit", sites, job=out / "job.toml")
    key = si.privacy.Key.generate("sites")
    key.save(out / "consortium.key")
    nodes = []
    for site in sites:
        adata[adata.obs["site"] == site].copy().write_h5ad(out / f"{site}.h5ad")
        nodes.append(f'[[nodes]]\nfolder = "kit/site_{site}"\ndata = "{site}.h5ad"\nkey = "consortium.key"\n')
    (out / "nodes.toml").write_text("".join(nodes))
    app = si.flower.make_app(out / "kit" / "server", out / "app", job=out / "job.toml")
    (app / "measured.py").write_text(APP.format(out=str(out), faults=faults, slow=SLOW))
    description = app / "pyproject.toml"
    description.write_text(description.read_text().replace("scinfl.flower.apps", "measured"))
    return key


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def median_of_site(out: Path, what: str) -> float:
    """Of a site and round: all messages of a step together."""
    found = []
    for path in out.glob("site_*.jsonl"):
        steps: dict[int, float] = {}
        for line in lines(path):
            if line["step"] and line["kind"] == "step":
                steps[line["step"]] = steps.get(line["step"], 0.0) + line[what]
        found += list(steps.values())
    return float(np.median(found))


def run(out: Path, n_sites: int, n_rounds: int, *, faults: bool, seconds: float) -> dict[str, object]:
    """One federation; returns a row of the table."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    out = out.resolve()
    adata = make_data(n_sites)
    key = prepare(out, adata, n_rounds, faults=faults)
    flower = StandardFlower(out, simulation=True, nodes=out / "nodes.toml")
    try:
        options = ("--federation-config", f"num-supernodes={n_sites} client-resources-num-cpus=1")
        flower.run(out / "app", "-c", f'folder="{out / "server"}"', *options)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            server = lines(out / "server.jsonl") if (out / "server.jsonl").is_file() else []
            if server and server[-1]["line"] == "end":
                break
            if flower.running["operator-run"].poll() is not None:
                sys.exit(flower.text("operator-run")[-4000:])
            time.sleep(0.5)
    finally:
        flower.close()
    rounds = [line for line in server if line["line"].startswith("round ")]
    with (out / "server/run/history.csv").open() as file:
        history = list(csv.DictReader(file))
    took = [float(row["seconds"]) for row in history]
    cpu = np.diff([line["cpu"] for line in rounds])
    return {
        "sites": n_sites,
        "faults": "slow, dying" if faults else "none",
        "rounds": len(history),
        "left out": " ".join(f"{row['round']}:{row['left_out'].count('hospital')}" for row in history),
        "s/round": round(float(np.median(took)), 1),
        "worst": round(max(took), 1),
        "server CPU s/round": round(float(np.median(cpu)), 2),
        "server MB": round(max(line["rss"] for line in server) / 1e6),
        "MB at start": round(server[0]["rss"] / 1e6),
        "site CPU s/round": round(median_of_site(out, "cpu"), 2),
        "site kB up": round(median_of_site(out, "sent") / 1e3),
        "site kB down": round(median_of_site(out, "received") / 1e3),
        "equal": is_equal(out, adata, key, n_rounds) if not faults else "",
    }


def is_equal(out: Path, adata: ad.AnnData, key: si.privacy.Key, n_rounds: int) -> str:
    """How many sites have, to the last bit, the model of one process."""
    si.model.Classifier.setup_anndata(adata, "label", site_key="site")
    model = si.model.Classifier(adata, n_hidden=N_HIDDEN)
    model.train(n_rounds, key=key, run=json.loads((out / RUN_FILE).read_text())["run"], progress=False)
    expected = plain(model)
    same = []
    for folder in sorted((out / "kit").glob("site_*")):
        own = si.model.Classifier.load(folder / "model")
        own.unlock(key)
        found = plain(own)
        same.append(all(np.array_equal(array, found[name]) for name, array in expected.items()))
    return f"{sum(same)} of {len(same)}"


def plain(model: si.model.Classifier) -> dict[str, np.ndarray]:
    """Parameters without the offsets that every saved model has of its own."""
    return {name: tensor.numpy() for name, tensor in ModelView(model).state_without_offsets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sites"))
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 20, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which a federation is given up")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "table.csv"
    rows = pd.read_csv(table).to_dict("records") if table.is_file() else []
    for n_sites in options.sites:
        row = run(options.out / f"{n_sites}", n_sites, options.rounds, faults=options.faults, seconds=options.seconds)
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
        pd.DataFrame(rows).to_csv(table, index=False)
    print(f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
