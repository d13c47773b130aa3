"""Whatever one party sends, the other answers or refuses it within a bound, and goes on."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.flower.conftest import SITES, job_text, make_cells, same, trained_in_process
from tests.flower.evil import KEY, Evil

from scinfl.federation import Update
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._preflight import open_facts, run_context
from scinfl.flower.protocol._round_history import RoundHistory
from scinfl.flower.server._coordinator import Coordinator, StoppedError
from scinfl.flower.setup._job import Job, SiteSettings
from scinfl.flower.site._mailbox import EndedError, Mailbox, OtherRunError
from scinfl.privacy import Seal
from scinfl.privacy.aggregation import MASKED, Aggregator

DEEP = "[" * 100_000 + "]" * 100_000
HUGE = str(10**400)


# ---- at a site


def test_a_run_whose_name_is_a_path_is_refused(tmp_path):
    evil = Evil(tmp_path / "evil")
    evil.federation.start()
    target = tmp_path / "elsewhere"
    for name in (str(target), "../../elsewhere", "a/b", "", ".", "a" * 99, 3, None):
        answer = evil.handle(SITES[0], Message("hello", {"run": name, "job": evil.federation.job.text}))
        assert answer.kind == "unread"
        assert "letters, digits" in answer.fields["message"]
    assert not target.exists()
    evil.start_run()
    assert isinstance(evil.step(0), Message)  # and the run goes on


def test_a_question_that_reaches_a_restarted_site_first_is_answered_at_once(tmp_path):
    evil = Evil(tmp_path / "evil")
    evil.federation.start()
    started = time.monotonic()
    for message in (
        Message("step", {"run": "r0", "step": 3, "sums": [], "bounds": {}}),
        Message("agree", {"run": "r0", "facts": {}}),
    ):
        assert evil.handle(SITES[0], message).kind == "hello first"
    assert time.monotonic() - started < 5
    evil.start_run()
    assert isinstance(evil.step(0), Message)


def test_a_server_that_leaves_a_run_and_comes_back_before_training_notices_is_answered():
    box = Mailbox(lambda message: message, patience=0.0)
    hello, other = (Message("hello", {"run": run}) for run in ("r0", "r1"))
    agree = Message("agree", {"run": "r0", "facts": {}})

    def begin():
        assert box.handle(agree).kind == "busy"
        assert box.wait_for_facts() == ("r0", {})
        box.be_ready(Message("ready"))
        assert box.handle(agree).kind == "ready"

    box.handle(hello)
    begin()
    for message in (other, hello):
        box.handle(message)
    for suspended in (lambda: box.be_ready(Message("ready")), lambda: box.answer(Message("step")), box.next):
        with pytest.raises(OtherRunError):  # or it waits for a question, and the server for it to be ready
            suspended()
    begin()


@pytest.mark.parametrize(
    "fields",
    [
        {"step": -1},
        {"step": 0.0},
        {"step": 10**400},
        {"step": None},
        {"attempt": -1},
        {"attempt": True},
        {"sums": [{"step": 5, "members": []}]},
        {"sums": [{"step": 0, "members": [[["../x", "00"]]]}]},
        {"sums": [{"step": 0, "members": [[["hospital_0", "zz"]]]}]},
        {"sums": [{"step": 0, "members": [[["hospital_0", "00"]]]}]},
        {"sums": 3},
        {"sums": None},
    ],
    ids=lambda own: repr(own)[:60],
)
def test_a_question_that_makes_no_sense_is_refused_and_the_site_goes_on(shared, fields):
    asked = {"run": "r0", "step": 0, "sums": [], "bounds": {}, **fields}
    assert shared.handle(SITES[0], Message("step", asked)).kind == "unread"
    assert not shared.federation.errors
    assert shared.ask(SITES[0], 0).kind == "step"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Evil(tmp_path_factory.mktemp("evil") / "evil").start()


def test_a_site_that_trains_for_long_says_that_it_is_busy_and_answers_later(tmp_path):
    evil = Evil(tmp_path / "evil").start()
    site, mailbox = evil.federation.sites[SITES[0]], evil.federation.mailboxes[SITES[0]]
    mailbox._patience = 0.05
    first = evil.step(0)
    kinds, asked = [], Message("step", {"run": "r0", "step": 1, "sums": [], "bounds": {}}, first.updates)
    asked = replace(asked, fields={**asked.fields, "sums": [{"step": 0, "members": first.fields["members"]}]})
    until = time.monotonic() + 30
    while (not kinds or kinds[-1] == "busy") and time.monotonic() < until:
        kinds.append(mailbox.handle(asked).kind)
    assert kinds[-1] == "step"
    assert kinds.count("busy") == len(kinds) - 1
    assert mailbox.handle(asked).kind == "step"
    assert site._name == SITES[0]


@pytest.mark.parametrize("text", [DEEP, '{"kind": "step", "fields": ' + DEEP, "{}", "3", '{"kind": NaN}', "x" * 10])
def test_text_that_is_deep_or_no_message_is_refused(text):
    with pytest.raises(ValueError, match="Expected a message of this federation"):
        Message.from_parts(text, {})


@pytest.mark.parametrize("number", ["-1", "1e999", HUGE, "1.5", "true", '"3"', "NaN"])
def test_a_round_that_is_no_count_is_refused(number):
    text, _ = Message("step", updates=(Update("a", 77, {}, 0),)).to_parts()
    with pytest.raises(ValueError, match="Expected a message of this federation"):
        Message.from_parts(text.replace("77", number), {})


def test_one_array_under_many_names_is_refused():
    text, arrays = Message("step", updates=(Update("a", 1, {MASKED: np.zeros(3, np.uint64)}, 0),)).to_parts()
    many = text.replace(f'["{MASKED}"]', json.dumps([MASKED] * 1000))
    assert many != text
    with pytest.raises(ValueError, match="named twice"):
        Message.from_parts(many, arrays)


@pytest.mark.parametrize("entry", ["[]", "{}", '"ab"', "1.5"])
def test_text_that_takes_far_more_memory_than_it_is_long_is_refused(entry):
    with pytest.raises(ValueError, match="more than 4194304 entries"):
        Message.from_parts(f'{{"kind": "step", "fields": [{",".join([entry] * (1 << 22))}]}}', {})


def test_sums_of_steps_to_come_do_not_pile_up_at_a_site():
    kept = []

    class Server:
        def expect(self, n_bytes):
            pass

        def next(self):
            if len(kept) == 5:
                raise EndedError
            sums = [{"step": 100 + len(kept), "members": [[["a", "00"]]]}]
            return Message("step", {"step": 1000, "sums": sums}, (Update("a", 1, {MASKED: np.zeros(9, np.uint64)}, 0),))

        def answer(self, message):
            kept.append(dict(history._came))

    history = RoundHistory(Server(), ready=lambda position: None)
    with pytest.raises(EndedError):
        history.sums(lambda asked: Message("step"), n_bytes=72)
    assert [len(own) for own in kept] == [1] * 5


def test_a_question_is_answered_within_one_bound_however_often_it_waits():
    box = Mailbox(lambda message: message, patience=1.0)
    box.handle(Message("hello", {"run": "r0"}))
    threading.Thread(target=box.handle, args=(Message("agree", {"run": "r0", "facts": {}}),), daemon=True).start()
    box.wait_for_facts()
    box.be_ready(Message("ready"))
    first, second = (Message("step", {"run": "r0", "step": step, "sums": []}) for step in (0, 1))
    threading.Thread(target=box.handle, args=(first,), daemon=True).start()
    box.next()

    def train():  # answers the first question shortly before the bound, and works on the second one
        time.sleep(0.9)
        box.answer(Message("step"))
        box.next()

    threading.Thread(target=train, daemon=True).start()
    started = time.monotonic()
    assert box.handle(second).kind == "busy"
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("facts", [DEEP, "[" * 3, '{"labels": ["\\ud800"]}', "\xff"])
def test_facts_that_are_no_text_name_the_site_that_sent_them(facts):
    job = Job.parse(job_text())
    context = run_context(KEY, job, "r0", "pinned").digest.hex()
    contents = dict.fromkeys(SITES, b"{}") | {SITES[2]: facts.encode("latin-1")}
    sealed = {s: Seal(KEY).seal(own, what="facts", site=s, context=context) for s, own in contents.items()}
    with pytest.raises(ValueError, match=f"Expected facts of site '{SITES[2]}', found something else"):
        open_facts(sealed, KEY, job, "r0", identities="pinned")


def test_an_array_that_claims_more_than_it_brings_is_refused():
    message = Message("step", updates=(Update("a", 1, {"masked": np.arange(10, dtype=np.uint64)}, 0),))
    content = message.to_bytes()
    (found,) = Message.from_bytes(content).updates
    assert np.array_equal(found.state["masked"], np.arange(10))
    for old, new in ((b'"shape":[10]', b'"shape":[99]'), (b'"U64"', b'"I64"'), (b"[0,80]", b"[0,99]")):
        changed = content.replace(old, new)
        assert changed != content
        with pytest.raises(ValueError, match="Expected a message of this federation"):
            Message.from_bytes(changed)
    deep = b'{"__metadata__": ' + DEEP.encode() + b"}"
    for odd in (b"nothing", b"", (1 << 60).to_bytes(8, "little") + content, len(deep).to_bytes(8, "little") + deep):
        with pytest.raises(ValueError, match="Expected a message of this federation"):
            Message.from_bytes(odd)


def test_deep_jobs_and_names_that_share_a_file_are_refused():
    with pytest.raises(ValueError, match="found a mistake"):
        Job.parse("a = " + DEEP)
    for names in (["uni/köln", "b", "c"], ["../x", "b", "c"], ["A", "a", "c"]):
        with pytest.raises(ValueError, match="names"):
            Job.parse(job_text(names))


HEADER = ".".join("a" * 1900)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([f"[{HEADER}]", *(f"{HEADER}.b{n}=1" for n in range(15))]),  # 16 s to parse
        "\n".join([f"[{HEADER}]", *(f"b{n}=1" for n in range(8000))]),
        "\n".join(f"[{HEADER}.b{n}]" for n in range(60)),
        "a" * (1 << 20),
    ],
    ids=["keys below a long header", "many keys below one", "many long headers", "long"],
)
def test_a_job_that_takes_long_to_parse_is_refused_before_it_is(tmp_path, text):
    evil = Evil(tmp_path / "evil")
    evil.federation.start()
    started = time.process_time()
    assert evil.handle(SITES[0], Message("hello", {"run": "r0", "job": text})).kind == "unread"
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ValueError, match=r"Expected the settings of a site of at most .* dots in a line"):
        SiteSettings.read(tmp_path / "site.toml")
    assert time.process_time() - started < 1


def test_a_job_at_the_limits_is_parsed_within_seconds():
    key = ".".join("a" * 32)
    text = "\n".join([f"[{key}.a]", *(f"{key}.b{n}=1" for n in range(3650))])
    assert 250_000 < len(text) < 1 << 18
    started = time.process_time()
    with pytest.raises(ValueError, match="section of the job"):
        Job.parse(text)
    assert time.process_time() - started < 5


def test_what_comes_over_flower_is_read_under_the_same_limits():
    pytest.importorskip("flwr")
    from scinfl.flower.protocol._records import from_flower

    for records in (
        {"0": {"bytes": DEEP.encode()}},
        {"1": {"bytes": b""}},
        {"0": {"text": "x"}},
        {"0": {"bytes": 3}},
        {},
    ):
        carrier = SimpleNamespace(content=SimpleNamespace(config_records=records))
        with pytest.raises(ValueError, match="Expected a message"):
            from_flower(carrier)


def test_a_message_travels_in_pieces_of_a_size_that_the_server_reads():
    pytest.importorskip("flwr")
    from scinfl.flower.protocol._records import from_flower, to_records

    masked = np.arange(1_500_000, dtype=np.uint64)
    message = Message("step", {"position": 3}, (Update("a", 1, {"masked": masked}, 0),))
    records = to_records(message)
    assert [len(record["bytes"]) <= 5_000_000 for record in records.config_records.values()] == [True] * 3
    found = from_flower(SimpleNamespace(content=records))
    assert (found.kind, found.fields) == (message.kind, message.fields)
    assert np.array_equal(found.updates[0].state["masked"], masked)
    assert len(to_records(Message("hello first")).config_records) == 1


# ---- at the server


@pytest.mark.parametrize(
    ("kind", "positions"), [("ready", [-1, "third"]), ("step", [float("inf"), 10**6]), ("behind", [-1, 10**400])]
)
def test_a_position_that_makes_no_sense_is_refused_and_training_goes_on(make_federation, fresh_key, kind, positions):
    federation, left = make_federation(job_text(n_rounds=2)), list(positions)

    def change(site, answer):
        wanted = "ready" if kind == "ready" else "step"
        if site == SITES[1] and answer.kind == wanted and left:
            return Message(kind, {**answer.fields, "position": left.pop()}, answer.updates)
        return answer

    federation.transport.changes.append(change)
    federation.run()
    assert sum(f"refused an answer of site '{SITES[1]}'" in line for line in federation.lines) == 2
    assert same(federation.model(SITES[1]), trained_in_process(make_cells(), fresh_key, n_rounds=2))


def test_no_error_on_an_answer_ends_the_server(make_federation, monkeypatch):
    federation = make_federation(job_text(n_rounds=2))
    left = {site: [RecursionError, MemoryError] if site == SITES[0] else [OverflowError, IndexError] for site in SITES}
    usual = Coordinator._take_step

    def fail(self, participant, message):
        if left[participant.site]:
            raise left[participant.site].pop()
        usual(self, participant, message)

    monkeypatch.setattr(Coordinator, "_take_step", fail)
    federation.run()
    for error in (RecursionError, MemoryError, OverflowError, IndexError):
        assert any(error.__name__ in line for line in federation.lines)
    assert federation.model(SITES[0]) is not None


@pytest.mark.parametrize(
    ("sum_", "what"), [("keyed", "header"), ("keyed", "shape"), ("pairwise", "key version"), ("pairwise", "shape")]
)
def test_a_term_that_cannot_be_added_is_left_out_with_its_site(make_federation, sum_, what, monkeypatch):
    """A site signs a term in another form under the context of the others."""
    sites = [*SITES, "hospital_3"]
    job = job_text(sites, n_rounds=2, deadline=0.3)
    job = job.replace("deadline", 'sum = "pairwise"\ndeadline') if sum_ == "pairwise" else job
    federation = make_federation(job, adata=make_cells(n_sites=4), sites=sites)
    monkeypatch.setattr(Aggregator, "verify", lambda self, update: None)

    def change(site, answer):
        if site != "hospital_3" or answer.kind != "step":
            return answer
        term, *others = answer.updates
        if what == "header":
            term = replace(term, header={**term.header, "bound": b"\1"})
        elif what == "shape":
            term = replace(term, state={MASKED: term.state[MASKED][:-1]})
        else:
            term = replace(term, key_version=7)
        return replace(answer, updates=(term, *others))

    federation.transport.changes.append(change)
    federation.run()
    assert any("left out site 'hospital_3'" in line for line in federation.lines)
    assert same(federation.model(SITES[0]), federation.model(SITES[1]))


def test_a_run_that_no_site_can_begin_ends_with_the_reasons(make_federation):
    federation = make_federation()
    for site in federation.sites.values():
        site._make_model = lambda *args: 1 / 0
    federation.start()
    started = time.monotonic()
    with pytest.raises(StoppedError, match=r"all stopped before the first step.*'hospital_2': ZeroDivisionError"):
        federation.server().run(federation.transport)
    assert time.monotonic() - started < 20


def test_a_run_that_all_sites_left_ends_with_the_reasons(make_federation):
    """The server was put back to an older copy, say: it would wait for a day."""
    federation = make_federation()

    def fail(site, answer):
        late = answer.kind == "step" and answer.fields["step"] > 1
        return Message("failed", {"message": "no disk"}) if late else answer

    federation.transport.changes.append(fail)
    federation.start()
    with pytest.raises(StoppedError, match=r"all stopped in step 2 \('hospital_0': no disk.*go on with `--resume`"):
        federation.server().run(federation.transport)


def test_a_site_that_forgot_the_run_is_greeted_again(make_federation, fresh_key):
    federation, done = make_federation(job_text(n_rounds=2)), []

    def forget(site, answer):
        if site == SITES[1] and answer.kind == "step" and answer.fields["step"] == 1 and not done:
            done.append(1)
            return Message("hello first")
        return answer

    federation.transport.changes.append(forget)
    federation.run()
    assert done
    assert same(federation.model(SITES[1]), trained_in_process(make_cells(), fresh_key, n_rounds=2))
