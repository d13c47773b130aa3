"""What a site agreed to: no further run, no other members over the same data, no budget twice."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix
from tests.flower.conftest import SITES, LocalFederation, job_text, make_cells, parameters, same, trained_in_process
from tests.flower.evil import Evil, job_of

from scinfl._errors import TamperedSumError, WeakNoiseWarning
from scinfl.flower.protocol._message import Message
from scinfl.flower.site._data import fingerprint_of
from scinfl.flower.site._ledger import AgreedRun, Ledger
from scinfl.privacy import Identity, SampleDP, UpdateDP
from scinfl.privacy.dp import accounted_in

FOUR = [*SITES, "hospital_3"]


def four(folder, sum_="keyed", **options):
    data = {"hospital_3": make_cells(n_sites=4)}
    return Evil(folder / "evil", job_of(sum_, sites=FOUR), sites=FOUR, data=data, **options)


def begin(evil, run, facts_for=lambda site, facts: facts):
    evil.runs = dict.fromkeys(evil.runs, run)
    return evil.start_run(facts_for)


def errors(evil, kind, match):
    for site, thread in zip(evil.federation.sites, evil.federation._threads, strict=True):
        thread.join(60)
        error = evil.federation.errors[site]
        assert isinstance(error, kind)
        assert match in str(error)


# ---- agreement


def test_a_run_that_nobody_agreed_to_is_refused(tmp_path):
    evil = Evil(tmp_path / "evil").start()
    evil.step(0)
    begin(evil, "r1")
    assert {answer.kind for answer in evil.ready.values()} == {"failed"}
    errors(evil, RuntimeError, "at most 1 new run, as was agreed to, found that the server begins another")
    again = Evil(tmp_path / "evil", n_runs=0).start()  # the first one goes on: that is no new run
    assert {answer.kind for answer in again.ready.values()} == {"ready"}


def test_a_service_agrees_to_a_number_of_runs(tmp_path):
    evil = Evil(tmp_path / "evil", n_runs=2).start()
    evil.step(0)
    begin(evil, "r1")
    assert isinstance(evil.step(0), Message)
    begin(evil, "r0")
    assert {answer.kind for answer in evil.ready.values()} == {"ready"}
    begin(evil, "r2")
    errors(evil, RuntimeError, "at most 2 new runs")


# ---- the difference of two runs


@pytest.mark.parametrize("accepted", [(), ("hospital_3",)])
def test_a_second_run_without_one_site_needs_agreement_by_name(tmp_path, accepted):
    evil = four(tmp_path, n_runs=2, accepted=accepted).start()
    evil.step(0)
    begin(evil, "r1", lambda site, facts: {name: facts[name] for name in SITES})
    kinds = {evil.ready[site].kind for site in SITES}
    if accepted:
        assert kinds == {"ready"}
        return
    assert kinds == {"failed"}
    error = str(evil.federation.errors[SITES[0]])
    assert "hospital_3 took part in one of the two only" in error
    assert "readable to every site that reads both (hospital_0, hospital_1, hospital_2)" in error
    assert "--accept-difference hospital_3" in error


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_a_site_that_is_called_lost_in_a_second_run_is_noticed_in_its_first_sums(tmp_path, sum_):
    evil = four(tmp_path, sum_, n_runs=2).start()
    evil.step(0)
    begin(evil, "r1")
    evil.sites = SITES
    found = evil.step(0)
    if sum_ == "pairwise":  # before anything leaves
        assert {answer.kind for answer in found} == {"failed"}
    else:
        assert evil.ask(SITES[0], 1, [found]).kind == "failed"
    error = evil.federation.errors[SITES[0]]
    assert isinstance(error, TamperedSumError)
    assert "hospital_3 took part in one of the two only" in str(error)


@pytest.mark.parametrize("named", ["in another sum", "in one sum of three"])
def test_a_site_that_only_seems_to_exchange_masks_is_noticed_before_anything_leaves(tmp_path, named):
    """The site that is left out is named in an advertisement that no mask is made with."""
    evil = four(tmp_path, "pairwise", n_runs=2).start()
    evil.step(0)
    begin(evil, "r1")
    found = [evil.ask(site, 0, phase="advertise", attempt=1) for site in FOUR]
    ads = [ad for own in found for ad in own.fields["ads"]]
    of_it = [ad for ad in ads if ad["site"] == "hospital_3"]
    left = [ad for ad in ads if ad["site"] != "hospital_3"]
    relayed = [*left, {**of_it[0], "purpose": "nothing"} if named == "in another sum" else of_it[0]]
    answers = [evil.ask(site, 0, phase="terms", attempt=1, ads=relayed) for site in SITES]
    assert {answer.kind for answer in answers} == {"failed"}
    evil.refusals("one advertisement of each of hospital_0, hospital_1, hospital_2, hospital_3", sites=SITES)


def test_an_operator_who_starts_again_with_fewer_sites_is_warned(tmp_path, fresh_key):
    def federation(sites, run):
        job = job_text(sites, n_rounds=1)
        kit = tmp_path / "kit"
        if kit.exists():
            shutil.move(kit / "server" / "run", tmp_path / "old run")
            for path in [*kit.glob("*/job.toml")]:
                path.write_text(job)
        return LocalFederation(tmp_path, make_cells(n_sites=4), fresh_key, job, sites=sites, run=run)

    first = federation(FOUR, "r0")
    first.run()
    assert not any("warning" in line for line in first.lines)
    second = federation(SITES, "r1")
    second.start()
    with pytest.raises(RuntimeError, match="all stopped before the first step"):
        second.server().run(second.transport)
    (line,) = [line for line in second.lines if line.startswith("warning")]
    assert "hospital_3 took part in one of the two only" in line
    assert all("--accept-difference hospital_3" in str(error) for error in second.errors.values())


SIX = [f"hospital_{number}" for number in range(6)]


def test_three_runs_that_differ_by_many_in_pairs_do_not_single_out_a_site(tmp_path):
    """The members of the third less those of the first two, and hospital_0 again, are hospital_5."""
    data = {site: make_cells(n_sites=6) for site in SIX[3:]}
    evil = Evil(tmp_path / "evil", job_of("keyed", sites=SIX), sites=SIX, data=data, n_runs=3).start()
    evil.step(0)
    evil.runs = dict.fromkeys(SIX[:3], "r1")
    evil.start_run()
    assert {evil.ready[site].kind for site in SIX[:3]} == {"failed"}
    assert "hospital_3, hospital_4, hospital_5 took part" in str(evil.federation.errors[SIX[0]])


def test_a_site_is_not_left_out_between_sums_before_training(tmp_path):
    ledger = Ledger(tmp_path, Identity.generate("a"))
    ledger.add(AgreedRun("r", "job", ("a", "b", "c", "d"), "data"))
    ledger.check_members("r", "abcd", before_training=True)
    ledger.note_members("r", "abcd", before_training=True, is_read=True)
    with pytest.raises(TamperedSumError, match="d took part in one of the two only"):
        ledger.check_members("r", "abc", before_training=True)
    ledger.check_members("r", "abc", before_training=False)  # a round that a site missed
    ledger.check_members("r", "abcd", before_training=True)


def test_an_exchange_of_masks_that_opened_no_sum_may_be_repeated_without_a_site(tmp_path):
    ledger = Ledger(tmp_path, Identity.generate("a"))
    ledger.add(AgreedRun("r", "job", ("a", "b", "c", "d"), "data"))
    for members, is_read in (("abcd", False), ("abc", False), ("abc", True)):
        ledger.check_members("r", members, before_training=True)
        ledger.note_members("r", members, before_training=True, is_read=is_read)


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_the_members_that_a_false_sum_names_are_not_held_against_a_later_run(tmp_path, sum_):
    evil = four(tmp_path, sum_, n_runs=2).start()
    first = evil.step(0)
    names = [[name for name in own if name[0] != "hospital_3"] for own in first.fields["members"]]
    forged = replace(first, fields={**first.fields, "members": names})
    if sum_ == "keyed":
        assert {evil.ask(site, 1, [forged]).kind for site in FOUR} == {"failed"}
    else:
        assert {evil.ask(site, 1, [forged], phase="advertise", attempt=2).kind for site in FOUR} == {"failed"}
    evil = four(tmp_path, sum_, n_runs=2)
    evil.runs = dict.fromkeys(FOUR, "r1")
    second = evil.start().step(0)
    more = {} if sum_ == "keyed" else {"phase": "advertise", "attempt": 2}
    assert "failed" not in {evil.ask(site, 1, [second], **more).kind for site in FOUR}


# ---- privacy


def test_a_budget_is_spent_once_however_many_runs_there_are(tmp_path):
    pytest.importorskip("opacus")
    noise = '\n[[protections]]\nclass = "SampleDP"\ntarget_epsilon = 2.0\ndelta = 1e-3\n'
    evil = Evil(tmp_path / "evil", job_text(n_rounds=2, more="validation_size = 0" + noise), n_runs=2).start()
    before = evil.step(0)
    for step in (1, 2):
        before = evil.step(step, [before])
    begin(evil, "r1")
    first = evil.step(0)
    assert {evil.ask(site, 1, [first]).kind for site in SITES} == {"failed"}
    errors(evil, ValueError, "budget of 2 that lasts for another round")


@pytest.mark.parametrize("lost", ["nothing", "its folder"])
def test_what_was_spent_is_in_the_ledger_before_it_is_spent(tmp_path, lost):
    pytest.importorskip("opacus")
    noise = '\n[[protections]]\nclass = "SampleDP"\ntarget_epsilon = 2.0\ndelta = 1e-3\n'
    evil = Evil(tmp_path / "evil", job_text(n_rounds=2, more="validation_size = 0" + noise), n_runs=2).start()
    before = evil.step(0)
    for step in (1, 2):
        before = evil.step(step, [before])
    if lost == "its folder":
        for site in SITES:
            shutil.rmtree(evil.federation.kit(site) / "runs")
    begin(evil, "r1")
    first = evil.step(0)
    assert {evil.ask(site, 1, [first]).kind for site in SITES} == {"failed"}
    errors(evil, ValueError, "budget of 2 that lasts for another round")


@pytest.mark.parametrize("how", ["greeted for another run", "restarted"])
def test_noise_that_was_paid_for_is_sent_again_at_no_cost(tmp_path, how):
    pytest.importorskip("opacus")
    noise = '\n[[protections]]\nclass = "SampleDP"\nnoise_multiplier = 1.0\ndelta = 1e-3\n'
    job = job_text(n_rounds=2, more="validation_size = 0" + noise)
    evil = Evil(tmp_path / "evil", job, n_runs=9).start()
    first = evil.step(0)
    second = evil.step(1, [first])
    assert {evil.ask(site, 2, [second]).kind for site in SITES} == {"step"}
    for number in range(3):
        if how == "restarted":
            evil = Evil(tmp_path / "evil", job, n_runs=9).start()
        else:
            begin(evil, f"other{number}")
            begin(evil, "r0")
        assert {evil.ready[site].fields["position"] for site in SITES} == {2}
        again = evil.step(2, [second])
        assert isinstance(again, Message)
    for own in evil.federation.sites.values():
        assert len(Ledger(own._kit, own._identity).charges_on(own._fingerprint)) == 2  # of two rounds
    assert {evil.ask(site, 3, [again]).kind for site in SITES} == {"finished"}


def test_an_account_continues_from_its_book_and_a_weaker_unit_covers_nothing(tmp_path):
    pytest.importorskip("opacus")
    ledger = Ledger(tmp_path, Identity.generate("a"))
    runs = [AgreedRun(run, "job", ("a", "b", "c"), data) for run, data in (("r0", "x"), ("r1", "x"), ("r2", "y"))]
    for run in runs:
        ledger.add(run)

    def account(run, **options):
        protection = SampleDP(noise_multiplier=1.0, max_norm=1.0, delta=1e-3, **options)
        with accounted_in(ledger.book(run)):
            protection.open_account(n_sites=3, n_rounds=1, journal=None)
        return protection

    first = account(runs[0])
    first.release_sums("a", np.ones((4, 2)), [np.arange(4)])
    spent = first.epsilon("a")
    assert 0 < spent < np.inf
    assert account(runs[1]).epsilon("a") == spent  # the same data
    assert account(runs[2]).epsilon("a") == 0  # others
    whole = UpdateDP(noise_multiplier=1.0, max_norm=1.0, delta=1e-3)
    with pytest.warns(WeakNoiseWarning), accounted_in(ledger.book(runs[1])):
        whole.open_account(n_sites=3, n_rounds=1, journal=None)
    assert whole.epsilon("a") == np.inf  # noise for a row does not cover a site
    assert len(ledger.charges_on("x")) == 1


# ---- the file


@pytest.mark.parametrize(
    "what", ["dropped", "cut", "cut with its checkpoint", "exchanged", "changed", "of another site"]
)
def test_a_ledger_that_was_changed_is_refused(tmp_path, what):
    identity = Identity.generate("a")
    ledger = Ledger(tmp_path, identity)
    for number in range(3):
        ledger.add(AgreedRun(f"r{number}", "job", ("a", "b", "c"), "data"))
    file = tmp_path / "ledger" / "audit.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1]
    assert b"r1" not in file.read_bytes()
    if what == "of another site":
        identity = Identity.generate("a")
    else:
        lines = {
            "dropped": [lines[0], lines[2]],
            "cut": lines[:2],
            "cut with its checkpoint": lines[:2],
            "exchanged": [lines[1], lines[0], lines[2]],
            "changed": [lines[0].replace(b'"time": "2', b'"time": "1'), *lines[1:]],
        }[what]
        file.write_bytes(b"\n".join(lines) + b"\n")
        if "checkpoint" in what:
            (tmp_path / "ledger" / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match="Expected the ledger of site 'a'"):
        Ledger(tmp_path, identity)


@pytest.mark.parametrize(
    ("what", "other"), [("job", "others"), ("data", "others"), ("members", "ab"), ("members", "abcde")]
)
def test_a_run_goes_on_with_its_own_job_data_and_sites_only(tmp_path, what, other):
    ledger, own = Ledger(tmp_path, Identity.generate("a")), AgreedRun("r", "job", "abc", "data")
    ledger.add(own)
    n_entries = len((tmp_path / "ledger" / "audit.jsonl").read_bytes())
    ledger.add(replace(own, members="cba"))
    with pytest.raises(ValueError, match=f"found other {'sites' if what == 'members' else what}. Take them"):
        ledger.add(replace(own, **{what: other}, accepted="abcde"))
    assert len((tmp_path / "ledger" / "audit.jsonl").read_bytes()) == n_entries


def test_a_run_that_comes_back_with_other_facts_is_refused(tmp_path):
    evil = four(tmp_path).start()
    evil.step(0)
    for site in FOUR:
        evil.handle(site, Message("end", {"reason": "power"}))
    again = four(tmp_path).start(lambda site, facts: {name: facts[name] for name in SITES})
    assert {again.ready[site].kind for site in FOUR} == {"failed"}
    errors(again, ValueError, "found other sites")


def test_a_run_that_begins_again_without_one_site_is_refused(tmp_path):
    """It would draw the same numbers, so that the difference of the first sums would be that site's."""
    four(tmp_path).start().step(0)
    for site in FOUR:  # what the sites kept of the run, as after a crash of their disks; the ledger is kept
        shutil.rmtree(tmp_path / "evil" / "kit" / f"site_{site}" / "runs")
    again = four(tmp_path)
    again.start(lambda site, facts: {name: facts[name] for name in SITES})
    assert {again.ready[site].kind for site in SITES} == {"failed"}


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_a_run_does_not_go_on_without_what_the_site_sent_in_it(tmp_path, sum_):
    """A first sum that was read could be asked for again, without one site."""
    evil = four(tmp_path, sum_).start()
    evil.step(1, [evil.step(0)])
    for site in FOUR:
        evil.handle(site, Message("end", {"reason": "power"}))
        shutil.rmtree(evil.federation.kit(site) / "runs")
    again = four(tmp_path, sum_).start()
    assert {answer.kind for answer in again.ready.values()} == {"failed"}
    errors(again, ValueError, "could ask for a sum that was read before again, without a site")


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_an_old_copy_of_what_a_site_sent_is_noticed(tmp_path, sum_):
    def stop():
        for site, thread in zip(SITES, evil.federation._threads, strict=True):
            evil.handle(site, Message("end", {"reason": "power"}))
            thread.join(60)

    evil = Evil(tmp_path / "evil", job_of(sum_)).start()
    first = evil.step(0)
    second = evil.step(1, [first])
    stop()
    runs = [evil.federation.kit(site) / "runs" for site in SITES]
    for own in runs:
        shutil.copytree(own, own.with_name("copy"))
    evil = Evil(tmp_path / "evil", job_of(sum_)).start()
    assert isinstance(evil.step(2, [second]), Message)  # the latest copy goes on
    stop()
    for own in runs:
        shutil.rmtree(own)
        shutil.move(own.with_name("copy"), own)
    again = Evil(tmp_path / "evil", job_of(sum_)).start()
    assert {answer.kind for answer in again.ready.values()} == {"failed"}
    errors(again, ValueError, "an old copy was put back")


