"""A site that is lost, or comes, between the sums before training: all of these have the same members."""

from __future__ import annotations

import time

import pytest
from tests.flower.adversary import prepare
from tests.flower.conftest import SITES, LocalFederation, job_text, make_cells
from tests.flower.evil import KEY

from scinfl.flower.server._coordinator import StoppedError
from scinfl.flower.site._mailbox import EndedError

LATE = "hospital_3"
FOUR = [*SITES, LATE]
FIRST = 3  # step of the first round
N_STEPS = FIRST + 4


@pytest.fixture(params=["keyed", "pairwise"])
def federation(request, tmp_path, monkeypatch):
    prepare(monkeypatch)
    job = job_text(FOUR, n_rounds=3, deadline=1, more="validation_size = 0")
    job = job.replace("deadline", f'sum = "{request.param}"\nwait = 0.05\ndeadline')
    return LocalFederation(tmp_path, make_cells(n_sites=4), KEY, job, sites=FOUR)


def change_at(federation, site, step, change):
    """Do something once a site has answered a step."""
    left = [change]

    def changed(name, answer):
        if name == site and answer.fields.get("step") == step and left:
            left.pop()()
        return answer

    federation.transport.changes.append(changed)


def members(server):
    """Sites in the sums of each step."""
    return [{name[0] for names in own.fields["members"] for name in names} for own in server._kept.sums_from(0)]


def finish(federation, **options):
    server = federation.server(**options)
    server.run(federation.transport)
    for thread in federation._threads:
        thread.join(30)
    return server


def test_a_run_that_lost_a_site_before_training_ends_with_the_cure_and_goes_on_once_it_is_back(federation):
    change_at(federation, SITES[0], 1, lambda: federation.transport.away.add(LATE))
    federation.start()
    started = time.monotonic()
    with pytest.raises(StoppedError, match=f"{LATE} took part in earlier ones .*--accept-difference {LATE}"):
        federation.server().run(federation.transport)
    assert time.monotonic() - started < 40
    for site, thread in zip(FOUR[:3], federation._threads, strict=False):
        thread.join(30)
        assert isinstance(federation.errors[site], EndedError)
        assert "go on with `--resume`" in str(federation.errors[site])
    again = LocalFederation(federation.folder, make_cells(n_sites=4), KEY, federation.job.text, sites=FOUR)
    again.start()
    assert members(finish(again, resume=True)) == [set(FOUR)] * N_STEPS
    assert not again.errors


def test_a_site_that_is_back_in_time_is_waited_for(federation):
    change_at(federation, SITES[0], 1, lambda: federation.transport.away.add(LATE))
    reminded = federation.transport.nodes
    looks = []

    def nodes():
        looks.append(time.monotonic())
        if federation.transport.away and looks[-1] - looks[0] > 1.0:
            federation.transport.away.clear()
        return reminded()

    federation.transport.nodes = nodes
    federation.start()
    assert members(finish(federation)) == [set(FOUR)] * N_STEPS
    assert not federation.errors


def test_a_site_that_comes_between_sums_before_training_takes_part_from_the_first_round(federation):
    federation.transport.away.add(LATE)
    change_at(federation, SITES[0], 0, federation.transport.away.clear)
    federation.start()
    found = members(finish(federation))
    assert found[:FIRST] == [set(SITES)] * FIRST
    assert found[-1] == set(FOUR)
    assert not federation.errors
