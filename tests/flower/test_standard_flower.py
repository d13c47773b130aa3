"""Server and sites as apps of standard Flower: a SuperLink, SuperNodes and `flwr run`, as real processes."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

pytest.importorskip("flwr")

from tests.flower.conftest import (
    SITES,
    job_text,
    load,
    load_benchmark,
    make_cells,
    parameters,
    same,
    secret_scan,
    trained_in_process,
)

from scinfl.flower import make_app, make_kit
from scinfl.privacy import Key

N_ROUNDS = 3
COORDINATES = ["encoder.1/permutation", "encoder.1/inputs", "head/inputs"]
standard_flower = load_benchmark("_standard_flower")


@pytest.fixture
def prepared(tmp_path):
    adata, key = make_cells(), Key.generate("test-federation")
    (tmp_path / "job.toml").write_text(job_text(n_rounds=N_ROUNDS, deadline=300))
    make_kit(tmp_path / "kit", SITES, job=tmp_path / "job.toml")
    make_app(tmp_path / "kit" / "server", tmp_path / "app", job=tmp_path / "job.toml")
    key.save(tmp_path / "of_the_sites.key")
    for site in SITES:
        adata[adata.obs["site"] == site].copy().write_h5ad(tmp_path / f"{site}.h5ad")
    return tmp_path, adata, key


def entries(site):
    return {"folder": f"kit/site_{site}", "data": f"{site}.h5ad", "key": "of_the_sites.key"}


def check_models(folder, adata, key):
    run = json.loads((folder / "server" / "run" / "run.json").read_text())["run"]
    expected = trained_in_process(adata, key, n_rounds=N_ROUNDS, run=run)
    for site in SITES:
        assert same(load(folder / "kit" / f"site_{site}" / "model", key), expected)
    return run


@pytest.mark.slow
def test_a_run_of_standard_flower_trains_the_model_of_one_process_and_keeps_no_secret(prepared):
    folder, adata, key = prepared
    flower = standard_flower.StandardFlower(folder)
    try:
        for site in SITES:
            paths = {name: folder / path for name, path in entries(site).items()}
            flower.start_node(site, paths)
        flower.run(folder / "app", "-c", f'folder="{folder / "server"}"')
        flower.wait_for("operator-run", "round 1/", seconds=900)

        flower.kill(SITES[1])  # with the app that it may have started
        paths = {name: folder / path for name, path in entries(SITES[1]).items()}
        flower.start_node(SITES[1], paths)

        flower.wait_for("operator-run", f"round 2/{N_ROUNDS}", seconds=900)
        run = json.loads((folder / "server" / "run" / "run.json").read_text())["run"]
        so_far = trained_in_process(adata, key, n_rounds=1, smoothing=0.0, run=run)
        secrets = secret_scan.secret_bytes(key, parameters(so_far), COORDINATES)
        secrets |= {name: name.encode() for name in ("type_2", "gene_17", "of_the_sites.key", "hospital_0.h5ad")}
        assert len(secrets) > 12
        superlink = flower.running["superlink"].pid
        pids = [superlink, *standard_flower.descendants(superlink)]
        found = [hit for pid in pids for hit in secret_scan.find_in_memory(pid, secrets)]
        assert found == []

        assert flower.running["operator-run"].wait(900) == 0
        assert len(re.findall("has the model", flower.text("operator-run"))) == len(SITES)
    finally:
        flower.close()
    check_models(folder, adata, key)
    kept = [*folder.glob("superlink.db*"), folder / "superlink.log", folder / "operator-run.log"]
    kept += [path for name in ("app", "server", "flwr") for path in (folder / name).rglob("*") if path.is_file()]
    assert len(kept) > 8
    for path in kept:
        content = path.read_bytes()
        assert [name for name, secret in secrets.items() if secret in content] == [], path


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Flower simulates with ray, which is not installed")
def test_a_simulation_of_standard_flower_trains_the_model_of_one_process(prepared):
    folder, adata, key = prepared
    nodes = [
        "[[nodes]]\n" + "".join(f"{name} = {json.dumps(path)}\n" for name, path in entries(site).items())
        for site in SITES
    ]
    (folder / "nodes.toml").write_text("".join(nodes))
    flower = standard_flower.StandardFlower(folder, simulation=True, nodes=folder / "nodes.toml")
    try:
        options = ("--federation-config", f"num-supernodes={len(SITES)} client-resources-num-cpus=1")
        flower.run(folder / "app", "-c", f'folder="{folder / "server"}"', *options)
        assert flower.running["operator-run"].wait(900) == 0
    finally:
        flower.close()
    check_models(folder, adata, key)