def test_a_ledger_that_was_deleted_is_noticed_beside_its_runs(tmp_path):
    evil = four(tmp_path).start()
    for site in FOUR:
        evil.handle(site, Message("end", {"reason": "power"}))
        shutil.rmtree(evil.federation.kit(site) / "ledger")
    again = four(tmp_path)
    again.runs = dict.fromkeys(SITES, "r1")
    again.start(lambda site, facts: {name: facts[name] for name in SITES})
    assert {again.ready[site].kind for site in SITES} == {"failed"}
    assert all("it was deleted" in str(again.federation.errors[site]) for site in SITES)
    assert not (again.federation.kit(SITES[0]) / "ledger").exists()


def test_a_finished_run_that_is_begun_again_does_not_replace_a_later_model(tmp_path, fresh_key):
    def federation(run):
        own = LocalFederation(tmp_path, make_cells(), fresh_key, job_text(n_rounds=1), run=run)
        shutil.rmtree(tmp_path / "kit" / "server" / "run", ignore_errors=True)
        return own

    for run in ("r0", "r1"):
        federation(run).run()
    later = federation("r1").model(SITES[0])
    old = federation("r0")
    old.start()
    hellos = {site: old.mailboxes[site].handle(Message("hello", {"run": "r0", "job": old.job.text})) for site in SITES}
    agree = Message("agree", {"run": "r0", "facts": {site: own.fields["facts"] for site, own in hellos.items()}})
    assert {old.mailboxes[site].handle(agree).kind for site in SITES} == {"failed"}
    assert "would replace a later one" in str(old.errors[SITES[0]])
    assert same(old.model(SITES[0]), later)


