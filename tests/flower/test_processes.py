"""Server and sites as real processes over Flower, with TLS, on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

pytest.importorskip("flwr")

from flwr.clientapp import ClientApp
from tests.flower.conftest import (
    SCVI_JOB,
    SITES,
    job_text,
    load,
    make_cells,
    make_counts,
    parameters,
    processes,
    same,
    secret_scan,
    trained_in_process,
)
from tests.flower.test_models import SCREEN_JOB, gears_in_process, make_screen, write_ontology

from scinfl import model
from scinfl.federation import Journal
from scinfl.flower.setup._job import JOB, SITE_SETTINGS
from scinfl.flower.setup._kit import CA, LINK_KEY, _openssh, make_kit
from scinfl.flower.site._connection import FleetConnection, RefusedError
from scinfl.privacy import Key

COORDINATES = ["encoder.1/permutation", "encoder.1/inputs", "head/inputs"]


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_federation_of_processes_from_start_to_end(tmp_path, monkeypatch):
    """One long story, because every process takes seconds to start."""
    adata, fresh_key = make_cells(), Key.generate("test-federation")
    job = job_text(n_rounds=6, deadline=60, more="local_epochs = 4")
    with processes(tmp_path, job, adata, fresh_key) as running:
        running.start_server()
        for site in SITES:
            running.start_site(site)

        kit, address = running.kit(SITES[0]), f"127.0.0.1:{running.port}"
        stranger = tmp_path / "stranger.key"
        stranger.write_bytes(_openssh(ec.generate_private_key(ec.SECP384R1())))
        make_kit(tmp_path / "other", SITES, address=f"127.0.0.1:{running.port}", job=tmp_path / "job.toml")

        running.wait_for("server", r"round 2/6")
        server = running.running["server"].pid
        (superlink,) = children(server)
        for pid in (server, superlink):
            os.kill(pid, signal.SIGSTOP)
        expected = trained_in_process(adata, fresh_key, n_rounds=6, local_epochs=4, run=running.run)
        so_far = trained_in_process(
            adata, fresh_key, n_rounds=2, local_epochs=4, smoothing=0.0, run=running.run
        )  # a mean that was sent
        secrets = secret_scan.secret_bytes(fresh_key, parameters(so_far), COORDINATES)
        secrets |= {name: name.encode() for name in ("type_2", "gene_17")}
        assert len(secrets) > 12
        assert [*secret_scan.find_in_memory(server, secrets), *secret_scan.find_in_memory(superlink, secrets)] == []
        assert secret_scan.find_in_memory(server, {"its own job": b"n_hidden = 16"})  # it does find what is there
        assert secret_scan.find_in_files(tmp_path / "kit" / "server", secrets) == []
        for pid in (superlink, server):
            os.kill(pid, signal.SIGCONT)

        monkeypatch.setattr("scinfl.flower.site._connection._SECONDS_TO_DOUBT", 1.0)
        with pytest.raises(RefusedError, match="it was never registered, or revoked"):
            FleetConnection(address, kit / CA, stranger, site="hospital_0", poll=0.1).serve(ClientApp())
        with pytest.raises(RefusedError, match="somebody may be between you and the server"):
            FleetConnection(address, tmp_path / "other" / "server" / CA, kit / LINK_KEY, site="hospital_0").serve(
                ClientApp()
            )

        running.kill("server")
        time.sleep(2)
        assert not is_alive(superlink)

        running.start_server("--resume")
        assert running.wait("server") == 0
        for site in SITES:
            assert running.wait(site) == 0
            assert same(load(running.kit(site) / "model", fresh_key), expected)
        journal = Journal(tmp_path / "kit" / "server" / "run")
        assert journal.verify()
        assert {"start", "preflight", "step", "resume", "finished"} <= {event["event"] for event in journal.events()}
        history = (tmp_path / "kit" / "server" / "run" / "history.csv").read_text().splitlines()
        assert [line.split(",")[1] for line in history] == ["round", *map(str, range(1, 7))]
        text = "".join(running.text(name) for name in running.running)
        assert "Traceback" not in text


@pytest.mark.slow
def test_a_site_that_is_killed_is_missed_by_nobody_and_catches_up(tmp_path, fresh_key):
    sites = [*SITES, "hospital_3"]
    adata = make_cells(n_sites=4)
    job = job_text(sites, n_rounds=8, deadline=10, more="local_epochs = 4")
    with processes(tmp_path, job, adata, fresh_key, sites) as running:
        running.start_server()
        for site in sites:
            running.start_site(site)
        running.wait_for("hospital_3", r"round 1/8")
        running.kill("hospital_3")  # while it trains for round 2 or 3
        running.wait_for("server", r"round \d+/8: 3 sites, without hospital_3")
        server = running.running["server"].pid
        os.kill(server, signal.SIGSTOP)  # rounds are shorter than the start of a process
        running.start_site("hospital_3", name="hospital_3 again")
        running.wait_for("hospital_3 again", "waits for the server")
        os.kill(server, signal.SIGCONT)
        assert running.wait("server", 150) == 0
        assert running.wait("hospital_3 again") == 0
        models = [load(running.kit(site) / "model", fresh_key) for site in sites]
        assert all(same(model, models[0]) for model in models)
        counts = {line.split(",")[2] for line in (tmp_path / "kit/server/run/history.csv").read_text().splitlines()[1:]}
        assert "3" in counts


@pytest.mark.slow
def test_sites_that_differ_end_with_the_cure_on_both_sides(tmp_path, fresh_key):
    adata = make_cells()
    with processes(tmp_path, job_text(), adata, fresh_key) as running:
        adata[adata.obs["site"] == SITES[1]][:, ::-1].copy().write_h5ad(tmp_path / f"{SITES[1]}.h5ad")
        running.start_server()
        for site in SITES:
            running.start_site(site)
        assert running.wait("server") == 1
        for name in ("server", *SITES):
            assert running.wait(name) == 1
            last = running.text(name).splitlines()[-1]
            must_act = name in ("server", SITES[1])
            assert ("the order of features of site 'hospital_1' differs from the others" in last) == must_act
            assert ("scinfl.pp.align_genes" in last) == must_act
            assert must_act or "hospital_1 must act before the run can begin" in last
            assert "gene_" not in last
        assert not list((tmp_path / "kit" / "server" / "run" / "sums").iterdir())


@pytest.mark.slow
def test_an_old_job_is_blamed_before_the_data_at_both_ends(tmp_path, fresh_key):
    with processes(tmp_path, job_text(), make_cells(), fresh_key) as running:
        job = running.kit(SITES[1]) / JOB
        present = job.read_text()
        job.write_text(present.replace('labels_key = "label"', 'labels_key = "old_label"'))
        running.start_server()
        running.start_site(SITES[1])
        assert running.wait(SITES[1]) == 1
        assert "differs from it in setup.labels_key" in running.text(SITES[1]).splitlines()[-1]
        running.wait_for("server", r"site 'hospital_1' cannot take part: its job differs .* in setup\.labels_key")
        job.write_text(present)
        for site in SITES:
            running.start_site(site)
        assert running.wait("server") == 0, running.text("server")[-2000:]


@pytest.mark.slow
def test_a_server_whose_superlink_died_says_so_and_goes_on(tmp_path, fresh_key):
    adata = make_cells()
    with processes(tmp_path, job_text(n_rounds=6), adata, fresh_key) as running:
        running.start_server()
        for site in SITES:
            running.start_site(site)
        running.wait_for("server", r"round 2/6")
        (superlink,) = children(running.running["server"].pid)
        os.kill(superlink, signal.SIGKILL)
        assert running.wait("server", 150) == 1
        assert "Go on with `--resume`" in running.text("server")
        running.start_server("--resume")
        assert running.wait("server") == 0
        for site in SITES:
            assert running.wait(site) == 0
            expected = trained_in_process(adata, fresh_key, n_rounds=6, run=running.run)
            assert same(load(running.kit(site) / "model", fresh_key), expected)


def test_what_is_not_loopback_reaches_the_sites_calls_only():
    import asyncio

    from scinfl.flower.server._superlink_process import Gate

    async def status(path, client):
        sent = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})

        async def send(message):
            sent.append(message)

        await Gate(app)({"type": "http", "path": path, "client": (client, 1), "headers": ()}, None, send)
        return sent[0]["status"]

    for path, client, expected in (
        ("/v1/control/start-run", "203.0.113.7", 403),
        ("/v1/control/start-run", "127.0.0.1", 200),
        ("/v1/control/start-run", "::1", 200),
        ("/v1/runtime/acquire-task", "203.0.113.7", 403),
        ("/v1/fleet/pull-messages", "203.0.113.7", 200),
        ("/v1/fleet/../control/start-run", "203.0.113.7", 403),
    ):
        assert asyncio.run(status(path, client)) == expected


@pytest.mark.slow
def test_a_model_of_scvi_tools_over_processes_is_that_of_one_process(tmp_path, fresh_key):
    adata = make_counts()
    with processes(tmp_path, SCVI_JOB.format(kind="SCVI", setup="", n_rounds=2), adata, fresh_key) as running:
        running.train()
        assert running.n_before <= 3
        expected = model.from_scvi("SCVI", adata, site_key="site", n_hidden=16, n_latent=4)
        expected.train(2, key=fresh_key, run=running.run, lr=0.01, progress=False)
        for site in SITES:
            trained = model.ScviModel.load(running.kit(site) / "model")
            trained.unlock(fresh_key)
            assert same(trained, expected)


@pytest.mark.slow
def test_a_gears_over_processes_is_that_of_one_process(tmp_path, fresh_key):
    screen = make_screen()
    with processes(tmp_path, SCREEN_JOB.format(loss="squared"), screen, fresh_key) as running:
        write_ontology(tmp_path, screen.uns["gene_terms"])
        for site in SITES:
            with (running.kit(site) / SITE_SETTINGS).open("a") as file:
                file.write('gene_ontology = "terms.tsv"\n')
        running.train()
        assert running.n_before <= 8
        expected = gears_in_process(screen, fresh_key, running.run, loss="squared")
        wanted = list(screen.uns["gene_terms"])[:2]
        for site in SITES:
            trained = model.GEARS.load(running.kit(site) / "model")
            trained.unlock(fresh_key)
            assert same(trained, expected)
            np.testing.assert_array_equal(*(own.predict(wanted, adata=screen).X for own in (trained, expected)))
