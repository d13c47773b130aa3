"""A server that plays against the sites: at random, from a seed, and with openings that a clever one would try.

It is no `hypothesis` state machine: sites are threads, so the same moves need not fail twice, which that one refuses.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from dataclasses import replace

import numpy as np
from tests.flower.conftest import LocalFederation, job_text, make_cells
from tests.flower.evil import KEY, add, name
from tests.flower.toy_model import ToyTask

from scinfl.flower.protocol._message import Message, sums_message
from scinfl.flower.protocol._preflight import seal_facts
from scinfl.flower.setup._kit import pinned_identities
from scinfl.flower.site import _run
from scinfl.flower.site._mailbox import Mailbox
from scinfl.privacy.aggregation import MASKED, Advertisement, PairwiseServer
from scinfl.privacy.aggregation._linear_tag import PRIME

SITES = [f"hospital_{number}" for number in range(4)]
MIN_SITES = 3
NOISE = '\n[[protections]]\nclass = "UpdateDP"\nmax_norm = 1.0\nnoise_multiplier = 1.0\n'
_ODD = [-1, 0, 1, 2, 7, 2**70, 0.5, float("nan"), None, True, "x", "../x", [], {}, [[["hospital_0", "00"]]]]
_PURPOSES = ("means", "training", "evaluation")
_ALIKE = 5  # steps after which the next one has sums of the same purposes as the last one, a round later
_MOMENTS = ["before upload", "after upload", "before save", "after save"]


class HangsError(AssertionError):
    """A site neither answered nor refused a message in time."""


class Game:
    """One game.

    Parameters
    ----------
    folder
        Where sites live.
    seed
        Of all moves.
    witness
        Sees what happens at the sites.
    sum_
        ``"keyed"`` or ``"pairwise"``.
    noise
        Whether sites add noise, and count it.
    colludes
        Whether the last site gave the server its key and identity.
    seconds
        Within which a site answers or refuses.
    """

    def __init__(self, folder, seed, witness, sum_, *, noise=False, colludes=False, seconds=60):
        self.random, self.folder, self.witness = random.Random(seed), folder, witness
        self.is_pairwise, self.has_noise, self.colludes, self.seconds = sum_ == "pairwise", noise, colludes, seconds
        job = job_text(SITES, min_sites=MIN_SITES, n_rounds=3, more="validation_size = 0" * noise)
        self.job = job.replace("deadline", f'sum = "{sum_}"\ndeadline') + (NOISE if noise else "")
        self.n = self.n_worlds = 0  # of anything that must be fresh
        self.stopped, self.is_repeated = set(), False
        self.set_up()

    # ---- the world

    def set_up(self, facts_for=lambda site, facts: facts):
        """Sites that never met."""
        self.close()
        self.n_worlds += 1
        folder = self.folder / f"world_{self.n_worlds}"
        folder.mkdir(parents=True)
        self.witness.forget()
        self.witness.has_noise = self.has_noise
        cells = make_cells(n_cells=120, n_genes=6, n_sites=len(SITES))
        self.world = LocalFederation(folder, cells, KEY, self.job, sites=SITES, n_runs=100)
        self.data = {site: cells[cells.obs["site"] == site].copy() for site in SITES}
        self.threads = dict(zip(SITES, self.world._threads, strict=True))
        for box in self.world.mailboxes.values():
            box._patience = 2.0
        self.world.start()
        self.server = PairwiseServer(pinned_identities(folder / "kit" / "server"))
        self.facts, self.chains, self.wide, self.run = {}, {}, {}, ""  # facts by site, sums and bounds, by run
        self.sent, self.uploads, self.seeds, self.sums, self.ads = [], [], set(), [], []
        self.begin(facts_for)

    def close(self):
        """End the threads of all sites."""
        for site in SITES if self.n_worlds else ():
            self._end(site)

    def _end(self, site):
        self.world.mailboxes[site].handle(Message("end", {"reason": "power"}))
        self.threads[site].join(self.seconds)
        if self.threads[site].is_alive():
            msg = f"5: '{site}' does not end"
            raise HangsError(msg)

    def restart(self, site):
        """A site loses power, and is started again with what it keeps."""
        self._end(site)
        world = self.world
        world.errors.pop(site, None)
        self.stopped.discard(site)
        world.sites[site] = own = _run._Site(world.kit(site), self.data[site], KEY, world.lines.append, n_runs=100)
        world.mailboxes[site] = Mailbox(own._greet, patience=2.0)
        self.threads[site] = threading.Thread(target=world._train, args=(site,), daemon=True)
        self.threads[site].start()

    def handle(self, site, message):
        """What a site answers; it must, within a bound."""
        answers, until = [], time.monotonic() + self.seconds

        def ask():
            while not answers or (answers[-1].kind == "busy" and time.monotonic() < until):
                answers.append(self.world.mailboxes[site].handle(message))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not answers or answers[-1].kind == "busy":
            msg = f"5: '{site}' hangs on '{message.kind}'"
            raise HangsError(msg)
        self.sent.append((site, message))
        answer = answers[-1]
        if answer.kind == "failed":
            self.stopped.add(site)
        elif answer.kind == "finished":
            self.restart(site)
        self.uploads += answer.updates
        if answer.kind == "reveal":
            self.seeds |= {bytes.fromhex(seed) for seed in answer.fields["seeds"].values()}
        return answer

    # ---- what any server does

    def begin(self, facts_for=lambda site, facts: facts, *, run=None):
        """Begin a run, or an earlier one again."""
        self.n += 1
        self.run = run or f"r{self.n}"
        for site in list(self.stopped):
            self.restart(site)
        hellos = {site: self.handle(site, self._hello()) for site in SITES}
        facts = {site: own.fields["facts"] for site, own in hellos.items()}
        self.facts[self.run] = {site: facts_for(site, facts) for site in SITES}
        self.chains.setdefault(self.run, [])
        self.wide.setdefault(self.run, {})
        self.members = list(SITES)
        return [self.handle(site, self._agree(site)).kind for site in SITES]

    def _hello(self):
        return Message("hello", {"run": self.run, "job": self.world.job.text})

    def _agree(self, site):
        return Message("agree", {"run": self.run, "facts": self.facts[self.run][site]})

    def ask(self, site, step, before, **fields):
        """Ask for a step; a site that stopped or knows of nothing is started, and greeted, once."""
        heads = [{"step": own.fields["step"], "members": own.fields["members"]} for own in before]
        updates = tuple(update for own in before for update in own.updates)
        message = Message("step", {"run": self.run, "step": step, "sums": heads, "bounds": {}, **fields}, updates)
        if site in self.stopped:
            self.restart(site)
        answer = self.handle(site, message)
        if answer.kind == "hello first":
            self.handle(site, self._hello())
            self.handle(site, self._agree(site))
            answer = self.handle(site, message)
        if answer.kind == "repeat":
            bounds = answer.fields["bounds"]
            self.wide[self.run] |= {own: max(bounds[own], self.wide[self.run].get(own, 0.0)) for own in bounds}
            self.is_repeated = True
        return answer

    def collect(
        self, *, sites=SITES, before=None, step=None, bounds=None, attempts=None, ads_for=None, reveal_for=None
    ):
        """Terms of a step and seeds, as sites give them; each argument by site is what an evil server does."""
        before = before or (lambda site: self.chain)
        step = len(self.chain) if step is None else step
        bounds, attempts = bounds or {}, attempts or {}
        self.n += 1

        def ask(site, **fields):
            own = {"bounds": {**self.wide[self.run], **bounds.get(site, {})}, "attempt": attempts.get(site, self.n)}
            return self.ask(site, step, before(site), **own, **fields)

        if not self.is_pairwise:
            return [own for own in map(ask, sites) if own.kind == "step"], []
        advertised = {site: ask(site, phase="advertise").fields.get("ads") for site in sites}
        advertised = {site: ads for site, ads in advertised.items() if ads}
        self.ads += advertised.values()
        relayed = ads_for or (lambda site, ads: ads)
        terms = {}
        for site in advertised:
            heard = [ad for ads in relayed(site, advertised).values() for ad in ads]
            terms[site] = ask(site, phase="terms", ads=heard)
        terms = {site: own for site, own in terms.items() if own.kind == "step"}
        seeds = []
        for site in terms:
            members = reveal_for(site) if reveal_for else sorted(advertised)
            answer = ask(site, phase="reveal", sites=members)
            seeds += answer.fields.get("seeds", {}).values() if answer.kind == "reveal" else []
        return list(terms.values()), seeds

    @property
    def chain(self):
        """Sums of the present run."""
        return self.chains[self.run]

    def add(self, step, terms, *, header=True, later=0):
        """Sums of terms, whatever these are; ``None`` where that makes no sense."""
        by = {}
        for answer in terms:
            for update in answer.updates:
                by.setdefault(update.purpose, []).append(update)
        sums = []
        for _, own in sorted(by.items()):
            if len({(len(update.state[MASKED]), update.state[MASKED].dtype) for update in own}) > 1:
                return None
            combined = self._open(add(own), own)
            if combined is None:
                return None
            if not header:
                combined = replace(combined, header={k: v for k, v in combined.header.items() if k != "context"})
            combined = replace(combined, round=combined.round + later)
            sums.append((combined, [name(update) for update in own]))
        self.sums += [sums_message(step, sums)]
        return self.sums[-1] if sums else None

    def _open(self, combined, terms):
        if not self.is_pairwise:
            return combined
        try:
            by = {hashlib.sha256(seed).digest(): seed for seed in self.seeds}
            return self.server.open(combined, terms, {own.site: by[own.header["commitment"]] for own in terms})
        except KeyError:
            return None

    # ---- moves

    def honest(self, sites=None):
        """A step as it should be; ``False`` if that does not go on."""
        sites = sites or self.members
        self.is_repeated = False
        terms, _ = self.collect(sites=sites)
        if self.is_repeated:
            terms, _ = self.collect(sites=sites)
        forms = [own.updates[0].header["context"] for own in terms]
        usual = max(forms, key=forms.count, default=None)
        terms = [own for own, form in zip(terms, forms, strict=True) if form == usual]
        sums = self.add(len(self.chain), terms) if len(terms) >= MIN_SITES else None
        if sums is not None:
            self.chain.append(sums)
        else:
            self._recover()

    def _recover(self):
        kinds = self.begin()
        if kinds.count("ready") < MIN_SITES:
            self.set_up()  # sites that refuse all that a server can still ask for

    def deliver(self, forged):
        """Give each site the sum that is meant for it, and go on from there."""
        forged = {site: own for site, own in forged.items() if own is not None}
        step = len(self.chain)
        terms, _ = self.collect(sites=list(forged), before=lambda site: [*self.chain, forged[site]], step=step + 1)
        self.add(step + 1, terms, header=False)

    def other_bounds(self):
        """The others mask under a bound that makes their numbers vanish."""
        victim, wide = self.random.choice(SITES), 2.0 ** self.random.choice([18, 30, 40])
        bounds = {site: dict.fromkeys(_PURPOSES, wide) for site in SITES if site != victim}
        terms, _ = self.collect(bounds=bounds)
        sums = self.add(len(self.chain), terms, header=False)
        self.deliver(dict.fromkeys(SITES, sums))

    def other_attempts(self):
        """Sites are asked at different attempts."""
        self.n += 2
        terms, _ = self.collect(attempts={self.random.choice(SITES): self.n})
        self.deliver(dict.fromkeys(SITES, self.add(len(self.chain), terms, header=False)))

    def old_sum_later(self):
        """A step asked twice: one sum is given at once, the other as that of the next step."""
        step = len(self.chain)
        first, second = (self.collect()[0] for _ in range(2))
        if self.random.random() < 0.5:
            first, second = second, first
        now = self.add(step, second)
        later = self.add(step + 1, first, header=False, later=1)
        if now is None or later is None:
            return
        self.collect(before=lambda site: [*self.chain, now, later], step=step + 2)

    def mixed_terms(self):
        """Old terms among fresh ones, some twice, some without their site, some of few."""
        terms, _ = self.collect()
        if not terms:
            return
        kind = self.random.randrange(4)
        site = self.random.choice(terms).updates[0].site
        if kind == 0:
            again, _ = self.collect(sites=self.random.choice([SITES, SITES[:3]]))
            terms = [*again, *[own for own in terms if own.updates[0].site not in {t.updates[0].site for t in again}]]
        elif kind == 1:
            terms = [*terms, *[own for own in terms if own.updates[0].site == site]]
        elif kind == 2:
            terms = [own for own in terms if own.updates[0].site != site]
        else:
            terms = self.random.sample(terms, min(self.random.choice([1, 2]), len(terms)))
        self.deliver(dict.fromkeys(SITES, self.add(len(self.chain), terms, header=False)))

    def forked_sums(self):
        """Two proper sums, with and without a site."""
        terms, _ = self.collect()
        step = len(self.chain)
        without = [own for own in terms if own.updates[0].site != SITES[3]]
        one, two = self.add(step, terms), self.add(step, without)
        if one is None or two is None:
            return
        told = {site: self.random.choice([one, two]) for site in SITES}
        second, _ = self.collect(before=lambda site: [*self.chain, told[site]], step=step + 1)
        third = self.add(step + 1, second, header=False)
        if third is not None:
            self.collect(before=lambda site: [*self.chain, told[site], third], step=step + 2)
        self._recover()

    def old_sums(self):
        """Any sum of the past, under this step and round."""
        if not self.sums:
            return
        self.collect()
        sums, step = self.random.choice(self.sums), len(self.chain)
        later = self.random.choice([0, 1, 2])
        updates = tuple(replace(own, round=own.round + later) for own in sums.updates)
        forged = replace(sums, fields={**sums.fields, "step": step}, updates=updates)
        self.deliver(dict.fromkeys(self.random.choice([SITES, SITES[:2]]), forged))

    def asked_before(self):
        """A question once more, after another one was answered."""
        attempt = self.n + 1
        self.collect()
        self.collect()
        terms, _ = self.collect(attempts=dict.fromkeys(SITES, attempt))
        self.deliver(dict.fromkeys(SITES, self.add(len(self.chain), terms, header=False)))

    def old_sum_after_restart(self):
        """The sum that sites read last is that of the next step too, to sites that started again."""
        for _ in range(8):
            if len(self.chain) == _ALIKE:
                break
            self.honest()
        else:
            return
        for site in SITES:
            self.restart(site)
        last = self.chain[-1]
        updates = tuple(replace(own, round=own.round + 1) for own in last.updates)
        forged = replace(last, fields={**last.fields, "step": _ALIKE}, updates=updates)
        self.deliver(dict.fromkeys(SITES, forged))
        self._recover()

    def own_facts(self):
        """Each site is shown other facts; with the key, even other ones in the name of a site."""
        kind, same = self.random.randrange(4 if self.colludes else 3), self.random.random() < 0.5

        def facts_for(site, facts):
            if kind == 0:
                return {site: facts[site]}
            if kind == 1:
                left_out = self.random.choice(SITES)
                return {name: own for name, own in facts.items() if name != left_out}
            if kind == 2:
                return {name: facts[name] for name in sorted({SITES[1] if same else site, SITES[0]})}
            at = self.world.sites[site]
            forged = {**at._task.facts(), "labels": [*at._task.facts()["labels"], f"type_of_{self.random.random()}"]}
            sealed = seal_facts(forged, KEY, SITES[3], at._job, self.run, identities=at._identities())
            return {**facts, SITES[3]: sealed.hex()}

        self.random.choice([self.begin, self.set_up, self.set_up])(facts_for)
        self.honest_or_forged(2)
        self._recover()

    def honest_or_forged(self, n_steps):
        """Steps in which terms are added whatever the sites believe."""
        for _ in range(n_steps):
            terms, _ = self.collect()
            sums = self.add(len(self.chain), terms, header=False)
            if sums is None:
                return
            self.chain.append(sums)
        self.collect()

    def run_of_fewer(self):
        """Another run from the start, or the same one again, without a site."""
        lost = self.random.choice(SITES)
        left = [site for site in SITES if site != lost]
        kind = self.random.randrange(3)
        if kind == 0:  # it is left out of the run
            self.begin(lambda site, facts: {name: facts[name] for name in left})
        elif kind == 1:  # it is called lost in the run
            self.begin()
        else:  # the run that began with it goes on without it
            for site in SITES:
                self.restart(site)
            self.begin(lambda site, facts: {name: facts[name] for name in left}, run=self.random.choice([*self.facts]))
        for _ in range(2):
            self.honest(left)

    def other_run(self):
        """Another run of all, or an earlier one again."""
        self.begin(run=self.random.choice([None, None, *self.facts]))
        for _ in range(2):
            self.honest()

    def question_first(self):
        """A queued question reaches a site that was just started."""
        site = self.random.choice(SITES)
        self.restart(site)
        kind = self.random.choice(["step", "agree"])
        self.handle(site, Message("step", self._question()) if kind == "step" else self._agree(site))

    def _question(self):
        return {"run": self.run, "step": len(self.chain), "sums": [], "bounds": {}, "attempt": self.n}

    def power_loss(self):
        """A site loses power in the middle of a step."""
        self.witness.crashes = {site: self.random.choice(_MOMENTS) for site in self.random.sample(SITES, 2)}
        self.honest()
        self.witness.crashes = {}

    def replay(self):
        """An earlier message once more, to its site or to another."""
        for _ in range(3):
            site, message = self.random.choice(self.sent[-200:])
            self.handle(self.random.choice([site, *SITES]), message)

    def nonsense(self):
        """An earlier message with a field changed."""
        for _ in range(3):
            site, message = self.random.choice(self.sent[-200:])
            fields = dict(message.fields)
            fields[self.random.choice([*fields, "phase", "ads", "sites"])] = self.random.choice(_ODD)
            kind = self.random.choice([message.kind] * 4 + ["step", "hello", "agree", "what"])
            updates = message.updates[: self.random.choice([None, 0, 1])]
            self.handle(site, Message(kind, fields, updates))

    def changed_numbers(self):
        """A number, a tag or a member of a sum is changed."""
        terms, _ = self.collect()
        sums = self.add(len(self.chain), terms)
        if sums is None:
            return
        first, *others = sums.updates
        members = [list(own) for own in sums.fields["members"]]
        kind = self.random.randrange(3)
        if kind == 0:
            masked = first.state[MASKED].copy()
            place, multiples = self.random.randrange(len(masked)), [1, -1, PRIME, -PRIME, 2 * PRIME, -3 * PRIME]
            shift = np.array([self.random.choice(multiples) % 2**64], np.uint64)
            masked[place : place + 1] += shift.astype(masked.dtype)
            first = replace(first, state={MASKED: masked})
        elif kind == 1:
            first = replace(first, header={**first.header, "tag": self.random.randbytes(8)})
        else:
            members[0][0] = [members[0][0][0], self.random.randbytes(16).hex(), *members[0][0][2:]]
        forged = replace(sums, fields={**sums.fields, "members": members}, updates=(first, *others))
        self.deliver(dict.fromkeys(SITES, forged))

    def other_advertisements(self):
        """Sites are relayed other advertisements: fewer, old ones, or two of one site."""
        kind, victim = self.random.randrange(4), self.random.choice(SITES)

        def ads_for(site, ads):
            if site != victim:
                return ads
            if kind == 0:
                left_out = self.random.choice(SITES)
                return {name: own for name, own in ads.items() if name != left_out}
            if kind == 1:
                return {**ads, "old": self.random.choice(self.ads)}
            if kind == 2:
                return {name: self.random.choice(self.ads) if name != site else own for name, own in ads.items()}
            return {**ads, SITES[3]: [self._second(ad) for ad in ads.get(SITES[3], [])]}

        terms, _ = self.collect(ads_for=ads_for)
        self.deliver(dict.fromkeys(SITES, self.add(len(self.chain), terms, header=False)))

    def hidden_member(self):
        """A further run, in which a site is named in an advertisement that no mask is made with."""
        lost = self.random.choice(SITES)
        left = [site for site in SITES if site != lost]
        self.begin()

        def ads_for(site, ads):
            return {**ads, "hidden": [{**ad, "site": lost, "purpose": "nothing"} for own in ads.values() for ad in own]}

        for _ in range(2):
            terms, _ = self.collect(sites=left, ads_for=ads_for)
            sums = self.add(len(self.chain), terms)
            if sums is None:
                break
            self.chain.append(sums)
        self._recover()

    def _second(self, ad):
        """Another advertisement of the site that works with the server."""
        ad, identity = Advertisement.from_json(ad), self.world.sites[SITES[3]]._identity
        bare = replace(ad, public=self.random.randbytes(32))
        if self.colludes:
            bare = replace(bare, signature=identity.sign(bare.content()))
        return bare.to_json()

    def other_reveals(self):
        """After all terms are here, a site is called lost, and all are asked again."""
        left = [site for site in SITES if site != SITES[3]]
        tell = self.random.choice([None, lambda site: left, lambda site: left if site == SITES[0] else SITES])
        first, _ = self.collect(reveal_for=tell)
        second, _ = self.collect(sites=left)
        chosen = self.random.choice([first, second])
        self.deliver(dict.fromkeys(SITES, self.add(len(self.chain), chosen, header=False)))

    def play(self, n_moves):
        """Moves until the first violation; what was violated."""
        often = [self.honest] * 12 + [self.other_run] * 3
        evil = [
            *(self.other_bounds, self.other_attempts, self.old_sum_later, self.mixed_terms, self.forked_sums),
            *(self.old_sums, self.own_facts, self.own_facts, self.run_of_fewer, self.question_first, self.power_loss),
            *(self.replay, self.nonsense, self.changed_numbers),
            *(self.asked_before, self.old_sum_after_restart),
            *((self.other_advertisements, self.other_reveals, self.other_reveals) if self.is_pairwise else ()),
            *([self.hidden_member] if self.is_pairwise else []),
        ]
        self.moves = []
        try:
            for _ in range(n_moves):
                move = self.random.choice(often + evil)
                self.moves.append(move.__name__)
                move()
                if self.is_pairwise and self.colludes:
                    self.witness.try_to_open(self.uploads, self.seeds)
                if self.witness.violations:
                    break
            self.close()
        except HangsError as error:
            self.witness.violations.append(str(error))
        return self.witness.violations


def prepare(patch):
    """Let sites train a toy, and write without waiting for the disk."""
    patch.setattr(_run, "task_of", {"Classifier": ToyTask}.__getitem__)
    patch.setattr(os, "fsync", lambda number: None)