def test_runs_whose_names_share_a_folder_are_refused(tmp_path):
    ledger = Ledger(tmp_path, Identity.generate("a"))
    ledger.add(AgreedRun("r0", "job", "abc", "data"))
    with pytest.raises(ValueError, match="Expected a name that no run had, found 'R0' beside r0"):
        ledger.add(AgreedRun("R0", "job", "abc", "data"))


def test_data_have_the_same_fingerprint_whatever_is_noted_beside_them():
    adata = make_cells()
    adata.X[adata.X < 0] = 0
    noted = adata.copy()
    noted.obs["more"], noted.uns["more"] = 1, 2
    changed = adata.copy()
    changed.X[3, 4] += 1
    assert fingerprint_of(noted) == fingerprint_of(adata)
    for stored in (csr_matrix, csc_matrix, np.asfortranarray, np.float64):
        again = adata.copy()
        again.X = stored(adata.X)
        assert fingerprint_of(again) == fingerprint_of(adata)
    assert len({fingerprint_of(own) for own in (adata, changed, adata[1:].copy(), adata[:, 1:].copy())}) == 4


# ---- randomness


def test_a_run_repeats_its_numbers_and_another_does_not(tmp_path, fresh_key):
    adata = make_cells()
    models = {run: trained_in_process(adata, fresh_key, n_rounds=1, run=run) for run in ("r0", "r0 again", "r1", None)}
    assert same(models["r0"], trained_in_process(adata, fresh_key, n_rounds=1))
    first, other = (parameters(models[run]) for run in ("r0", "r1"))
    trained = [name for name, _ in models["r0"].module.named_parameters() if "meta" not in name]
    assert trained
    assert not any(np.array_equal(first[name], other[name]) for name in trained)
    apart = LocalFederation(tmp_path, adata, fresh_key, job_text(n_rounds=1), run="r1")
    apart.run()
    assert same(apart.model(SITES[0]), models["r1"])


def test_a_name_of_a_run_needs_a_key():
    with pytest.raises(ValueError, match="Expected a key with `run='r0'`"):
        trained_in_process(make_cells(), None)
