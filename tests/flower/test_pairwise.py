"""Pairwise masks between sites that are apart."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.flower.conftest import SITES, job_text, make_cells, same, trained_in_process
from tests.flower.evil import Evil, job_of

from scinfl.federation import Journal
from scinfl.flower.protocol._message import Message
from scinfl.flower.server._pairwise_aggregation import PairwiseAggregation
from scinfl.privacy import KeyedSum, PairwiseSum


def pairwise_job(sites=SITES, **options):
    return job_text(sites, **options).replace("deadline", 'sum = "pairwise"\ndeadline')


def test_pairwise_masks_give_the_model_of_one_process(make_federation, fresh_key):
    federation = make_federation(pairwise_job())
    federation.run()
    assert not federation.errors
    expected = trained_in_process(make_cells(), fresh_key, protections=[PairwiseSum(fresh_key)])
    for site in SITES:
        assert same(federation.model(site), expected)
    assert {message.kind for _, _, message in federation.transport.log} >= {"advertise", "step", "reveal"}


def test_a_site_that_works_with_the_server_opens_no_other_upload(make_federation, fresh_key):
    """The key and an upload are all that a keyed sum needs; here they give noise."""
    federation = make_federation(pairwise_job())
    federation.run()
    uploads = [
        update
        for site, _, message in federation.transport.log
        if site == SITES[1] and message.kind == "step"
        for update in message.updates
        if update.purpose == "training"
    ]
    colluding, upload = KeyedSum(fresh_key, min_sites=2), uploads[-1]
    integers = upload.state["masked"].copy()
    stream, _ = colluding._stream(
        upload.header["context"], upload, SITES[1], upload.header["nonce"], len(integers), integers.dtype
    )
    opened = colluding._numbers.decode(integers - stream)
    assert abs(opened).max() > 1e3  # parameters and shares stay far below


@pytest.mark.parametrize("phase", ["advertise", "step", "reveal"])
def test_a_lost_answer_costs_an_attempt_or_a_wait(make_federation, fresh_key, phase):
    federation, lost = make_federation(pairwise_job(deadline=0.3)), []

    def lose(site, answer):
        if site == SITES[1] and answer.kind == phase and answer.fields["step"] == 2 and not lost:
            lost.append(1)
            return Message("behind", {"position": 2})  # which the server refuses: nothing of it counts
        return answer

    federation.transport.changes.append(lose)
    federation.run()
    assert lost
    assert not federation.errors
    expected = trained_in_process(make_cells(), fresh_key, protections=[PairwiseSum(fresh_key)])
    assert same(federation.model(SITES[2]), expected)


@pytest.mark.parametrize("phase", ["advertise", "step", "reveal"])
@pytest.mark.parametrize("who", ["server", "all"])
def test_a_crash_in_any_phase_ends_with_the_same_model(make_federation, fresh_key, phase, who):
    first = make_federation(pairwise_job())

    first.run_until_crash(SITES[1], 3, kind=phase)
    if who == "server":
        first.server(resume=True).run(first.transport)
        for thread in first._threads:
            thread.join(10)
        federation = first
    else:  # sites forget what they had in memory too
        federation = make_federation(pairwise_job())
        federation.run(resume=True)
    assert not federation.errors
    expected = trained_in_process(make_cells(), fresh_key, protections=[PairwiseSum(fresh_key)])
    assert same(federation.model(SITES[0]), expected)


def test_a_site_that_was_away_reads_the_sums_of_the_others(make_federation):
    sites = [*SITES, "hospital_3"]
    federation = make_federation(pairwise_job(sites, n_rounds=5), adata=make_cells(n_sites=4), sites=sites)

    def leave_and_return(site, answer):
        step = answer.fields.get("step")
        if answer.kind == "advertise" and site == "hospital_3" and step == 2:
            federation.transport.away.add("hospital_3")
        if answer.kind == "reveal" and site == SITES[0] and step == 4:
            federation.transport.away.clear()
        return answer

    federation.transport.changes.append(leave_and_return)
    federation.run()
    assert not federation.errors
    assert any("without hospital_3" in line for line in federation.lines)
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))


def test_a_number_beyond_the_bound_repeats_the_step(make_federation, fresh_key, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr("scinfl.flower.server._coordinator.default_bound", lambda bits: 0.25)
    federation = make_federation(pairwise_job())
    for site in federation.sites.values():

        def narrow(*run, usual=site._sum):
            protection = usual(*run)
            protection._numbers = replace(protection._numbers, bound=0.25)
            return protection

        site._sum = narrow
    federation.run()
    assert not federation.errors
    assert any(message.kind == "repeat" for _, _, message in federation.transport.log)
    assert same(federation.model(SITES[0]), federation.model(SITES[1]))


def test_a_server_that_drops_a_site_from_the_exchange_is_noticed(make_federation):
    federation = make_federation(pairwise_job())

    usual = federation.mailboxes[SITES[0]].handle

    def forge(message):
        if message.fields.get("phase") == "terms" and message.fields["step"] == 2:
            ads = [ad for ad in message.fields["ads"] if ad["site"] != SITES[0]]
            message = Message(message.kind, {**message.fields, "ads": ads}, message.updates)
        return usual(message)

    federation.mailboxes[SITES[0]].handle = forge
    federation.transport.mailboxes[0].handle = forge
    server = federation.server()
    from dataclasses import replace

    server._job = replace(federation.job, give_up=2.0)
    federation.start()
    with pytest.raises(RuntimeError, match="resume"):
        server.run(federation.transport)
    assert type(federation.errors[SITES[0]]).__name__ == "TamperedSumError"


@pytest.mark.parametrize("phase", ["advertise", "terms"])
def test_an_exchange_is_repeated_with_a_site_that_started_again(tmp_path, phase):
    """It no longer knows the keys that its last process advertised."""
    evil = Evil(tmp_path / "evil", job_of("pairwise")).start()
    lost: Counter = Counter()
    step = PairwiseAggregation(
        *(evil.server, set(), {}),
        min_sites=3,
        deadline=5.0,
        journal=Journal(tmp_path / "journal"),
        report=str,
        step=0,
        first_bound=65536.0,
        repeats=Counter(),
        lost=lost,
        folder=tmp_path,
        first_attempt=1,
    )
    for site in SITES if phase == "terms" else SITES[:2]:
        step.take(site, evil.ask(site, 0, phase="advertise", attempt=1))
    step.add(0.0, SITES, ())
    assert step.asks(SITES[2])["phase"] == phase
    step.forget(SITES[0])
    asked = step.asks(SITES[0])
    assert (asked["phase"], asked["attempt"]) == ("advertise", 2 if phase == "terms" else 1)
    assert lost == ({SITES[0]: 1} if phase == "terms" else {})
