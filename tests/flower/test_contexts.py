"""A server without the key that asks sites for different things: no sum of that can be read, and no site hangs.

Attacks of the threat model on unmodified sites: other bounds, sums of another step, other facts, jobs and identities.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.flower.conftest import SITES, LocalFederation, job_text, make_cells, same, trained_in_process
from tests.flower.evil import BELIEFS, KEY, Evil, job_of

from scinfl._errors import TamperedSumError
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._preflight import seal_facts
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import pinned_identities
from scinfl.flower.site._masking import _parts
from scinfl.flower.site._upload_log import Upload, UploadLog
from scinfl.privacy import Identity
from scinfl.privacy.aggregation import MASKED
from scinfl.privacy.aggregation._linear_tag import PRIME


@pytest.fixture(params=["keyed", "pairwise"])
def job(request):
    return job_of(request.param)


# ---- numbers


@pytest.mark.parametrize("bits", [64, 32])
def test_multiples_of_the_modulus_of_tags_do_not_change_a_total(tmp_path, job, bits):
    """Sites but one would believe a huge total and send next to nothing: the sum would be that one's update."""
    evil = Evil(tmp_path / "evil", job.replace("deadline", f"bits = {bits}\ndeadline")).start()
    first = evil.step(0)
    changed = []
    for update in first.updates:
        masked = update.state[MASKED].copy()
        if update.purpose == "total of training":
            masked += np.full_like(masked, PRIME)
        changed.append(replace(update, state={MASKED: masked}))
    shifted = replace(first, updates=tuple(changed))
    for site in SITES[1:]:
        assert evil.ask(site, 1, [shifted], phase="advertise", attempt=1).kind == "failed"
    evil.refusals("within its bound", sites=SITES[1:])


def test_sites_that_read_other_numbers_under_one_tag_do_not_add_up(tmp_path, job):
    """A site that betrays the key makes another sum with the tag of the true one, for one site alone."""
    evil = Evil(tmp_path / "evil", job).start()
    before = evil.step(0)
    sums = evil.step(1, [before])
    histories = set()
    for numbers in (sums.updates[0].state[MASKED], sums.updates[0].state[MASKED] + np.uint64(7)):
        update = replace(sums.updates[0], state={MASKED: numbers})
        log = UploadLog()
        log.close(1, _parts(update, []))
        histories.add(log.history(2))
    assert len(histories) == 2


def test_a_site_that_is_not_in_the_job_is_in_no_sum(tmp_path, job):
    """A revoked site, whose identity is still pinned, with a site that colludes."""
    evil = Evil(tmp_path / "evil", job).start()
    former = Identity.generate("former")
    for site in SITES:
        (evil.federation.kit(site) / "identities" / "former.json").write_text(former.public.to_text())
    watch = evil.federation.sites[SITES[0]]._masking("r0", "", tmp_path / "journal", object(), 3)._watch
    with pytest.raises(TamperedSumError, match="sites of the job, found former"):
        watch([("training", 2)], [*SITES[:2], "former"], "here")


def test_an_identity_in_a_file_of_another_name_replaces_none(tmp_path):
    kit = Evil(tmp_path / "evil").federation.kit(SITES[1])
    (kit / "identities" / "west.json").write_text(Identity.generate(SITES[0]).public.to_text())
    with pytest.raises(
        ValueError, match=r"west\.json' to hold the identity of site 'west', found that of 'hospital_0'"
    ):
        pinned_identities(kit)


# ---- bounds


@pytest.mark.parametrize(
    "bound", [2.0**127, 2.0**41, 3e5, 2.0**10, -4.0, float("nan"), 10**400, "4", None], ids=lambda own: repr(own)[:9]
)
def test_bounds_that_no_site_needs_are_refused_before_anything_is_sent(tmp_path, bound):
    evil = Evil(tmp_path / "evil").start()
    first = evil.step(0)
    answer = evil.ask("hospital_1", 1, [first], bounds={"training": bound})
    assert answer.kind == "failed"
    evil.refusals("power of two", sites=["hospital_1"])


def test_a_victim_that_is_asked_under_another_bound_is_not_read(tmp_path, job):
    """The others mask numbers that all but vanish under the widest bound; the sum would be the victim's update."""
    evil = Evil(tmp_path / "evil", job.replace("deadline", "bits = 32\ndeadline")).start()
    first = evil.step(0)
    wide = evil.step(1, [first], bounds=lambda site: {"training": 2.0 ** (10 if site == "hospital_0" else 40)})
    assert isinstance(wide, Message)  # all sites sent a term
    for site in SITES:
        assert evil.ask(site, 2, [wide], phase="advertise", attempt=1).kind == "failed"
    evil.refusals(BELIEFS)


