"""A server without the key that asks sites whatever it likes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from tests.flower.conftest import LocalFederation, job_text, make_cells

from scinfl._errors import TamperedSumError
from scinfl.flower.protocol._message import Message, sums_message
from scinfl.flower.setup._kit import pinned_identities
from scinfl.privacy import Key
from scinfl.privacy.aggregation import MASKED, PairwiseServer
from scinfl.privacy.aggregation._linear_tag import PRIME

KEY = Key(bytes(range(32)), federation="test-federation")
SECONDS = 60  # within which a site answers or refuses, on a busy machine
BELIEFS = "bounds, shapes, step, round, earlier sums, run, job, facts, key version or identities"


def add(terms):
    """Plain modular addition, which compares nothing."""
    total = terms[0].state[MASKED].copy()
    for term in terms[1:]:
        total += term.state[MASKED]
    tag = sum(int.from_bytes(term.header["tag"], "big") for term in terms) % PRIME
    header = {**terms[0].header, "tag": tag.to_bytes(8, "big")}
    return replace(terms[0], site="", state={MASKED: total}, header=header)


def name(term):
    return term.site, term.header["nonce"].hex(), term.header.get("exchange", b"").hex()


class Evil:
    """A server without the key, over unmodified sites."""

    def __init__(self, folder, job=None, **options):
        folder.mkdir(exist_ok=True)
        job = job or job_text(n_rounds=6, more="validation_size = 0")
        self.federation = LocalFederation(folder, make_cells(), KEY, job, **options)
        self.sites = list(self.federation.sites)
        self.runs = dict.fromkeys(self.sites, "r0")
        self.is_pairwise = self.federation.job.sum == "pairwise"
        self.server = PairwiseServer(pinned_identities(folder / "kit" / "server"))
        self.seen = []

    def handle(self, site, message):
        """What a site answers; fails if it does not within a bound."""
        answers, until = [], time.monotonic() + SECONDS

        def ask():
            while not answers or (answers[-1].kind == "busy" and time.monotonic() < until):
                answers.append(self.federation.mailboxes[site].handle(message))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(SECONDS)
        assert answers, f"'{site}' hangs on '{message.kind}'"
        return answers[-1]

    def start(self, facts_for=lambda site, facts: facts):
        self.federation.start()
        return self.start_run(facts_for)

    def start_run(self, facts_for=lambda site, facts: facts):
        facts = {}
        for site, run in self.runs.items():
            hello = self.handle(site, Message("hello", {"run": run, "job": self.federation.job.text}))
            facts[site] = hello.fields["facts"]
        self.ready = {
            site: self.handle(site, Message("agree", {"run": run, "facts": facts_for(site, facts)}))
            for site, run in self.runs.items()
        }
        return self

    def ask(self, site, step, sums=(), **fields):
        heads = [{"step": own.fields["step"], "members": own.fields["members"]} for own in sums]
        updates = tuple(update for own in sums for update in own.updates)
        asked = {"run": self.runs[site], "step": step, "sums": heads, "bounds": {}, **fields}
        return self.handle(site, Message("step", asked, updates))

    def sums_of(self, step, answers, seeds=None):
        by = {}
        for answer in answers:
            for update in answer.updates:
                by.setdefault(update.purpose, []).append(update)
        sums = []
        for purpose, terms in sorted(by.items()):
            combined = add(terms)
            if seeds is not None:
                combined = self.server.open(
                    combined, terms, {s: bytes.fromhex(own[purpose]) for s, own in seeds.items()}
                )
            sums.append((combined, [name(term) for term in terms]))
        return sums_message(step, sums)

    def step(self, step, before=(), bounds=lambda site: {}):
        """Ask all sites for a step, and add what they send."""
        if not self.is_pairwise:
            answers = [self.ask(site, step, before, bounds=bounds(site)) for site in self.sites]
            self.seen.append(answers)
            return self.sums_of(step, answers) if all(own.kind == "step" for own in answers) else answers
        phase = {"attempt": 1}
        ads = [self.ask(site, step, before, phase="advertise", bounds=bounds(site), **phase) for site in self.sites]
        if any(own.kind != "advertise" for own in ads):
            return ads
        ads = [ad for own in ads for ad in own.fields["ads"]]
        answers = [self.ask(s, step, phase="terms", ads=ads, bounds=bounds(s), **phase) for s in self.sites]
        if any(own.kind != "step" for own in answers):
            return answers
        seeds = {s: self.ask(s, step, phase="reveal", sites=self.sites, **phase).fields["seeds"] for s in self.sites}
        return self.sums_of(step, answers, seeds)

    def refusals(self, match, *, sites=None):
        """All sites stopped, for the reason given, and wrote no model."""
        for site, thread in zip(self.federation.sites, self.federation._threads, strict=True):
            if site in (sites or self.sites):
                thread.join(SECONDS)
                assert not thread.is_alive(), f"'{site}' hangs"
                error = self.federation.errors[site]
                assert isinstance(error, TamperedSumError)
                assert match in str(error)
                assert not (self.federation.kit(site) / "model").exists()


def job_of(sum_, **options):
    job = job_text(n_rounds=6, more="validation_size = 0", **options)
    return job.replace("deadline", 'sum = "pairwise"\ndeadline') if sum_ == "pairwise" else job
