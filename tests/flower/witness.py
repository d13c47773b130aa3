"""What really happened at the sites of one process: each plaintext, each sum that was read, and what must hold of them.

The witness sits where integers are masked and sums are read. It compares what the code believes field by field, and
never by the digests that the masks derive from: code that leaves a field out of a digest is found out.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from itertools import combinations

import numpy as np

from scinfl.federation import Journal
from scinfl.flower.site._ledger import Ledger
from scinfl.flower.site._masking import Masking
from scinfl.flower.site._run import _Site
from scinfl.flower.site._upload_log import UploadLog
from scinfl.privacy import KeyedSum
from scinfl.privacy.aggregation import MASKED, FixedPoint
from scinfl.privacy.aggregation._masked_sum import MaskedSum, _sum_of
from scinfl.privacy.aggregation._pairwise_participant import masks

N_SITES = 4


class PowerLossError(Exception):
    """The machine of a site lost power."""


@dataclass(frozen=True, eq=False)
class Term:
    """What a site encoded, and all that it believed then."""

    site: str
    purpose: str
    round: int
    run: str
    belief: tuple
    facts: frozenset
    integers: np.ndarray


@dataclass(frozen=True, eq=False)
class Opened:
    """A sum that somebody can read."""

    terms: tuple[Term, ...]

    @property
    def members(self):
        return frozenset(term.site for term in self.terms)

    def shows_the_same_as(self, other):
        """Whether the difference of both sums is what those sent that are in one only."""
        one, two = self.terms[0], other.terms[0]
        if one.purpose != two.purpose:
            return False
        if one.run != two.run and max(one.round, two.round) <= 1:
            return True  # both follow from the same data
        own = {term.site: term.integers for term in other.terms}
        common = [(term.integers, own[term.site]) for term in self.terms if term.site in own]
        return bool(common) and all(np.array_equal(*pair) for pair in common)


class Witness:
    """Records and judges; `violations` starts with the number of the invariant."""

    def __init__(self, patch, *, key, min_sites):
        self.key, self.min_sites = key, min_sites
        self.n_accepted, self.violations, self.crashes = 0, [], {}
        self._patch(patch)
        self.forget()

    def forget(self):
        """Begin with other sites and other data."""
        self.terms, self.facts = {}, {}  # terms by site and nonce; names of the facts by site and run
        self._answered, self._masks, self._opened = {}, set(), {}
        self._tried = {}  # groups of terms under pairwise masks
        self._sites, self._released, self._charged = {}, {}, {}
        self.has_noise = False

    def _patch(self, patch):
        usual = {(cls, name): getattr(cls, name) for cls, name in _WATCHED}

        def mask(protection, update, integers, context):
            plain = integers.copy()
            masked = usual[MaskedSum, "_mask"](protection, update, integers, context)
            self._encoded(protection, masked, plain, context)
            return masked

        def read(protection, combined, members):
            numbers = usual[MaskedSum, "_read"](protection, combined, members)
            self._accepted(protection, combined, members, numbers)
            return numbers

        def train(site, mailbox, run, sealed):
            self.facts[site._name, run] = frozenset(sealed)
            self._sites[site._name] = site
            return usual[_Site, "_train"](site, mailbox, run, sealed)

        def write(log, content):
            self._crash("before upload", log._file)
            usual[UploadLog, "_write"](log, content)
            self._crash("after upload", log._file)

        def save(journal, *args, **kwargs):
            self._crash("before save", journal.path)
            usual[Journal, "save"](journal, *args, **kwargs)
            self._crash("after save", journal.path)

        def close(masking):
            usual[Masking, "close_sums"](masking)
            for own in masking.protection.__dict__.pop("unnoted", ()):
                self._open(*own)

        for (cls, name), function in zip(_WATCHED, (mask, read, train, write, save, close), strict=True):
            patch.setattr(cls, name, function)

    def _crash(self, moment, path):
        for site, when in list(self.crashes.items()):
            if when == moment and f"/site_{site}/" in f"{path}/":
                del self.crashes[site]
                raise PowerLossError

    def _check(self, holds, number, what):
        if not holds:
            self.violations.append(f"{number}: {what}")

    # ---- terms

    def _encoded(self, protection, masked, plain, context):
        update = masked.site, masked.purpose, masked.round
        run = protection.run_context.run
        facts = self.facts[masked.site, run]
        term = Term(*update, run, _belief(protection, context), facts, plain)
        self.terms[masked.site, masked.header["nonce"]] = term
        before = self._answered.setdefault((*update, term.belief), plain)
        if self.has_noise and masked.purpose == "training":
            own = _sum_of(context, masked)
            self._check_account(masked.site, FixedPoint(own.bits, 2.0**own.bound_log2).decode(plain))
        self._check(np.array_equal(before, plain), 3, f"{update} has two plaintexts in one context")
        mask = hashlib.sha256(masked.state[MASKED] - plain).digest()
        self._check(mask not in self._masks, 3, f"{update} has a mask that hid something else")
        self._masks.add(mask)

    def _check_account(self, site, numbers):
        """The same noise under another bound is rounded to other digits, and no further release."""
        own = self._sites[site]  # whose runs share one account, in the ledger
        charges = set(Ledger(own._kit, own._identity).charges_on(own._fingerprint))
        released = self._released.setdefault(site, [])
        if not any(np.allclose(numbers, before, rtol=0, atol=1e-5) for before in released):
            released.append(numbers)
        self._check(len(charges) >= len(released), 6, f"{site} spent {len(charges)} times, released {len(released)}")
        self._check(charges >= self._charged.get(site, set()), 6, f"the account of {site} fell")
        self._charged[site] = charges

    # ---- sums

    def _accepted(self, protection, combined, members, numbers):
        self.n_accepted += 1
        (reader,) = protection._identities
        context, run = protection._context_of(combined), protection.run_context.run
        what = f"{reader} read round {combined.round} of '{combined.purpose}' of {[own.site for own in members]}"
        terms = [self.terms.get((member.site, member.header["nonce"])) for member in members]
        if None in terms:
            self._check(False, 1, f"{what}, with what nobody encoded")
            return
        belief, facts = _belief(protection, context), self.facts[reader, run]
        for term in terms:
            self._check(term.belief[0] == belief[0], 4, f"{what}, though {term.site} believes {term.belief[0]}")
            self._check(term.belief == belief, 1, f"{what}, though {term.site} masked for {term.belief}, not {belief}")
            self._check(term.facts == facts, 4, f"{what}, though {term.site} had other facts")
        self._check(len(facts) >= self.min_sites, 4, f"{what}, under facts of {sorted(facts)}")
        own = _sum_of(context, combined)
        expected = FixedPoint(own.bits, 2.0**own.bound_log2).decode(_total(term.integers for term in terms))
        self._check(np.array_equal(numbers, expected), 1, f"{what} and got other numbers")
        # a site that loses power before it noted a sum knows nothing of it, nor of one that it did not keep
        own = reader, (run, context.step, combined.purpose), terms
        protection.__dict__.setdefault("unnoted", []).append(own)

    def _open(self, reader, place, terms):
        new, opened = Opened(tuple(terms)), self._opened.setdefault(reader, {})
        what = f"{reader} reads {place}"
        self._check(len(new.members) == len(terms) >= self.min_sites, 2, f"{what} of {sorted(new.members)} alone")
        for where, old in opened.items():
            differ = new.members ^ old.members
            if where != place and 0 < len(differ) < self.min_sites and new.shows_the_same_as(old):
                self._check(False, 2, f"{what} and {where}, which differ by {sorted(differ)}")
        opened[place] = new

    def try_to_open(self, uploads, seeds):
        """What server and one site with the key can read of uploads under pairwise masks, with seeds that they saw.

        Parameters
        ----------
        uploads
            All terms that the server saw.
        seeds
            All seeds that sites revealed.
        """
        by = {hashlib.sha256(seed).digest(): seed for seed in seeds}
        groups = {}
        for own in uploads:
            seed = by.get(own.header["commitment"])
            if seed is not None:
                if len(self._tried.get((own.purpose, own.header["exchange"]), ())) == N_SITES:
                    continue  # all of it was tried
                bare = own.state[MASKED] - masks(seed, len(own.state[MASKED]), own.state[MASKED].dtype)[0]
                bare -= self._key_stream(own)
                term = self.terms[own.site, own.header["nonce"]]
                groups.setdefault((own.purpose, own.header["exchange"]), {})[own.site] = bare, term
        for place, group in groups.items():
            if self._tried.get(place) == group.keys():
                continue
            self._tried[place] = group.keys()
            for n in range(1, len(group) + 1):
                for sites in combinations(sorted(group), n):
                    bare, terms = zip(*(group[site] for site in sites), strict=True)
                    if len({len(own) for own in bare}) == 1 and np.array_equal(
                        _total(bare), _total(term.integers for term in terms)
                    ):
                        self._open("the server with a site", (*place, sites), terms)

    def _key_stream(self, own):
        keyed = KeyedSum(self.key)
        size, kind = len(own.state[MASKED]), own.state[MASKED].dtype
        return keyed._stream(own.header["context"], own, own.site, own.header["nonce"], size, kind)[0]


_WATCHED = [
    (MaskedSum, "_mask"),
    (MaskedSum, "_read"),
    (_Site, "_train"),
    (UploadLog, "_write"),
    (Journal, "save"),
    (Masking, "close_sums"),
]


def _belief(protection, context):
    """All that a site believes: run, then the rest."""
    fields = (context.step, context.attempt, context.advertisements, context.history)
    return astuple(protection.run_context), fields, tuple(map(astuple, context.sums))


def _total(arrays):
    first, *others = arrays
    total = first.copy()
    for other in others:
        total += other
    return total