def test_a_run_beside_an_attack_goes_on(tmp_path, fresh_key):
    honest = LocalFederation(tmp_path, make_cells(), fresh_key, job_text(n_rounds=2))
    honest.run_until_crash(SITES[1], 1)
    evil = Evil(tmp_path / "evil").start()
    evil.ask("hospital_1", 1, [evil.step(0)], bounds={"training": 2.0**127})
    evil.refusals("power of two", sites=["hospital_1"])
    honest.server(resume=True).run(honest.transport)
    assert same(honest.model(SITES[0]), trained_in_process(make_cells(), fresh_key, n_rounds=2))


# ---- steps


def test_an_old_sum_is_not_taken_for_that_of_a_later_step(tmp_path, job):
    evil = Evil(tmp_path / "evil", job).start()
    before, stale = evil.step(0), None
    for step in range(1, 3):
        before = evil.step(step, [before])
        stale = stale or before
    late = replace(stale, fields={**stale.fields, "step": 3})
    evil.step(3, [before])
    for site in SITES:
        assert evil.ask(site, 4, [late], phase="advertise", attempt=1).kind == "failed"
    evil.refusals("Expected the sums of step 3 (round 3 of 'training'), found round 1 of 'training'")


@pytest.mark.parametrize("counted", [True, False])
def test_an_old_sum_under_another_round_is_not_taken_either(tmp_path, counted):
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, n_rounds=6, more="validation_size = 0")
    data = {"hospital_3": make_cells(n_sites=4)}
    evil = Evil(tmp_path / "evil", job, sites=sites, data=data).start()
    before = evil.step(0)
    first = evil.step(1, [before])
    left = evil.sums_of(1, [own for own in evil.seen[1] if own.updates[0].site != "hospital_0"])
    evil.step(2, [first])
    stale = first if counted else left
    forged = replace(stale, fields={**stale.fields, "step": 2}, updates=(replace(stale.updates[0], round=2),))
    assert evil.ask("hospital_0", 3, [forged]).kind == "failed"
    evil.refusals("an old upload" if counted else "believe", sites=["hospital_0"])


def test_the_same_question_gets_the_same_answer_and_another_one_other_masks(tmp_path):
    evil = Evil(tmp_path / "evil").start()
    first = evil.step(0)
    one, again, other = (evil.ask(SITES[0], 1, [first], **more) for more in ({}, {}, {"attempt": 1}))
    masked = [answer.updates[0].state[MASKED] for answer in (one, again, other)]
    assert np.array_equal(masked[0], masked[1])
    assert not np.any(masked[0] == masked[2])


def test_attempts_that_differ_between_sites_are_not_summed(tmp_path):
    evil = Evil(tmp_path / "evil").start()
    first = evil.step(0)
    answers = [evil.ask(site, 1, [first], attempt=int(site == "hospital_0")) for site in SITES]
    for site in SITES:
        assert evil.ask(site, 2, [evil.sums_of(1, answers)]).kind == "failed"
    evil.refusals(BELIEFS)


def test_an_old_upload_is_noticed_after_a_restart_too(tmp_path):
    evil = Evil(tmp_path / "evil").start()
    first = evil.step(0)
    old = [evil.ask(site, 1, [first]) for site in SITES]
    again = Evil(tmp_path / "evil").start()  # all sites lost power; what they keep is on disk
    fresh = [again.ask(site, 1, [first]) for site in SITES]
    mixed = again.sums_of(1, [old[0], *fresh[1:]])
    assert again.ask("hospital_0", 2, [mixed]).kind == "failed"
    again.refusals("sent last, found an old upload", sites=["hospital_0"])
    last = again.sums_of(1, fresh)
    assert again.ask("hospital_1", 2, [last]).kind == "step"


def test_a_site_that_sent_its_term_and_started_again_reads_the_sum(tmp_path, job):
    evil = Evil(tmp_path / "evil", job).start()
    first = evil.step(0)
    wide = evil.step(1, [first], bounds=lambda site: {"training": 2.0**20})  # which only the upload can tell it
    again = Evil(tmp_path / "evil", job).start()
    assert again.ask("hospital_0", 2, [wide], phase="advertise", attempt=1).kind in ("step", "advertise")
    assert not again.federation.errors


def test_sites_that_were_given_different_sums_do_not_add_up_again(tmp_path):
    """Each of the two sums is proper; the models that follow would part."""
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, n_rounds=6, more="validation_size = 0")
    evil = Evil(tmp_path / "evil", job, sites=sites, data={"hospital_3": make_cells(n_sites=4)}).start()
    first = evil.step(0)
    answers = [evil.ask(site, 1, [first]) for site in sites]
    forks = {site: evil.sums_of(1, answers if site == "hospital_0" else answers[1:]) for site in sites}
    second = [evil.ask(site, 2, [forks[site]]) for site in sites]
    assert {answer.kind for answer in second} == {"step"}
    for site in sites:
        assert evil.ask(site, 3, [evil.sums_of(2, second)]).kind == "failed"
    evil.refusals(BELIEFS)


