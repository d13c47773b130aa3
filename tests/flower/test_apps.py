"""Server and sites under a Flower that runs already: each message is answered from the folder of a site alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Error, RecordDict
from flwr.app import Message as FlowerMessage
from tests.flower.conftest import RUN, SITES, LocalTransport, job_text, make_cells, same, trained_in_process

from scinfl._errors import TamperedSumError
from scinfl.cli import main
from scinfl.federation import Journal
from scinfl.flower import make_app, make_kit
from scinfl.flower._flwr import TaskIdentity, set_message_id
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, to_records
from scinfl.flower.server._grid_transport import GridTransport
from scinfl.flower.setup._app import read_app
from scinfl.flower.site import NodeConfig
from scinfl.flower.site._node_config import NODES
from scinfl.model.base._local_training import LocalSite
from scinfl.privacy import PairwiseSum


@pytest.mark.parametrize("protection", ["keyed", "pairwise"])
def test_sites_without_a_lasting_process_train_the_model_of_one_process(make_federation, fresh_key, protection):
    job = job_text(n_rounds=3).replace("deadline", f'sum = "{protection}"\ndeadline')
    federation = make_federation(job, is_brief=True)
    federation.run()
    assert not federation.errors
    sums = "default" if protection == "keyed" else [PairwiseSum(fresh_key)]
    expected = trained_in_process(make_cells(), fresh_key, n_rounds=3, protections=sums)
    for site in SITES:
        trained = federation.model(site)
        assert same(trained, expected)
        left, right = (one.history.drop(columns=["seconds", "bytes_sent"]) for one in (trained, expected))
        pd.testing.assert_frame_equal(left, right, rtol=1e-9)


@pytest.mark.parametrize("protection", ["keyed", "pairwise"])
@pytest.mark.filterwarnings("ignore::scinfl._errors.WeakNoiseWarning")
def test_a_site_trains_and_pays_once_a_round_however_often_it_starts_again(make_federation, monkeypatch, protection):
    noise = '[[protections]]\nclass = "UpdateDP"\nmax_norm = 1.0\nnoise_multiplier = 2.0\n'
    job = job_text(n_rounds=2, more=f"validation_size = 0.0\n{noise}")
    federation = make_federation(job.replace("deadline", f'sum = "{protection}"\ndeadline'), is_brief=True)
    lost, fits, fit = set(), [], LocalSite.fit

    def lose_once(site, answer):
        """Let the site end after each answer, before the answer and what it knew of it are kept."""
        turn = site, answer.fields.get("step")
        if answer.kind != "step" or turn in lost:
            return answer
        lost.add(turn)
        (federation.kit(site) / "runs" / RUN / "answer.safetensors").unlink()
        return Message("busy")

    def count(site, number, state):
        fits.append((site.name, number))
        return fit(site, number, state)

    federation.transport.changes.append(lose_once)
    monkeypatch.setattr(LocalSite, "fit", count)
    federation.run()
    assert not federation.errors
    assert len(lost) == 9  # weights, and two rounds, at three sites
    assert sorted(fits) == [(site, number) for site in SITES for number in (1, 2)]
    for site in SITES:
        folder = federation.kit(site) / "runs" / RUN
        assert len([event for event in Journal(folder).events() if event["event"] == "privacy"]) == 2


def test_parameters_that_stay_at_a_site_outlive_its_process(make_federation, tmp_path):
    """A site that starts again after its answer goes on with its own parameters as they were when it answered."""
    models = []
    for is_brief in (False, True):
        folder = tmp_path / f"{is_brief}"
        folder.mkdir()
        federation = make_federation(
            job_text(n_rounds=3, more='share = ["encoder.1"]'), folder=folder, is_brief=is_brief
        )
        federation.run()
        assert not federation.errors
        models.append([federation.model(site) for site in SITES])
    assert not same(*models[0][:2])  # heads of their own
    for lasting, brief in zip(*models, strict=True):
        assert same(lasting, brief)


def test_a_site_stops_until_a_person_lets_it_go_on(make_federation):
    """A server that was caught is not answered in this run, whatever it sends next."""
    federation, late = make_federation(is_brief=True), []

    class Forger(LocalTransport):
        def send(self, node, message, *, seconds):
            if message.kind == "step" and message.updates:
                first, *others = message.updates
                forged = replace(first, state={name: array + 1 for name, array in first.state.items()})
                bad = replace(message, updates=(forged, *others))
                ticket = super().send(node, bad, seconds=seconds)
                late.append(self.mailboxes[node].handle(message))
                return ticket
            return super().send(node, message, seconds=seconds)

    federation.transport = Forger(federation.mailboxes)
    with pytest.raises(RuntimeError, match="all stopped in step 1"):
        federation.run()
    assert [answer.kind for answer in late] == ["failed"] * 3
    for site in SITES:
        assert isinstance(federation.errors[site], TamperedSumError)
        (note,) = (federation.kit(site) / "stopped").iterdir()
        assert note.read_text() == f"{federation.errors[site]}\n"
        assert not (federation.kit(site) / "model").exists()


def test_a_site_agrees_to_as_many_runs_as_its_own_configuration_says(make_federation, tmp_path):
    make_federation(is_brief=True).run()
    again = make_federation(is_brief=True, run="another")
    shutil.rmtree(tmp_path / "kit" / "server" / "run")
    with pytest.raises(RuntimeError, match="all stopped"):
        again.run()
    assert "Raise `scinfl-runs`" in str(again.errors[SITES[0]])
    assert not (again.kit(SITES[0]) / "runs" / "another").exists()


# ---- configuration

NODE = {"scinfl-folder": "kit/site_north", "scinfl-data": "north.h5ad", "scinfl-key": "k", "partition-id": 0}


def test_a_node_names_folder_data_and_key_of_its_site():
    node = NodeConfig.of({**NODE, "scinfl-runs": 3, "scinfl-accept-difference": "west, south", "other": 1})
    assert node == NodeConfig(Path("kit/site_north"), Path("north.h5ad"), Path("k"), 3, ("west", "south"))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, "none for"),
        ({"scinfl-folder": "a", "scinfl-key": "b"}, "none for data"),
        ({**NODE, "scinfl-run": 3}, "run beside them"),
        ({"partition-id": 2}, "node 2 in the file that SCINFL_NODES names"),
    ],
)
def test_a_node_that_names_them_otherwise_is_refused(config, what, monkeypatch):
    monkeypatch.delenv(NODES, raising=False)
    with pytest.raises(ValueError, match=what):
        NodeConfig.of(config)


def test_a_simulated_node_is_found_by_its_number(tmp_path, monkeypatch):
    file = tmp_path / "nodes.toml"
    file.write_text("".join(f'[[nodes]]\nfolder = "{site}"\ndata = "{site}.h5ad"\nkey = "/k"\n' for site in SITES))
    monkeypatch.setenv(NODES, str(file))
    node = NodeConfig.of({"partition-id": 1, "num-partitions": 3})
    assert node == NodeConfig(tmp_path / SITES[1], tmp_path / f"{SITES[1]}.h5ad", Path("/k"))


def test_the_app_of_a_job_holds_the_job_and_public_identities_alone(tmp_path):
    (tmp_path / "job.toml").write_text(job_text())
    make_kit(tmp_path / "kit", SITES, job=tmp_path / "job.toml")
    app = make_app(tmp_path / "kit" / "server", tmp_path / "app", job=tmp_path / "job.toml")
    assert [file.name for file in app.iterdir()] == ["pyproject.toml"]
    text = (app / "pyproject.toml").read_text()
    config = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    job, identities = read_app(config)
    assert job.text == job_text()
    assert sorted(identities) == SITES
    assert str(tmp_path) not in text
    for path in (tmp_path / "kit").rglob("*"):
        if path.name in ("link.key", "server.key", "ca.key"):
            assert path.read_text().splitlines()[1] not in text
        elif path.name == "identity.json":
            assert not [value for value in json.loads(path.read_text()).values() if len(value) > 40 and value in text]
    with pytest.raises(FileExistsError):
        make_app(tmp_path / "kit" / "server", tmp_path / "app", job=tmp_path / "job.toml")


def test_the_apps_need_only_what_flower_makes_public():
    code = (
        "import sys, scinfl.flower.apps, scinfl.flower.site, scinfl.flower.server._grid_transport;"
        "assert 'scinfl.flower._flwr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_writes_the_app(tmp_path, capsys):
    (tmp_path / "job.toml").write_text(job_text())
    make_kit(tmp_path / "kit", SITES, job=tmp_path / "job.toml")
    arguments = [tmp_path / "kit" / "server", "--job", tmp_path / "job.toml", "--out", tmp_path / "app"]
    assert main(["federation", "app", *map(str, arguments)]) == 0
    assert f"`flwr run {tmp_path / 'app'} NAME --stream`" in capsys.readouterr().out
    assert read_app(tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"])


def test_a_run_without_job_or_identities_is_refused():
    with pytest.raises(ValueError, match="scinfl federation app"):
        read_app({"job": job_text()})


# ---- Flower's grid


class Grid:
    """Keeps messages, and answers those to node 1; node 2 leaves, node 3 sends what is no message, node 4 an error."""

    def __init__(self):
        self.sent = []

    def get_node_ids(self):
        return [1, 2, 3, 4]

    def push_messages(self, messages):
        (carrier,) = messages
        if carrier.metadata.dst_node_id == 2:
            return [None]
        set_message_id(carrier, f"message {len(self.sent)}")
        self.sent.append(carrier)
        return [carrier.metadata.message_id]

    def pull_messages(self, names):
        for carrier in self.sent:
            if carrier.metadata.message_id not in names:
                continue
            content = {
                1: to_records(Message("busy", {"to": from_flower(carrier).kind})),
                3: RecordDict({"0": ConfigRecord({"bytes": b"nothing"})}),
                4: Error(1, "the app of the node ended"),
            }[carrier.metadata.dst_node_id]
            yield FlowerMessage(content, reply_to=carrier)


def test_messages_through_a_grid_come_back_or_are_known_to_be_lost(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)  # as in the process of an app
    transport = GridTransport(Grid())
    assert transport.nodes() == {1: "", 2: "", 3: "", 4: ""}
    tickets = {node: transport.send(node, Message("hello", {"run": "r"}), seconds=1) for node in transport.nodes()}
    found = dict(transport.receive(list(tickets.values())))
    assert found[tickets[1]] == Message("busy", {"to": "hello"})
    assert [found[tickets[node]] for node in (2, 3, 4)] == [None] * 3
    assert transport.receive([]) == []
