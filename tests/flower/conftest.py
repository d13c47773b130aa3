"""Federations in one process without a network, and as real processes over Flower."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scinfl.flower.protocol._message import Message
from scinfl.flower.server._coordinator import Coordinator
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import make_kit, pinned_identities
from scinfl.flower.site import NodeConfig, answer_message
from scinfl.flower.site._mailbox import Mailbox
from scinfl.flower.site._run import _Site
from scinfl.model import Classifier
from scinfl.nn import add_offsets
from scinfl.privacy import Key

SITES = ["hospital_0", "hospital_1", "hospital_2"]
RUN = "r0"
"""Name of the runs of this process: what sites draw follows from it."""
JOB = """
[federation]
sites = {sites}
min_sites = {min_sites}
deadline = {deadline}
[model]
n_hidden = {n_hidden}
[setup]
labels_key = "label"
[train]
n_rounds = {n_rounds}
"""

FEDERATION = f"""
[federation]
sites = {SITES}
min_sites = 3
deadline = 10
"""
SCVI_JOB = (
    FEDERATION
    + """
[model]
class = "scvi.{kind}"
n_hidden = 16
n_latent = 4
[setup]
{setup}
[train]
n_rounds = {n_rounds}
lr = 0.01
"""
)


def load_benchmark(name):
    """A file of the benchmarks, which are no package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


secret_scan = load_benchmark("_secret_scan")


def make_cells(n_cells=360, n_genes=30, n_sites=3):
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=n_cells)
    X = generator.normal(0, 1.5, (4, n_genes))[labels] + generator.normal(0, 1, (n_cells, n_genes))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(labels, [f"type_{i}" for i in range(4)]),
            "site": [f"hospital_{i % n_sites}" for i in range(n_cells)],
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    return ad.AnnData(X.astype(np.float32), obs, pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def make_counts(n_sites=3):
    generator = np.random.default_rng(0)
    labels, sites = generator.integers(3, size=180), np.arange(180) % n_sites
    rates = np.exp(np.random.default_rng(1).normal(0.5, 1.0, (3, 20)))[labels]
    names = np.array([f"type_{i}" for i in range(3)])[labels]
    names = np.where((sites == 1) & (labels == 2), "unknown", names)  # one site lacks a label
    obs = pd.DataFrame({"site": [f"hospital_{i}" for i in sites], "label": names}, index=[f"c{i}" for i in range(180)])
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(20)])
    return ad.AnnData(generator.poisson(rates).astype(np.float32), obs, var)


def job_text(sites=SITES, *, min_sites=3, deadline=10, n_hidden=16, n_rounds=4, more=""):
    return (
        JOB.format(sites=list(sites), min_sites=min_sites, deadline=deadline, n_hidden=n_hidden, n_rounds=n_rounds)
        + more
    )


def trained_in_process(adata, key, *, n_hidden=16, n_rounds=4, run=RUN, setup=None, **options):
    """The same training without a network, to the last bit that of the run of this name."""
    adata = adata.copy()
    Classifier.setup_anndata(adata, "label", site_key="site", **(setup or {}))
    model = Classifier(adata, n_hidden=n_hidden)
    model.train(n_rounds, key=key, run=run, progress=False, **options)
    return model


def parameters(model):
    state = add_offsets(model.module, model.module.state_dict(), sign=-1)  # which every model has its own of
    return {name: tensor.numpy() for name, tensor in state.items()}