# ---- what sites agreed on


def test_facts_of_too_few_sites_are_refused(tmp_path, job):
    evil = Evil(tmp_path / "evil", job).start(lambda site, facts: {site: facts[site]})
    assert {answer.kind for answer in evil.ready.values()} == {"failed"}
    evil.refusals("facts of at least 3 sites")


def test_facts_for_another_run_or_job_are_refused(tmp_path, fresh_key):
    evil = Evil(tmp_path / "evil")
    other = LocalFederation(tmp_path, make_cells(), fresh_key, job_text(n_rounds=7)).sites["hospital_2"]
    wrong = other._greet(Message("hello", {"run": "r0", "job": other._job.text})).fields["facts"]
    evil.start(lambda site, facts: {**facts, "hospital_2": wrong})
    assert {answer.kind for answer in evil.ready.values()} == {"failed"}
    assert all("file sealed with context" in str(error) for error in evil.federation.errors.values())


def test_facts_of_strangers_are_refused(tmp_path):
    evil = Evil(tmp_path / "evil").start(lambda site, facts: {**facts, "nobody": facts[site]})
    evil.refusals("of the job, found some of nobody")


@pytest.mark.parametrize("differ", ["facts", "job", "identities", "run"])
def test_sites_that_believe_different_things_read_no_sum(tmp_path, differ):
    """Even with the help of a site, which holds the key and can seal facts for each belief."""
    sites = [*SITES, "hospital_3"]
    text = job_text(sites, n_rounds=6, more="validation_size = 0")
    evil = Evil(tmp_path / "evil", text, sites=sites, data={"hospital_3": make_cells(n_sites=4)})
    victim = evil.federation.sites["hospital_0"]
    if differ == "job":
        victim._job = Job.parse(text.replace("n_rounds = 6", "n_rounds = 7"))
    elif differ == "identities":
        path = evil.federation.kit("hospital_0") / "identities" / "hospital_3.json"
        path.write_text(Identity.generate("hospital_3").public.to_text())
    elif differ == "run":
        evil.runs["hospital_0"] = "r1"

    def facts_for(site, facts):
        at = evil.federation.sites[site]
        beliefs = {"job": at._job, "run": evil.runs[site], "identities": at._identities()}
        seen = SITES if differ == "facts" and at is victim else sites
        tasks = {name: evil.federation.sites[name]._task for name in seen}
        return {name: seal_facts(own.facts(), KEY, name, **beliefs).hex() for name, own in tasks.items()}

    evil.start(facts_for)
    assert not evil.federation.errors
    sums = evil.step(0)
    for site in sites:
        assert evil.ask(site, 1, [sums]).kind == "failed"
    evil.refusals(BELIEFS)


def test_an_honest_server_names_the_site_that_believes_something_else(tmp_path, fresh_key):
    federation = LocalFederation(tmp_path, make_cells(), fresh_key, job_text())
    path = federation.kit(SITES[1]) / "identities" / f"{SITES[2]}.json"
    path.write_text(Identity.generate(SITES[2]).public.to_text())
    with pytest.raises(ValueError, match=f"identities of site '{SITES[1]}' differs from the others.*by telephone"):
        federation.run()


def test_a_missing_identity_is_named_with_the_cure(tmp_path, fresh_key):
    federation = LocalFederation(tmp_path, make_cells(), fresh_key, job_text())
    (federation.kit(SITES[1]) / "identities" / f"{SITES[2]}.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"found none of {SITES[2]}\. Get 'identities/{SITES[2]}.json'"):
        federation.sites[SITES[1]]._greet(Message("hello", {"run": "r", "job": federation.job.text}))


def test_a_file_of_uploads_that_a_crash_cut_off_is_read_as_far_as_it_goes(tmp_path):
    log = UploadLog(tmp_path / "run" / "uploads.jsonl")
    uploads = [Upload(step, 1, {"training": 16}, {"training": f"{step:02x}"}, {}) for step in (1, 2)]
    for upload in uploads:
        log.add(upload)
    log.add(again := replace(uploads[1], attempt=2))
    with (tmp_path / "run" / "uploads.jsonl").open("ab") as file:
        file.write(b'\n{"step": 3, "att')
    read = UploadLog(tmp_path / "run" / "uploads.jsonl")
    assert [read.of(step) for step in (1, 2, 3)] == [uploads[0], again, None]
    read.add(replace(again, step=3))
    assert (read.history(0), read.history(1)) == (b"", b"")
    for step in (0, 1):
        read.close(step, ["training", "1"])
    assert len({read.history(step) for step in (0, 1, 2)}) == 3
    assert UploadLog(tmp_path / "run" / "uploads.jsonl").history(2) == read.history(2)
    assert UploadLog(tmp_path / "run" / "uploads.jsonl").of(3) == replace(again, step=3)
