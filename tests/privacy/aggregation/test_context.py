"""Sites that differ in anything that they believe make a sum that nobody can read."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from tests.privacy.aggregation.test_keyed_sum import SITES, make_updates, without_arrays

from scinfl._errors import TamperedSumError
from scinfl.federation import FedAvg
from scinfl.privacy import Identity, Key, KeyedSum, PairwiseSum
from scinfl.privacy.aggregation import MASKED, PairwiseServer, RunContext, StepContext, SumContext, digest_of
from scinfl.privacy.aggregation._linear_tag import PRIME

PLACE = ("training", 1)
OTHER = {str: lambda value: value + "x", int: lambda value: value + 1, bytes: lambda value: value + b"x"}


def add(terms):
    """Plain modular addition, which compares nothing, and cuts or fills up what does not fit."""
    n, dtype = len(terms[0].state[MASKED]), terms[0].state[MASKED].dtype
    total = np.zeros(n, dtype)
    for term in terms:
        own = term.state[MASKED][:n].astype(dtype)
        total[: len(own)] += own
    tag = sum(int.from_bytes(term.header.get("tag", b""), "big") for term in terms) % PRIME
    header = {**terms[0].header, **({"tag": tag.to_bytes(8, "big")} if "tag" in terms[0].header else {})}
    return replace(terms[0], site="", state={MASKED: total}, header=header)


def random_text(generator):
    return "".join(generator.choice(list('ab/"{},:\\ é'), generator.integers(6)))


def random_context(generator):
    run = RunContext(
        random_text(generator),
        int(generator.integers(5)),
        *(random_text(generator) for _ in range(4)),
        protocol=int(generator.integers(1, 4)),
    )
    sums = [
        SumContext(random_text(generator), *map(int, generator.integers(1, 70, 4)))
        for _ in range(generator.integers(1, 4))
    ]
    step, attempt = map(int, generator.integers(9, size=2))
    return run, StepContext(
        run.digest, step, attempt, tuple(sums), *(generator.bytes(generator.integers(3)) for _ in "ah")
    )


def variants(run, step):
    """All contexts that differ from this one in exactly one field."""
    for field in fields(run):
        value = getattr(run, field.name)
        yield replace(step, run=replace(run, **{field.name: OTHER[type(value)](value)}).digest)
    for name in ("step", "attempt", "advertisements", "history"):
        yield replace(step, **{name: OTHER[type(getattr(step, name))](getattr(step, name))})
    for number, own in enumerate(step.sums):
        for field in fields(own):
            value = getattr(own, field.name)
            changed = replace(own, **{field.name: OTHER[type(value)](value)})
            yield replace(step, sums=(*step.sums[:number], changed, *step.sums[number + 1 :]))
    yield replace(step, sums=(*step.sums, step.sums[0]))
    yield replace(step, sums=step.sums[:-1])


def test_contexts_that_differ_in_one_field_have_different_digests():
    generator = np.random.default_rng(0)
    for _ in range(60):
        run, step = random_context(generator)
        others = list(variants(run, step))
        assert replace(step).digest == step.digest
        digests = {own.digest for own in others}
        assert step.digest not in digests
        assert len(digests) == len(others)


def test_parts_of_a_list_cannot_be_shifted():
    assert digest_of([]) == b""
    assert len({digest_of(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], [b"", "abc"])}) == 5


# ---- what becomes of a sum


class Fields:
    """What the sites of a run believe; one of them may believe something else."""

    def __init__(self):
        self.run = RunContext("test-federation", 1, "r", "job", "facts", "identities")
        self.step, self.attempt, self.bound, self.bits, self.n = 3, 1, 16, 64, 50
        self.history = b"earlier sums"
        self.places = [PLACE]

    def but(self, what):
        other = Fields()
        if what in {field.name for field in fields(RunContext)}:
            value = getattr(other.run, what)
            other.run = replace(other.run, **{what: OTHER[type(value)](value)})
        elif what == "place":
            other.places = [("training", 2)]
        elif what == "sums":
            other.places = [PLACE, ("total of training", 0)]
        else:
            setattr(
                other,
                what,
                {"bound": 18, "bits": 32, "n": 51, "history": b"others"}.get(what) or getattr(other, what) + 1,
            )
        return other


RUN = [field.name for field in fields(RunContext)]
DIFFER = [*RUN, "step", "attempt", "place", "sums", "bound", "bits", "n", "history"]


def keyed_site(key, site, believes, identities):
    protection = KeyedSum(key, bits=believes.bits, bound=2.0**16, identities={site: identities[site]})
    protection.open_run(believes.run)
    return prepared(protection, site, believes)


def prepared(protection, site, believes):
    (update,) = [own for own in make_updates(believes.n, round=believes.places[0][1]) if own.site == site]
    protection.expect(float(sum(SITES.values())), update)
    if believes.bound != 16:
        protection.widen("training", 2.0**believes.bound)
    return protection, update


@pytest.mark.parametrize("what", [None, *DIFFER])
@pytest.mark.parametrize("odd", ["a", "c"])
def test_a_keyed_sum_of_sites_that_differ_is_not_read_by_any(key, what, odd):
    identities = {site: Identity.generate(site) for site in SITES}
    beliefs = {site: Fields().but(what) if site == odd and what else Fields() for site in SITES}
    at, sent = {}, []
    for site, believes in beliefs.items():
        at[site], update = keyed_site(key, site, believes, identities)
        at[site].open_step(believes.step, believes.places, attempt=believes.attempt, history=believes.history)
        sent.append(at[site].encode(update))
    members = without_arrays(sent)
    for site, believes in beliefs.items():
        first = [own for own in sent if own.site == site]
        combined = add(first + [own for own in sent if own.site != site])  # as that site likes it best
        assert (combined.purpose, combined.round) == believes.places[0]
        if what is None:
            expected = FedAvg().reduce(make_updates()).state["b"]
            np.testing.assert_allclose(at[site].decode(combined, members).state["b"], expected, atol=1e-12)
            continue
        with pytest.raises(TamperedSumError, match="believe different things"):
            at[site].decode(combined, members)


class Network:
    """Sites of a pairwise sum, each with beliefs of its own, and a server that compares nothing."""

    def __init__(self, key, beliefs):
        identities = {site: Identity.generate(site) for site in SITES}
        pinned = {site: identity.public for site, identity in identities.items()}
        self.server, self.beliefs, self.at, self.updates = PairwiseServer(pinned), beliefs, {}, {}
        for site, believes in beliefs.items():
            protection = PairwiseSum(
                key, bits=believes.bits, bound=2.0**16, identities={site: identities[site]}, pinned=pinned
            )
            protection.open_run(believes.run)
            self.at[site], self.updates[site] = prepared(protection, site, believes)

    def exchange(self):
        ads = [
            at.site(site).advertise(purpose, number, self.beliefs[site].attempt, self.beliefs[site].step)
            for site, at in self.at.items()
            for purpose, number in self.beliefs[site].places
        ]
        for site, at in self.at.items():
            for place in self.beliefs[site].places:
                at.receive([ad for ad in ads if (ad.purpose, ad.round) == place])

    def sum(self):
        sent = []
        for site, at in self.at.items():
            believes = self.beliefs[site]
            exchanges = [at.exchange_of(place) for place in sorted(believes.places)]
            options = {"attempt": believes.attempt, "exchanges": exchanges, "history": believes.history}
            at.open_step(believes.step, believes.places, **options)
            sent.append(at.encode(self.updates[site]))
        seeds = {site: at.site(site).reveal(*PLACE, list(SITES)) for site, at in self.at.items()}
        return self.server.open(add(sent), sent, seeds), without_arrays(sent), sent


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("what", [*RUN, "step", "attempt", "place", "sums"])
def test_sites_that_differ_do_not_even_exchange_pairwise_masks(key, keyed, what):
    network = Network(key if keyed else None, {"a": Fields(), "b": Fields(), "c": Fields().but(what)})
    with pytest.raises((TamperedSumError, ValueError), match=r"believe different things|at least 3 sites in"):
        network.exchange()


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("what", [None, "bound", "n", "bits", "history"])
def test_a_pairwise_sum_of_sites_that_differ_after_the_exchange_is_noise(key, keyed, what):
    beliefs = {"a": Fields(), "b": Fields(), "c": Fields().but(what) if what else Fields()}
    network = Network(key if keyed else None, beliefs)
    network.exchange()
    combined, members, sent = network.sum()
    if what is None:
        assert np.isfinite(network.at["a"].decode(combined, members).state["w"]).all()
        return
    if keyed:
        for site in "abc":
            with pytest.raises(TamperedSumError, match=r"believe|integers as a sum"):
                network.at[site].decode(combined, members)
        return
    values = combined.state[MASKED].view(np.int64) / 2.0**62 * 2.0**16  # what the server would read
    assert np.median(np.abs(values)) > 1e3
    assert np.corrcoef(values[:50], network.updates["a"].state["b"])[0, 1] < 0.5
    assert len(sent) == 3


# ---- bounds and steps at a protection


def widest(key, kind):
    return KeyedSum(key, bits=32) if kind == "keyed" else PairwiseSum(key, bits=32)


@pytest.mark.parametrize("kind", ["keyed", "pairwise"])
@pytest.mark.parametrize(
    "bound",
    [2.0**127, 2.0**41, 4.0, 0.0, -8.0, 24.0, float("nan"), float("inf"), 10**400, "16"],
    ids=lambda own: repr(own)[:9],
)
def test_only_bounds_that_a_sum_is_repeated_with_are_taken(key, kind, bound):
    protection = widest(key, kind)
    with pytest.raises(TamperedSumError, match=r"power of two from 8 to .* found .*do not trust this server"):
        protection.widen("training", bound)
    protection.widen("training", 8.0)
    protection.widen("training", 32)
    assert protection.bound_of("training") == 32.0
    with pytest.raises(TamperedSumError, match="from 32 to"):
        protection.widen("training", 16.0)


@pytest.mark.parametrize("kind", ["keyed", "pairwise"])
def test_others_that_mask_nothing_do_not_show_a_site(key, kind):
    """Under the widest bound the numbers of 32 bits of all others are zero, so that their sum is one update."""
    identities = {site: Identity.generate(site) for site in SITES}
    beliefs = {site: Fields().but("bits") for site in SITES}
    for site in "bc":
        beliefs[site].bound = 40
    if kind == "pairwise":
        network = Network(key, beliefs)
        network.exchange()
        combined, members, _ = network.sum()
        at = network.at
    else:
        at, sent = {}, []
        for site, believes in beliefs.items():
            at[site], update = keyed_site(key, site, believes, identities)
            at[site].open_step(believes.step, believes.places, attempt=believes.attempt, history=believes.history)
            sent.append(at[site].encode(update))
        combined, members = add(sent), without_arrays(sent)
    for site in SITES:
        with pytest.raises(TamperedSumError, match="believe"):
            at[site].decode(combined, members)


def test_a_sum_is_only_read_in_the_step_that_asked_for_it(key):
    protection = KeyedSum(key)
    update = make_updates()[0]
    for purpose in ("training", "evaluation"):
        protection.expect(60.0, replace(update, purpose=purpose))
    protection.open_step(5, [("training", 4)])
    sent = protection.encode(replace(update, round=4))
    for wrong in ({"round": 1}, {"purpose": "evaluation"}):
        with pytest.raises(TamperedSumError, match=r"step 5 asks for \(round 4 of 'training'\), found round .* of '"):
            protection.encode(replace(update, **{"round": 4, **wrong}))
        with pytest.raises(TamperedSumError, match="belongs to another step"):
            protection.decode(replace(sent, **wrong), [replace(sent, site=site) for site in SITES])
    with pytest.raises(TamperedSumError, match="number of an attempt, found -1"):
        protection.open_step(5, [("training", 4)], attempt=-1)
    with pytest.raises(RuntimeError, match="what a sum of 'changes' holds, found nothing"):
        protection.open_step(5, [("changes", 0)])


def test_uploads_of_an_earlier_attempt_of_one_process_are_not_added_to_a_later_one(key):
    protection, updates = KeyedSum(key), make_updates()
    protection.agree("training", {site: float(n) for site, n in SITES.items()})
    protection.exchange(*PLACE, list(SITES))
    old = protection.encode(updates[0])
    protection.exchange(*PLACE, list(SITES))
    fresh = [protection.encode(update) for update in updates[1:]]
    with pytest.raises(ValueError, match=r"another attempt, context.*Compare job, facts and identities"):
        protection.combine([*fresh, old])
    combined = add([*fresh, old])
    with pytest.raises(TamperedSumError, match="believe"):
        protection.decode(combined, without_arrays([*fresh, old]))


def test_a_run_that_begins_forgets_what_was_masked_before():
    key = Key.generate("lung")
    protection = PairwiseSum(key)
    protection.agree("training", {site: float(n) for site, n in SITES.items()})
    protection.exchange(*PLACE, list(SITES))
    sent = [protection.encode(update) for update in make_updates()]
    protection.open_run(RunContext("lung", 1, "another"))
    with pytest.raises(TamperedSumError, match=r"believe|exchanged for"):
        protection.decode(add(sent), without_arrays(sent))
