"""Server and sites are killed at random moments: every run ends, with the models of one process.

`SCINFL_KILLS=20 python -m pytest -m slow tests/flower/test_kills.py --log-cli-level=INFO` kills each 20 times per
protection and shows every kill.
"""

from __future__ import annotations

import logging
import os
import time

import numpy as np
import pytest

pytest.importorskip("flwr")

from tests.flower.conftest import SITES, job_text, load, make_cells, processes, same, trained_in_process

from scinfl.privacy import PairwiseSum

logger = logging.getLogger(__name__)
N_KILLS = int(os.environ.get("SCINFL_KILLS", "2"))
SEED = int(os.environ.get("SCINFL_SEED", "0"))
N_ROUNDS = 8


def phase(running):
    """Last line that the server wrote: where the run was."""
    lines = running.text("server").strip().splitlines()
    return lines[-1].split("INFO")[-1].strip()[:90] if lines else "start"


def wait_for_lines(running, n):
    """Let the server write so many more lines: it is in another step of another round then."""
    until, seen = time.monotonic() + 60, len(running.text("server").splitlines())
    while len(running.text("server").splitlines()) < seen + n and time.monotonic() < until:
        if running.running["server"].poll() is not None:
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["keyed", "pairwise"])
def test_whatever_is_killed_the_run_ends_with_the_models_of_one_process(tmp_path, fresh_key, protection):
    generator, kills = np.random.default_rng(SEED), dict.fromkeys(["server", *SITES], 0)
    adata = make_cells()
    job = job_text(n_rounds=N_ROUNDS, deadline=90, more="local_epochs = 2").replace(
        "deadline", f'sum = "{protection}"\ndeadline'
    )
    number = 0
    while min(kills.values()) < N_KILLS:
        number += 1
        assert number < 3 * N_KILLS + 3, f"runs end before anything is killed: {kills}"
        folder = tmp_path / str(number)
        folder.mkdir()
        with processes(folder, job, adata, fresh_key) as running:
            started, attempts = time.monotonic(), 0
            running.start_server()
            for site in SITES:
                running.start_site(site)
            for name in generator.permutation(list(kills)):
                wait_for_lines(running, generator.integers(4))
                time.sleep(generator.exponential(1.0))
                if running.running[name].poll() is not None:
                    continue  # it had finished
                at, where = time.monotonic() - started, phase(running)
                running.kill(name)
                kills[name] += 1
                attempts += 1
                if name == "server":
                    again = (folder / "kit/server/run/run.json").is_file()
                    running.start_server(*(["--resume"] if again else []))
                else:
                    running.start_site(name)
                logger.info("%s run %d: %s killed at %.1f s, server: %s", protection, number, name, at, where)
            assert running.wait("server", 240) == 0, running.text("server")[-2000:]
            for site in SITES:
                assert running.wait(site, 120) == 0, running.text(site)[-2000:]
            sums = "default" if protection == "keyed" else [PairwiseSum(fresh_key)]
            expected = trained_in_process(
                adata, fresh_key, n_rounds=N_ROUNDS, run=running.run, local_epochs=2, protections=sums
            )
            equal = [same(load(running.kit(site) / "model", fresh_key), expected) for site in SITES]
            seconds = time.monotonic() - started
            logger.info("%s run %d: %d kills, %.0f s, equal: %s", protection, number, attempts, seconds, equal)
            assert all(equal)
            assert "Traceback" not in "".join(running.text(name) for name in running.running)
    logger.info("%s: %s", protection, kills)
