"""What an operator reads of a server, while it runs and after."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from tests.flower.conftest import SITES

pytest.importorskip("flwr")

from scinfl.cli import main
from scinfl.flower import read_status
from scinfl.flower.server._status import STATUS, StatusFile


def server_of(federation):
    return federation.folder / "kit" / "server"


def test_the_status_follows_a_run_to_its_end(make_federation, capsys):
    federation = make_federation()
    federation.run()
    status = read_status(server_of(federation))
    assert (status["state"], status["round"], status["rounds"]) == ("finished", 4, 4)
    assert {own["stage"] for own in status["sites"].values()} == {"finished"}
    assert status["received_bytes"] > 0
    assert main(["federation", "status", str(server_of(federation))]) == 0
    assert capsys.readouterr().out.startswith("finished: round 4 of 4")
    assert main(["federation", "status", str(server_of(federation)), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"].keys() == set(SITES)


def test_metrics_have_the_form_that_prometheus_reads(make_federation, capsys):
    federation = make_federation()
    federation.run()
    assert main(["federation", "status", str(server_of(federation)), "--format", "prometheus"]) == 0
    lines = capsys.readouterr().out.splitlines()
    form = re.compile(r'(# (HELP|TYPE) scinfl_\w+ .+|scinfl_\w+(\{site="[\w-]+"\})? \d+)')
    assert [line for line in lines if not form.fullmatch(line)] == []
    assert "scinfl_round 4" in lines
    assert "scinfl_up 0" in lines
    assert f'scinfl_site_connected{{site="{SITES[0]}"}} 1' in lines


def test_who_is_missing_is_named_while_the_server_waits(make_federation):
    federation = make_federation()
    server = federation.server()
    server._report_status()
    status = read_status(server_of(federation))
    assert status["state"] == "waiting"
    assert status["waits_for"] == sorted(SITES)
    assert {own["stage"] for own in status["sites"].values()} == {"absent"}


def test_a_server_that_wrote_nothing_for_long_is_dead(make_federation):
    federation = make_federation()
    server = federation.server()
    server._report_status()
    path = server_of(federation) / "run" / STATUS
    kept = json.loads(path.read_text())
    kept["time"] = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    path.write_text(json.dumps(kept))
    assert read_status(server_of(federation))["state"] == "dead"


def test_what_changes_is_written_once_a_second_and_a_sign_of_life_now_and_then(tmp_path):
    file, written = StatusFile(tmp_path), []
    for now in (0.0, 0.2, 0.9, 1.1, 1.2, 5.0, 12.0):
        (tmp_path / STATUS).unlink(missing_ok=True)
        file.write({"state": "training", "step": min(now, 1.2)}, now)
        written += [now] * (tmp_path / STATUS).exists()
    assert written == [0.0, 1.1, 5.0]
    file.write({"state": "stopped"}, 12.1, at_once=True)
    assert json.loads((tmp_path / STATUS).read_text())["state"] == "stopped"


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    assert main(["federation", "status", str(tmp_path)]) == 1
    assert "which a server writes, found none" in capsys.readouterr().err
