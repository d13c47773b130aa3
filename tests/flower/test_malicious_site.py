"""A site that is registered, and may hold the key, ends neither the run nor the other sites, whatever it sends."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from flwr.proto.message_pb2 import ObjectTree
from tests.flower.adversary import prepare
from tests.flower.conftest import SITES, CrashError, LocalFederation, job_text, make_cells
from tests.flower.evil import KEY
from tests.flower.test_models import SPATIAL_JOB, make_sections

from scinfl.flower.protocol._message import Message
from scinfl.flower.server import _transport
from scinfl.flower.server._participant import checks_of
from scinfl.privacy.aggregation import Advertisement

EVIL = "hospital_3"
FOUR = [*SITES, EVIL]
FIRST = 3  # step after those before training, which go on with all sites or not at all


@pytest.fixture
def federation(tmp_path, monkeypatch):
    prepare(monkeypatch)

    def make(sum_, change):
        job = job_text(FOUR, n_rounds=3, deadline=0.5, more="validation_size = 0")
        job = job.replace("deadline", f'sum = "{sum_}"\ndeadline')
        made = LocalFederation(tmp_path, make_cells(n_sites=4), KEY, job, sites=FOUR)

        def changed(site, message):
            return change(message) if site == EVIL and message.fields.get("step", -1) >= FIRST else message

        made.transport.changes.append(changed)
        return made

    return make


def run(federation, *, resume=False, start=True):
    """Let the run end, which it must within a bound."""
    if start:
        federation.start()
    raised, server = [], federation.server(resume=resume)

    def go():
        try:
            server.run(federation.transport)
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the run does not end"
    assert raised == []
    for site, own in zip(federation.sites, federation._threads, strict=True):
        own.join(60 if site != EVIL else 0)
    assert federation.errors.keys() <= {EVIL}
    assert all((federation.kit(site) / "model").is_dir() for site in SITES)
    return server


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_a_site_that_claims_to_have_the_model_does_not_end_the_run(federation, sum_):
    server = run(federation(sum_, lambda message: Message("finished") if message.kind == "step" else message))
    assert server._kept.n_rounds == 3


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_a_site_that_needs_wider_bounds_of_ever_other_purposes_is_left_out(federation, sum_):
    asked = []

    def change(message):
        if message.kind != "step":
            return message
        asked.append(message)
        bounds = {f"purpose {len(asked)}": 2.0**18}
        return Message("repeat", {**message.fields, "bounds": bounds})

    server = run(federation(sum_, change))
    assert len(asked) < 30
    assert len(server._kept.bounds) < 30


@pytest.mark.parametrize("bounds", [{str(n): 2.0**18 for n in range(100)}, {"x" * 1000: 2.0**18}])
def test_bounds_of_many_or_long_names_are_not_kept(federation, bounds):
    def change(message):
        return Message("repeat", {**message.fields, "bounds": bounds}) if message.kind == "step" else message

    assert not server_bounds(run(federation("keyed", change))) & bounds.keys()


def server_bounds(server):
    return set(server._kept.bounds)


def test_a_wider_bound_is_not_taken_once_sites_reveal(federation):
    """Sites open one sum of a round: asked for another one, they would stop."""
    left = [1, 1]

    def change(message):
        if message.kind == "reveal" and left:
            left.pop()
            return Message("repeat", {**message.fields, "bounds": {"training": 2.0**18}})
        return message

    run(federation("pairwise", change))
    assert not left


@pytest.mark.parametrize("what", ["signature", "weak key", "short key", "fingerprint"])
def test_an_advertisement_that_sites_would_stop_at_is_not_relayed(federation, what):
    def forge(own):
        ad = Advertisement.from_json(own)
        if what == "signature":
            return replace(ad, signature=bytes(64)).to_json()
        odd = {
            "weak key": {"public": bytes(32)},
            "short key": {"public": bytes(31)},
            "fingerprint": {"fingerprint": "x"},
        }
        ad = replace(ad, **odd[what])
        return replace(ad, signature=made.sites[EVIL]._identity.sign(ad.content())).to_json()

    def change(message):
        if message.kind != "advertise":
            return message
        return Message("advertise", {**message.fields, "ads": [forge(own) for own in message.fields["ads"]]})

    made = federation("pairwise", change)
    run(made)
    assert any(f"left out site '{EVIL}'" in line or f"an answer of site '{EVIL}'" in line for line in made.lines)


def test_a_site_that_begins_again_in_every_exchange_of_masks_is_left_out(federation):
    n = []

    def change(message):
        if message.kind != "step":
            return message
        n.append(1)
        return Message("hello first")

    made = federation("pairwise", change)
    run(made)
    assert any(f"goes on without {EVIL}" in line for line in made.lines)
    assert len(n) < 10


def test_a_site_that_comes_first_after_a_restart_of_the_server_does_not_choose_what_sites_agreed_on(federation):
    def crash(site, message):
        if message.kind == "step" and message.fields["step"] == FIRST:
            made.transport.changes.remove(crash)
            raise CrashError
        return message

    made = federation("keyed", lambda message: message)
    made.transport.changes.append(crash)
    made.start()
    with pytest.raises(CrashError):
        made.server().run(made.transport)
    order = [EVIL, *SITES]
    made.transport.mailboxes = {number: made.mailboxes[site] for number, site in enumerate(order)}
    made.transport.names = dict(enumerate(order))

    def other(site, message):
        return (
            Message("ready", {**message.fields, "agreed": "x"}) if site == EVIL and message.kind == "ready" else message
        )

    made.transport.changes.append(other)
    run(made, resume=True, start=False)
    assert any(f"an answer of site '{EVIL}': it knows other labels" in line for line in made.lines)


def test_an_answer_without_end_is_lost_and_the_server_goes_on(monkeypatch):
    monkeypatch.setattr(_transport, "_MOST_BYTES", 30_000)
    pulled = []

    class Client:
        def PullObject(self, request):
            pulled.append(request.object_id)
            return SimpleNamespace(object_found=True, object_available=True, object_content=bytes(1000))

        def ConfirmMessageReceived(self, request):
            pass

    tree = ObjectTree(object_id="a", children=[ObjectTree(object_id=str(n)) for n in range(10_000)])
    head = SimpleNamespace(metadata=SimpleNamespace(run_id=1, reply_to_message_id="1"))
    transport = _transport.FlowerTransport(SimpleNamespace(node=None))
    transport._fetch(Client(), head, tree)
    assert transport._arrived(1.0) == [("1", None)]
    assert len(pulled) < 200


def test_facts_that_no_other_site_would_fetch_are_refused():
    hello = {"key": [1, "00"], "checks": {}, "facts": "00" * ((1 << 23) + 1)}
    with pytest.raises(ValueError, match="Expected facts of at most 8388608 bytes"):
        checks_of(hello)


def test_a_label_of_a_site_that_is_the_category_of_the_unlabeled_stops_nobody(tmp_path):
    cells = make_cells()
    cells.obs["label"] = cells.obs["label"].cat.add_categories("unknown")
    cells.obs.loc[cells.obs_names[:20], "label"] = "unknown"
    job = job_text().replace('labels_key = "label"', 'labels_key = "label"\nunlabeled_category = "unknown"')
    made = LocalFederation(tmp_path, cells, KEY, job)
    facts = {site: own._task.facts() for site, own in made.sites.items()}
    facts[SITES[2]] = {**facts[SITES[2]], "labels": [*facts[SITES[2]]["labels"], "unknown"]}
    model = made.sites[SITES[0]]._task.make_model(facts)
    assert model.labels == [f"type_{n}" for n in range(4)]


@pytest.mark.parametrize("batch_size", [0, -7])
def test_a_batch_size_that_is_none_names_the_site_that_sent_it(tmp_path, batch_size):
    made = LocalFederation(tmp_path, make_sections(), KEY, SPATIAL_JOB.format(setup=""))
    facts = {site: own._task.facts() for site, own in made.sites.items()}
    facts[SITES[2]] = {**facts[SITES[2]], "batch_size": batch_size}
    with pytest.raises(ValueError, match=f"batch size of site '{SITES[2]}'"):
        made.sites[SITES[0]]._task.join(facts)


def test_text_of_a_site_that_no_terminal_can_show_does_not_end_the_server(federation):
    class Terminal(list):
        def append(self, line):
            super().append(line)
            line.encode()
            assert line.isprintable()

    text = "\ud800\x1b[2J\nround 3/3: 4 sites"
    made = federation("keyed", lambda message: Message("unread", {"message": text}))
    made.lines = Terminal()
    run(made)
    assert any("\N{REPLACEMENT CHARACTER}[2J" in line for line in made.lines)