def same(one, other):
    """Whether two models are equal to the last bit."""
    one, other = parameters(one), parameters(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def load(path, key):
    model = Classifier.load(path)
    model.unlock(key)
    return model


class LocalTransport:
    """Carries messages one after the other: torch has one generator for all threads."""

    def __init__(self, mailboxes):
        self.mailboxes = dict(enumerate(mailboxes.values()))
        self.names = dict(enumerate(mailboxes))
        self.away = set()
        self.held = set()  # sites whose answers are on their way
        self.changes = []  # functions of (site, message) -> message
        self.log = []
        self._answers, self._n = {}, 0

    def nodes(self):
        return {number: "1" for number in self.mailboxes if self.names[number] not in self.away}

    def send(self, node, message, *, seconds):
        self._n += 1
        site = self.names[node]
        answer = self.mailboxes[node].handle(message)
        for change in self.changes:
            answer = change(site, answer)
        self.log.append((site, message, answer))
        self._answers[str(self._n)] = site, answer
        return str(self._n)

    def receive(self, tickets):
        came = [t for t in list(tickets) if t in self._answers and self._answers[t][0] not in self.held]
        return [(ticket, self._answers.pop(ticket)[1]) for ticket in came]


class BriefMailbox:
    """A site that answers each message from its folder alone, as an app of standard Flower does."""

    def __init__(self, node, lines, errors, site):
        self._node, self._report, self._errors, self._site = node, lines.append, errors, site

    def handle(self, message):
        try:
            return answer_message(self._node, message, report=self._report)
        except Exception as error:  # noqa: BLE001
            self._errors[self._site] = error
            return Message("failed", {"message": type(error).__name__})


class CrashError(Exception):
    """The server's machine lost power."""


class LocalFederation:
    """Server and sites in threads, without Flower."""

    def __init__(
        self, folder, adata, key, job, *, keys=None, data=None, sites=SITES, run=RUN, is_brief=False, **options
    ):
        self.folder, self.job, self.key = folder, Job.parse(job), key
        (folder / "job.toml").write_text(job)
        if not (folder / "kit").exists():
            make_kit(folder / "kit", list(self.job.sites), job=folder / "job.toml")
        self.lines, self.errors, self.run_name = [], {}, run
        self.sites, self.mailboxes = {}, {}
        for site in sites:
            own = (data or {}).get(site)
            own = adata[adata.obs["site"] == site].copy() if own is None else own
            if is_brief:
                accepted = options.get("accepted", ())
                node = NodeConfig(self.kit(site), own, (keys or {}).get(site, key), accept_difference=accepted)
                self.mailboxes[site] = BriefMailbox(node, self.lines, self.errors, site)
                continue
            self.sites[site] = _Site(self.kit(site), own, (keys or {}).get(site, key), self.lines.append, **options)
            self.mailboxes[site] = Mailbox(self.sites[site]._greet)
        self.transport = LocalTransport(self.mailboxes)
        self._threads = [threading.Thread(target=self._train, args=(site,), daemon=True) for site in self.sites]

    def kit(self, site):
        return self.folder / "kit" / f"site_{site}"

    def server(self, *, resume=False, expected=None):
        run = self.folder / "kit" / "server" / "run"
        run.mkdir(exist_ok=True)
        identities = pinned_identities(self.folder / "kit" / "server")
        server = Coordinator(run, self.job, identities, self.lines.append, resume=resume, expected=expected, poll=0.002)
        server._kept.run = self.run_name
        return server

    def _train(self, site):
        try:
            self.sites[site]._train_until_done(self.mailboxes[site])
        except Exception as error:  # noqa: BLE001
            self.errors[site] = error
            self.mailboxes[site].fail(type(error).__name__)

    def start(self):
        for thread in self._threads:
            thread.start()

    def run(self, *, resume=False):
        self.start()
        self.server(resume=resume).run(self.transport)
        for thread in self._threads:
            thread.join(10)

    def run_until_crash(self, site, step, *, kind="step"):
        """Start, and lose the server as soon as a site has answered a step."""

        def crash(name, answer):
            if name == site and answer.kind == kind and answer.fields["step"] == step:
                self.transport.changes.remove(crash)
                raise CrashError
            return answer

        self.transport.changes.append(crash)
        self.start()
        with pytest.raises(CrashError):
            self.server().run(self.transport)

    def model(self, site):
        return load(self.kit(site) / "model", self.key)


@pytest.fixture
def fresh_key():
    return Key(bytes(range(32)), federation="test-federation")


@pytest.fixture
def make_federation(tmp_path, fresh_key):
    def make(job=None, *, adata=None, folder=None, **options):
        return LocalFederation(
            folder or tmp_path, make_cells() if adata is None else adata, fresh_key, job or job_text(), **options
        )

    return make


# ---- real processes


def _end_with_parent():
    """Ask Linux to end this process when the one that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Processes:
    """Server and sites as processes of their own; all of them end with the test."""

    def __init__(self, folder, job, adata, key, sites):
        self.folder, self.sites = folder, list(sites)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "job.toml").write_text(job)
        make_kit(folder / "kit", list(Job.parse(job).sites), address=f"127.0.0.1:{self.port}", job=folder / "job.toml")
        key.save(folder / "consortium.key")
        for site in self.sites:
            adata[adata.obs["site"] == site].copy().write_h5ad(folder / f"{site}.h5ad")
        self.running, self.n = {}, 0

    def start(self, name, *arguments):
        log = self.folder / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with log.open("ab") as file:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "scinfl.cli", "federation", *map(str, arguments)],
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509
            )

    def start_server(self, *more):
        kit = self.folder / "kit" / "server"
        self.start("server", "server", kit, "--job", kit / "job.toml", "--host", "127.0.0.1", *more)

    def start_site(self, site, *, kit=None, data=None, key=None, name=None):
        self.start(
            name or site,
            "site",
            kit or self.kit(site),
            *("--data", data or self.folder / f"{site}.h5ad"),
            *("--key", key or self.folder / "consortium.key", "--yes", "--poll", "0.1"),
        )

    def kit(self, site):
        return self.folder / "kit" / f"site_{site}"

    @property
    def run(self):
        """Name of the run, once sites agreed on it."""
        return json.loads((self.folder / "kit" / "server" / "run" / "run.json").read_text())["run"]

    def train(self):
        """Run server and sites to their end."""
        self.start_server()
        for site in self.sites:
            self.start_site(site)
        for name in ("server", *self.sites):
            assert self.wait(name) == 0, self.text(name)[-3000:]
        assert "Traceback" not in "".join(self.text(name) for name in self.running)

    @property
    def n_before(self):
        """Exchanges before the first round."""
        history = self.folder / "kit" / "server" / "run" / "history.csv"
        return int(history.read_text().splitlines()[1].split(",")[0])

    def text(self, name):
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_for(self, name, pattern, seconds=300):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.text(name)):
                return found
            if self.running[name].poll() is not None and not re.search(pattern, self.text(name)):
                break
            time.sleep(0.05)
        pytest.fail(f"no {pattern!r} in {name}:\n" + "\n".join(f"== {n}\n{self.text(n)[-3000:]}" for n in self.running))

    def wait(self, name, seconds=300):
        try:
            return self.running[name].wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} did not end:\n{self.text(name)[-3000:]}")

    def kill(self, name):
        """End a process without a warning, and let its children notice."""
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def close(self):
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def processes(folder, job, adata, key, sites=SITES):
    running = Processes(Path(folder), job, adata, key, sites)
    try:
        yield running
    finally:
        running.close()
