"""Three hospitals, one mosaic, over real processes: RNA and protein at one, RNA at another, protein at the third.

Server and three sites train a keyed SpaMosaic over Flower with TLS on loopback: the authors' simulated replicate 1, one
section per site (or a generated mosaic where the files are absent). Prints exchanges and seconds before the first
round, seconds of every round and how many of them were local training, and whether the model of each site is that of
the same training in one process to the last bit; every site imputes what it lacks.

    python benchmarks/flower_mosaic.py --out federation_mosaic
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import torch
from flower import follow, overhead, prepare, start, stop
from mosaic import NAME, joined

import scinfl as si
from scinfl.model.base import ModelView

HAS = {"north": ("rna", "adt"), "south": ("rna",), "west": ("adt",)}
SECTIONS = ("s1", "s2", "s3")
JOB = """[federation]
sites = {sites}
min_sites = 3
deadline = 120

[model]
class = "SpaMosaic"

[setup]
section_key = "section"

[train]
n_rounds = {n_rounds}
"""


def mosaic(folder: Path) -> tuple[md.MuData, str]:
    """All sections in one MuData, each named by its site, with what that measured."""
    mods, names = {}, dict(zip(SECTIONS, HAS, strict=True))
    if not (folder / NAME.format(1, "s1", "rna")).is_file():
        mods, what = (
            si.datasets.mosaic_simulated(3, n_spots=400).mod,
            "generated mosaic (no files of the replicate found)",
        )
        for own in mods.values():
            own.obs["section"] = own.obs["section"].astype(str).map(lambda name: names[f"s{name[-1]}"])
        return joined(dict(mods)), what
    for modality in ("rna", "adt"):
        parts = {}
        for section, site in names.items():
            if modality in HAS[site]:
                adata = ad.read_h5ad(folder / NAME.format(1, section, modality))
                parts[site] = ad.AnnData(np.asarray(adata.layers["counts"], np.float32), var=adata.var[[]])
                parts[site].obs["domain"] = adata.obs["gt"].astype(str).to_numpy()
                parts[site].obsm["spatial"] = np.asarray(adata.obsm["spatial"])
        mods[modality] = si.pp.join_sections(parts, section_key="section")
    return joined(mods), "the authors' simulated replicate 1"


def part_of(mdata: md.MuData, site: str) -> md.MuData:
    """What one site has: its own modalities alone."""
    own = mdata[(mdata.obs["section"] == site).to_numpy()]
    part = md.MuData({name: own[name].copy() for name in HAS[site]})
    part.obs["section"] = own.obs["section"].reindex(part.obs_names)
    return part


def in_one_process(mdata: md.MuData, key: si.privacy.Key, n_rounds: int, run: str) -> si.model.SpaMosaic:
    si.model.SpaMosaic.setup_mudata(mdata, "section", site_key="section")
    model = si.model.SpaMosaic(mdata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Two sites", UserWarning)
        model.train(n_rounds, key=key, run=run, progress=False)
    return model


def is_same(model: si.model.SpaMosaic, other: si.model.SpaMosaic) -> bool:
    one, two = (ModelView(own).state_without_offsets for own in (model, other))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def run_federation(out: Path, n_rounds: int) -> tuple[float, float]:
    """Server and sites from the start to the model: seconds to the end of round 1 after the preflight, and of all."""
    kit, begin = out / "kit" / "server", time.perf_counter()
    running = {"server": start(out, "server", "server", kit, "--job", kit / "job.toml", "--host", "127.0.0.1")}
    try:
        for site in HAS:
            more = ("--data", out / f"{site}.h5mu", "--key", out / "consortium.key", "--yes")
            accepted = ("--accept-difference", site)  # two sites alone measured each modality
            running[site] = start(out, site, "site", out / "kit" / f"site_{site}", *more, *accepted)
        shown = follow(out / "server.log", running["server"], "preflight passed", 0)
        agreed = time.perf_counter()
        shown = follow(out / "server.log", running["server"], f"round 1/{n_rounds}", shown)
        before = time.perf_counter() - agreed
        follow(out / "server.log", running["server"], "is finished", shown)
        total = time.perf_counter() - begin
        for process in running.values():
            process.wait(60)
    finally:
        stop(running)
    return before, total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("federation_mosaic"))
    parser.add_argument("--rounds", type=int, default=10)
    shared = Path(os.environ.get("SCINFL_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/spatial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mdata, what = mosaic(options.data)
    print(f"{what}: {dict(mdata.obs['section'].value_counts())} spots")
    for site in HAS:
        part_of(mdata, site).write_h5mu(out / f"{site}.h5mu")
    key = prepare(out, list(HAS), JOB.format(sites=json.dumps(list(HAS)), n_rounds=options.rounds))
    before, total = run_federation(out, options.rounds)
    run = out / "kit" / "server" / "run"
    started = time.perf_counter()
    expected = in_one_process(mdata, key, options.rounds, json.loads((run / "run.json").read_text())["run"])
    print(f"\nthe same training in one process took {time.perf_counter() - started:.1f} s")
    equal = True
    for site, own in HAS.items():
        model = si.model.SpaMosaic.load(out / "kit" / f"site_{site}" / "model")
        model.unlock(key)
        equal &= is_same(model, expected)
        for lacked in sorted(set(mdata.mod) - set(own)):
            imputed = model.impute(lacked, part_of(mdata, site))
            print(f"site {site} lacks {lacked}: imputed {imputed.shape[1]} features of {len(imputed)} spots")
    n_before = (run / "history.csv").read_text().splitlines()[1].split(",")[0]
    print(f"models of {len(HAS)} sites equal to that of one process, to the last bit: {equal}")
    print(f"{n_before} exchanges before round 1, which took {before:.1f} s with it")
    print(overhead(out, list(HAS), options.rounds))
    print(f"{total:.0f} s from the first command to the model, starting of processes included")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
