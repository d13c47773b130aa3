"""The run at server and sites, without a network."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from tests.flower.conftest import SITES, job_text, make_cells, same, trained_in_process

from scinfl.federation import Journal
from scinfl.flower.protocol._message import Message
from scinfl.flower.server import _run_folder
from scinfl.flower.setup import Job
from scinfl.flower.site._job_check import _Asker
from scinfl.privacy import Key


def test_sites_that_are_apart_train_the_model_that_one_process_would(make_federation, fresh_key):
    federation = make_federation()
    federation.run()
    expected = trained_in_process(make_cells(), fresh_key)
    for site in SITES:
        model = federation.model(site)
        assert same(model, expected)
        left, right = (table.drop(columns="seconds") for table in (model.history, expected.history))
        assert left.equals(right)


@pytest.mark.parametrize(
    ("train", "options"),
    [
        ("validation_size = 0.0", {"validation_size": 0.0}),
        ("early_stopping = 1\nsmoothing = 0.0\nlr = 0.5", {"early_stopping": 1, "smoothing": 0.0, "lr": 0.5}),
        ('class_weight = "balanced"\nshare = "projected"', {"class_weight": "balanced", "share": "projected"}),
    ],
)
def test_options_of_training_mean_the_same_apart(make_federation, fresh_key, train, options):
    federation = make_federation(job_text(n_rounds=6, more=train))
    federation.run()
    expected = trained_in_process(make_cells(), fresh_key, n_rounds=6, **options)
    assert same(federation.model(SITES[1]), expected)
    assert len(federation.model(SITES[1]).history) == len(expected.history)


@pytest.mark.parametrize(
    ("train", "n_rounds"),
    [("early_stopping = 1\nsmoothing = 0.0\nlr = 0.5", 12), ("", 3), ("validation_size = 0.0", 3)],
)
def test_the_audit_log_holds_the_rounds_that_were_run(make_federation, train, n_rounds):
    federation = make_federation(job_text(n_rounds=n_rounds, more=train))
    federation.run()
    n_run = len(federation.model(SITES[0]).history)
    assert (n_run < n_rounds) == ("early_stopping" in train)
    logged = [event["rounds"] for event in Journal(federation.folder / "kit/server/run").events() if "rounds" in event]
    assert logged == [n_run]
    assert federation.server(resume=True)._kept.n_rounds == n_run  # also after a restart


def test_strategies_with_a_memory_run_at_the_sites(make_federation, fresh_key):
    from scinfl.federation import FedAdam

    federation = make_federation(job_text(more='[strategy]\nclass = "FedAdam"\nlr = 0.02'))
    federation.run()
    assert same(federation.model(SITES[0]), trained_in_process(make_cells(), fresh_key, strategy=FedAdam(lr=0.02)))


def test_labels_that_some_sites_lack_are_agreed_on(make_federation, fresh_key):
    adata = make_cells()
    adata = adata[(adata.obs["site"] != "hospital_0") | (adata.obs["label"] == "type_2")].copy()  # one label there
    federation = make_federation(adata=adata)
    federation.run()
    assert same(federation.model("hospital_0"), trained_in_process(adata, fresh_key))


@pytest.mark.parametrize("unlabeled", [None, "type_1"])
def test_the_order_of_categories_in_a_file_means_nothing(make_federation, fresh_key, unlabeled):
    adata = make_cells()
    adata.obs["label"] = adata.obs["label"].cat.reorder_categories(["type_1", "type_3", "type_0", "type_2"])
    setup = {} if unlabeled is None else {"unlabeled_category": unlabeled}
    more = "".join(f'\n{name} = "{value}"' for name, value in setup.items())
    job = job_text().replace('labels_key = "label"', f'labels_key = "label"{more}')
    federation = make_federation(job, adata=adata)
    federation.run()
    expected = trained_in_process(adata, fresh_key, setup=setup)
    assert same(federation.model(SITES[0]), expected)
    assert federation.model(SITES[0]).labels == expected.labels == sorted(expected.labels)


@pytest.mark.parametrize("most", [1, 1 << 26])
def test_a_site_that_was_away_catches_up_from_the_sums(make_federation, monkeypatch, most):
    monkeypatch.setattr(_run_folder, "MOST_MISSED", most)
    federation = make_federation(
        job_text(sites=[*SITES, "hospital_3"], n_rounds=5), adata=make_cells(n_sites=4), sites=[*SITES, "hospital_3"]
    )

    def leave_and_return(site, answer):
        step = answer.fields.get("step")
        if answer.kind == "step" and site == "hospital_3":
            federation.transport.away ^= {"hospital_3"} if step == 2 else set()
        if answer.kind == "step" and site == SITES[0] and step == 4:
            federation.transport.away.clear()
        return answer

    federation.transport.changes.append(leave_and_return)
    federation.run()
    assert any("without hospital_3" in line for line in federation.lines)
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))
    n_sums = [len(message.fields.get("sums", ())) for _, message, _ in federation.transport.log]
    assert (max(n_sums) == 1) == (most == 1)


def test_a_site_that_was_away_in_all_rounds_has_the_model_too(make_federation):
    sites = [*SITES, "hospital_3"]
    federation = make_federation(job_text(sites, n_rounds=2, deadline=0.5), adata=make_cells(n_sites=4), sites=sites)

    def leave_and_return(site, answer):
        if answer.kind == "step" and site == "hospital_3" and answer.fields["step"] == 0:
            federation.transport.away.add("hospital_3")
        if answer.kind == "step" and site == SITES[0] and answer.fields["step"] == 3:
            federation.transport.away.clear()
        return answer

    federation.transport.changes.append(leave_and_return)
    federation.run()
    assert not federation.errors
    assert sum("without hospital_3" in line for line in federation.lines) == 2
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))


def test_a_run_goes_on_without_a_revoked_site(make_federation):
    sites = [*SITES, "hospital_3"]
    federation = make_federation(job_text(sites), adata=make_cells(n_sites=4), sites=sites)

    federation.run_until_crash(SITES[2], 2)
    federation.server(resume=True, expected=SITES).run(federation.transport)
    assert any("not in the job, or revoked" in line for line in federation.lines)
    assert "not in the job, or revoked" in str(federation.errors["hospital_3"])
    assert same(federation.model(SITES[0]), federation.model(SITES[1]))
    assert not (federation.kit("hospital_3") / "model").exists()


def test_a_slow_site_is_waited_for_once_and_counted_again_when_it_answers(make_federation):
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, n_rounds=6, deadline=2)
    federation = make_federation(job, adata=make_cells(n_sites=4), sites=sites)

    def be_slow(site, answer):
        step = answer.fields.get("step")
        if answer.kind == "step" and site == SITES[0]:
            federation.transport.held = {"hospital_3"} if step in (2, 3) else set()
        return answer

    federation.transport.changes.append(be_slow)
    federation.run()
    history = (federation.folder / "kit/server/run/history.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in history]
    assert [row[2] for row in rows[:3]] == ["4", "3", "3"]
    assert rows[-1][2] == "4"
    assert float(rows[1][4]) > 2
    assert float(rows[2][4]) < 2
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))
    journal = federation.server(resume=True)._journal
    assert "late" in {event["event"] for event in journal.events()}


@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_a_run_that_lost_its_server_ends_with_the_same_model(make_federation, fresh_key, step):
    federation = make_federation()

    federation.run_until_crash(SITES[2], step)
    federation.server(resume=True).run(federation.transport)
    for thread in federation._threads:
        thread.join(10)
    assert same(federation.model(SITES[0]), trained_in_process(make_cells(), fresh_key))


def test_a_full_disk_stops_the_server_and_leaves_what_it_had(make_federation, fresh_key, monkeypatch):
    federation, usual = make_federation(), Message.write

    def full(message, path):
        if path.name == "step-00003.safetensors":
            raise OSError(28, "No space left on device")
        usual(message, path)

    monkeypatch.setattr(Message, "write", full)
    federation.start()
    with pytest.raises(OSError, match="No space left"):
        federation.server().run(federation.transport)
    monkeypatch.setattr(Message, "write", usual)
    federation.server(resume=True).run(federation.transport)
    for thread in federation._threads:
        thread.join(10)
    assert same(federation.model(SITES[0]), trained_in_process(make_cells(), fresh_key))


def test_a_site_that_comes_after_the_start_takes_part_from_then_on(make_federation):
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, n_rounds=5).replace("deadline", "wait = 0.05\ndeadline")
    federation = make_federation(job, adata=make_cells(n_sites=4), sites=sites)
    federation.transport.away.add("hospital_3")

    def come(site, answer):
        if answer.kind == "step" and answer.fields["step"] == 2:
            federation.transport.away.clear()
        return answer

    federation.transport.changes.append(come)
    federation.run()
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))
    n_sites = list(federation.model(SITES[0]).history["n_sites"])
    assert n_sites[0] == 3
    assert n_sites[-1] == 4


def test_a_site_with_labels_that_nobody_knew_is_refused_when_it_comes_late(make_federation):
    sites, adata = [*SITES, "hospital_3"], make_cells(n_sites=4)
    label = adata.obs["label"].astype(str)
    adata.obs["label"] = label.where(adata.obs["site"] != "hospital_3", "type_9")
    job = job_text(sites, n_rounds=5).replace("deadline", "wait = 0.05\ndeadline")
    federation = make_federation(job, adata=adata, sites=sites)
    federation.transport.away.add("hospital_3")

    def come(site, answer):
        if answer.kind == "step" and answer.fields["step"] == 2:
            federation.transport.away.clear()
        return answer

    federation.transport.changes.append(come)
    federation.run()
    assert "labels that the run began with" in str(federation.errors["hospital_3"])
    assert same(federation.model(SITES[0]), federation.model(SITES[1]))
    assert not any("type_9" in line for line in federation.lines if line.startswith("site '"))


def test_sites_that_start_again_go_on_from_their_journal(make_federation, fresh_key, tmp_path):
    first = make_federation()

    first.run_until_crash(SITES[1], 3)
    second = make_federation()
    second.run(resume=True)
    assert same(second.model(SITES[0]), trained_in_process(make_cells(), fresh_key))
    journals = list((second.kit(SITES[0]) / "runs").iterdir())
    assert len(journals) == 1
    assert Journal(journals[0]).verify()
    assert "resume" in {event["event"] for event in Journal(journals[0]).events()}


def test_a_server_keeps_what_it_has(make_federation):
    federation = make_federation()
    with pytest.raises(ValueError, match=r"found none\. Leave `--resume` out"):
        federation.server(resume=True)
    federation.run()
    with pytest.raises(ValueError, match=r"found one\. Go on with it with `--resume`"):
        federation.server()


def test_a_replayed_answer_is_refused_and_training_goes_on(make_federation, fresh_key):
    federation, kept = make_federation(), {}

    def replay(site, answer):
        if site == SITES[0] and answer.kind == "step":
            kept.setdefault(answer.fields["step"], answer)
            if answer.fields["step"] == 3 and "used" not in kept:
                kept["used"] = True
                return replace(kept[2], fields=answer.fields)
        return answer

    federation.transport.changes.append(replay)
    federation.run()
    refused = [event for event in federation.server(resume=True)._journal.events() if event["event"] == "refused"]
    assert len(refused) == 1
    assert "an old answer" in refused[0]["reason"]
    assert same(federation.model(SITES[0]), trained_in_process(make_cells(), fresh_key))


def test_an_answer_that_was_changed_on_its_way_is_refused(make_federation, fresh_key):
    federation, done = make_federation(), []

    def change(site, answer):
        if site == SITES[1] and answer.kind == "step" and answer.fields["step"] == 2 and not done:
            done.append(1)
            update = answer.updates[0]
            masked = update.state["masked"].copy()
            masked[0] += np.uint64(1)
            return replace(answer, updates=(replace(update, state={"masked": masked}), *answer.updates[1:]))
        return answer

    federation.transport.changes.append(change)
    federation.run()
    assert any("changed" in line and SITES[1] in line for line in federation.lines)
    assert same(federation.model(SITES[1]), trained_in_process(make_cells(), fresh_key))


@pytest.mark.parametrize("fields", [{}, {"position": "third"}, {"position": 3, "step": 3, "bounds": [1]}])
@pytest.mark.parametrize("kind", ["step", "repeat", "behind", "what"])
def test_an_answer_that_makes_no_sense_is_refused_and_training_goes_on(make_federation, fresh_key, kind, fields):
    federation, done = make_federation(), []

    def change(site, answer):
        if site == SITES[1] and answer.kind == "step" and answer.fields["step"] == 2 and not done:
            done.append(1)
            return Message(kind, fields)
        return answer

    federation.transport.changes.append(change)
    federation.run()
    assert any(f"refused an answer of site '{SITES[1]}'" in line for line in federation.lines)
    assert same(federation.model(SITES[1]), trained_in_process(make_cells(), fresh_key))


def test_sites_refuse_a_sum_that_the_server_changed(make_federation):
    federation = make_federation()
    server = federation.server()

    def tamper(step, sums):
        (combined, members), *others = sums
        masked = combined.state["masked"].copy()
        masked[0] += np.uint64(1)
        return step, [(replace(combined, state={"masked": masked}), members), *others]

    from scinfl.flower.server import _coordinator

    usual = _coordinator.sums_message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _coordinator, "sums_message", lambda step, sums: usual(*(tamper(step, sums) if step == 2 else (step, sums)))
        )
        patch.setattr(server, "_job", replace(federation.job, give_up=2.0))
        federation.start()
        with pytest.raises(RuntimeError, match="resume"):
            server.run(federation.transport)
    assert {type(error).__name__ for error in federation.errors.values()} == {"TamperedSumError"}
    assert not any((federation.kit(site) / "model").exists() for site in SITES)


def test_a_number_beyond_the_bound_repeats_the_step_at_all_sites(make_federation, fresh_key, monkeypatch):
    adata = make_cells()
    monkeypatch.setattr("scinfl.flower.server._coordinator.default_bound", lambda bits: 0.25)
    federation = make_federation(job_text(more="").replace("deadline", "bits = 32\ndeadline"))
    for site in federation.sites.values():
        site._sum = lambda *run, usual=site._sum: _narrow(usual(*run))
    federation.run()
    assert any(message.kind == "repeat" for _, _, message in federation.transport.log)
    from scinfl.privacy import KeyedSum

    expected = trained_in_process(adata, fresh_key, protections=[KeyedSum(fresh_key, bits=32, bound=0.25)])
    assert same(federation.model(SITES[0]), expected)


def _narrow(protection):
    protection._numbers = replace(protection._numbers, bound=0.25)
    return protection


# ---- before the first round


@pytest.mark.parametrize("what", ["key", "order", "genes", "counts"])
def test_sites_that_differ_are_named_before_the_first_round(make_federation, what):
    adata, options = make_cells(), {}
    own = adata[adata.obs["site"] == SITES[1]].copy()
    expected = {
        "key": SITES[1],
        "order": "align_genes",
        "genes": "align_genes",
        "counts": "log1p",
    }[what]
    if what == "key":
        options["keys"] = {SITES[1]: Key(bytes(range(100, 132)), federation="test-federation")}
    elif what == "order":
        options["data"] = {SITES[1]: own[:, ::-1].copy()}
    elif what == "genes":
        options["data"] = {SITES[1]: own[:, :-1].copy()}
    elif what == "counts":
        own.X = np.abs(np.round(own.X * 100))
        options["data"] = {SITES[1]: own}
    federation = make_federation(adata=adata, **options)
    with pytest.raises(ValueError, match=expected) as error:
        federation.run()
    assert SITES[1] in str(error.value)
    for thread in federation._threads:
        thread.join(10)
    told = {site: str(own) for site, own in federation.errors.items()}
    assert told[SITES[1]] == f"The server ended the run: {error.value}"
    for site in (SITES[0], SITES[2]) if what != "key" else ():
        assert "hospital_1 must act before the run can begin" in told[site]
        assert expected not in told[site]
    assert not list((federation.folder / "kit" / "server" / "run" / "sums").iterdir())


def test_a_site_with_another_job_is_told_what_differs_and_the_others_wait_for_it(make_federation):
    federation = make_federation()
    federation.sites[SITES[1]]._job = Job.parse(job_text(n_rounds=5))
    server = federation.server()
    server._job = replace(federation.job, give_up=3.0)
    federation.start()
    with pytest.raises(RuntimeError, match=f"missing are {SITES[1]}"):
        server.run(federation.transport)
    for thread in federation._threads:
        thread.join(10)
    assert "differs from it in train.n_rounds" in str(federation.errors[SITES[1]])
    assert "Get the present 'job.toml'" in str(federation.errors[SITES[1]])
    assert any("of site 'hospital_1': its job is another one" in line for line in federation.lines)
    for site in (SITES[0], SITES[2]):
        assert "job" not in str(federation.errors[site])


def test_data_that_fit_an_old_job_alone_are_not_blamed():
    here, there = (job_text(n_rounds=n) for n in (4, 5))
    asker = _Asker(Job.parse(here), SITES[0])
    answer = asker.handle(Message("hello", {"run": "r", "job": there}))
    assert asker.odd == "train.n_rounds"
    assert answer.kind == "failed"
    assert "site 'hospital_0' cannot take part: its job differs" in answer.fields["message"]
    for message in (Message("hello", {"run": "r", "job": here}), Message("end", {}), Message("hello", {"job": "[["})):
        asker = _Asker(Job.parse(here), SITES[0])
        assert asker.handle(message).fields["message"].endswith("its own log says why")
        assert asker.odd == ""


def test_what_sites_compare_shows_the_server_neither_labels_nor_genes(make_federation):
    federation = make_federation()
    federation.run()
    folder = federation.folder / "kit" / "server" / "run"
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    sent = "".join(answer.to_parts()[0] for _, _, answer in federation.transport.log)
    for secret in ("type_2", "gene_17", "cell_3"):
        assert secret.encode() not in kept
        assert secret not in sent


def test_a_site_of_other_name_or_signature_is_refused(make_federation):
    federation = make_federation()
    server = federation.server()
    from scinfl.flower.server._participant import Participant

    hello = federation.sites[SITES[0]]._greet(Message("hello", {"run": "r", "job": federation.job.text}))
    for fields, match in (({"site": "hospital_9"}, "not in the job"), ({"site": SITES[1]}, "signature of site")):
        with pytest.raises(ValueError, match=match):
            server._take_hello(Participant("1"), Message("hello", {**hello.fields, **fields}))


def test_the_server_does_not_leave_before_a_site_that_is_here_has_the_model(make_federation):
    """A site that came back late needs longer than a deadline of rounds to start and to catch up."""
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, deadline=0.2)
    federation = make_federation(job, adata=make_cells(n_sites=4), sites=sites)

    def be_late(site, answer):
        step = answer.fields.get("step")
        if answer.kind == "step" and site == "hospital_3" and step == 2:
            federation.transport.held = {"hospital_3"}
        if answer.kind == "finished" and site == SITES[0]:
            threading.Timer(1.0, federation.transport.held.clear).start()
        return answer

    federation.transport.changes.append(be_late)
    federation.run()
    assert not federation.errors
    assert same(federation.model("hospital_3"), federation.model(SITES[0]))
