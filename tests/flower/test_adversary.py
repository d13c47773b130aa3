"""Games of a server without the key against real sites, and whether they find faults that are put back.

What must hold after every move (the numbers that violations begin with):

1. an accepted sum is the sum of exactly what its members encoded, for that very context;
2. two sums that the same party can read, over the same data, differ by no fewer than `min_sites` sites;
3. a site gives one context one plaintext, and no mask hides two;
4. sites of different jobs, facts or runs read no sum together;
5. each site answers or refuses each message within a bound;
6. the privacy account never falls, and covers all that left.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from tests.flower.adversary import MIN_SITES, Game, prepare
from tests.flower.evil import KEY
from tests.flower.witness import Witness

from scinfl._errors import WeakNoiseWarning
from scinfl.flower.protocol import _preflight
from scinfl.flower.site import _run
from scinfl.flower.site._ledger import Ledger
from scinfl.flower.site._mailbox import Mailbox
from scinfl.flower.site._masking import Masking, PairwiseMasking
from scinfl.flower.site._upload_log import Upload
from scinfl.privacy import KeyedSum
from scinfl.privacy.aggregation import RunContext, StepContext, _keyed_sum
from scinfl.privacy.aggregation._context import _digest
from scinfl.privacy.aggregation._pairwise_participant import PairwiseParticipant

KINDS = {
    "keyed": {"sum_": "keyed"},
    "keyed with noise": {"sum_": "keyed", "noise": True},
    "pairwise": {"sum_": "pairwise"},
    "pairwise, with a site": {"sum_": "pairwise", "colludes": True},
}
N_MOVES = 30

pytestmark = pytest.mark.filterwarnings(f"ignore::{WeakNoiseWarning.__module__}.{WeakNoiseWarning.__name__}")


def play(folder, patch, kind, seed, *, n_moves=N_MOVES, seconds=60):
    """Number of accepted sums, and what was violated."""
    prepare(patch)
    witness = Witness(patch, key=KEY, min_sites=MIN_SITES)
    game = Game(folder / f"{kind}_{seed}", seed, witness, seconds=seconds, **KINDS[kind])
    violations = game.play(n_moves)
    return witness.n_accepted, violations


def games(folder, kind, seeds, **options):
    """Accepted sums of all games, and the violations of the first that has any."""
    n = 0
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.getLogger("scinfl"), "level", logging.CRITICAL)
            found, violations = play(folder, patch, kind, seed, **options)
        n += found
        if violations:
            return n, [f"seed {seed}: {own}" for own in violations]
    return n, []


@pytest.mark.parametrize("kind", KINDS)
def test_an_adversary_finds_nothing(tmp_path, kind):
    n, violations = games(tmp_path, kind, range(1))
    assert violations == []
    assert n > 50  # sums that sites accepted: games that stop at the first refusal would show nothing


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adversary_finds_nothing_in_long_games(tmp_path, kind):
    n, violations = games(tmp_path, kind, range(100, 112), n_moves=60)
    assert violations == []
    assert n > 1200


# ---- faults, put back one at a time


def _without(patch, *names, sums=()):
    """Masks that do not depend on these fields of a step and its sums."""

    def digest(context):
        hashes = {name: getattr(context, name).hex() for name in ("run", "advertisements", "history")}
        content = {**asdict(context), **hashes}
        content["sums"] = [{k: v for k, v in own.items() if k not in sums} for own in content["sums"]]
        return _digest("step", {name: value for name, value in content.items() if name not in names})

    patch.setattr(StepContext, "digest", property(digest))


def no_bounds(patch):
    """Fault 1: sites under different bounds share masks."""
    _without(patch, sums=["bound_log2"])


def no_difference_rule(patch):
    """Fault 2: another run may do without one site."""
    patch.setattr(Ledger, "_check", lambda *own: None)


def account_per_run(patch):
    """Fault 3: what an earlier run spent is not carried on."""
    patch.setattr(Ledger, "charges_on", lambda *own: {})


def blocking_mailbox(patch):
    """Fault 4: a question before the greeting waits for training, which waits for the greeting."""

    def hold(method):
        def held(box, run, message):
            with box._lock:
                box._lock.wait_for(lambda: box._run == run and (message.kind == "agree" or box._ready is not None))
            return method(box, run, message)

        return held

    patch.setattr(Mailbox, "_step", hold(Mailbox._step))
    patch.setattr(Mailbox, "_agree", hold(Mailbox._agree))


def any_step(patch):
    """Fault 5: a sum is taken for any step, and own uploads are not compared."""
    _without(patch, "step", "attempt", "history", "advertisements", sums=["round"])

    def latest(masking, position, sums):
        bounds = {own.purpose: masking.protection.bound_in(own) for own, _ in sums}
        return Upload(position, 0, bounds, {}, {})

    patch.setattr(Masking, "_own_upload", latest)


def any_facts(patch):
    """Fault 6: facts of few sites will do, and sites of different facts share masks."""
    few_facts(patch)
    patch.setattr(RunContext, "digest", property(lambda own: _digest("run", {**asdict(own), "facts_digest": ""})))


def few_facts(patch):
    """Half of fault 6: facts of few sites will do."""
    usual = _preflight.open_facts

    def opened(sealed, key, job, run, *, identities):
        any_number = SimpleNamespace(sites=job.sites, digest=job.digest, min_sites=1)
        return usual(sealed, key, any_number, run, identities=identities)

    patch.setattr(_run, "open_facts", opened)


def opened_twice(patch):
    """Under pairwise masks a sum that was opened may be repeated without a site."""
    usual = PairwiseParticipant.advertise

    def advertise(participant, purpose, number, *own):
        participant._exchanges.pop((purpose, number), None)
        return usual(participant, purpose, number, *own)

    patch.setattr(PairwiseParticipant, "advertise", advertise)


def hidden_members(patch):
    """Members are those of all advertisements, though each mask is made with those of its own sum."""
    usual = PairwiseMasking._mask

    def mask(masking, asked, places, encode):
        masking._look(places, sorted({ad["site"] for ad in asked["ads"]}), "asked")
        patch.setattr(masking, "_watch", None)
        own = [ad for ad in asked["ads"] if (ad["purpose"], ad["round"]) in places]
        return usual(masking, {**asked, "ads": own}, places, encode)

    patch.setattr(PairwiseMasking, "_mask", mask)


def nonce_of_context(patch):
    """A nonce that follows from what the site believes: the same question, asked again later, gets the same mask."""
    usual, own = KeyedSum._hide, threading.local()

    def hide(protection, upload, context):
        own.nonce = hashlib.sha256(context + upload.site.encode() + upload.purpose.encode()).digest()[:16]
        return usual(protection, upload, context)

    patch.setattr(KeyedSum, "_hide", hide)
    patch.setattr(_keyed_sum, "os", SimpleNamespace(urandom=lambda n: own.nonce[:n]))


FAULTS = [
    (no_bounds, "keyed", "1"),
    (no_bounds, "pairwise", "1"),
    (no_difference_rule, "keyed", "2"),
    (no_difference_rule, "pairwise", "2"),
    (account_per_run, "keyed with noise", "6"),
    (blocking_mailbox, "keyed", "5"),
    (blocking_mailbox, "pairwise", "5"),
    (any_step, "keyed", "1"),
    (any_step, "pairwise", "1"),
    (nonce_of_context, "keyed", "3"),
    (hidden_members, "pairwise, with a site", "2"),
    (any_facts, "keyed", "4"),
    (any_facts, "pairwise", "4"),
    (few_facts, "keyed", "4"),
    (opened_twice, "pairwise, with a site", "2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "kind", "number"), FAULTS, ids=lambda own: getattr(own, "__name__", own))
def test_a_fault_that_is_put_back_is_found(tmp_path, monkeypatch, fault, kind, number):
    fault(monkeypatch)
    _, violations = games(tmp_path, kind, range(12), seconds=4 if number == "5" else 60)
    assert violations, "the games found nothing"
    assert violations[0].split(": ")[1] == number, violations
