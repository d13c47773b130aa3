"""The run at the server: asks sites for steps, adds their masked terms, and keeps the sums."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scinfl._checks import first_of
from scinfl.federation import Update
from scinfl.flower._format import in_bytes, readable
from scinfl.flower.protocol._difference import describe_difference, find_difference
from scinfl.flower.protocol._limits import checked_count
from scinfl.flower.protocol._message import Message, sums_message
from scinfl.flower.protocol._preflight import check_hello
from scinfl.flower.protocol._round_history import WITH_ROUNDS
from scinfl.flower.server._aggregation import Aggregation, StoppedError
from scinfl.flower.server._pairwise_aggregation import PairwiseAggregation
from scinfl.flower.server._participant import (
    Participant,
    Participants,
    Transport,
    checks_of,
    compare_sites,
    dismiss,
    named,
    refuse_other_job,
)
from scinfl.flower.server._run_folder import RunFolder
from scinfl.flower.server._status import StatusFile, status_of
from scinfl.flower.setup._job import Job
from scinfl.privacy import PublicIdentity
from scinfl.privacy.aggregation import MASKED, Aggregator, PairwiseServer, default_bound, purpose_of

_REMIND = 30.0
_GONE = 30.0  # seconds to wait for a site that left without reporting that it has the model
_SECONDS_TO_MAKE_THE_MODEL = 180.0  # at least, for a site that is here and catches up: it imports and sets up first
_MAX_REFUSALS = 3
_SECONDS_TO_GREET = 20.0  # after which the same is asked again: one lost message should not hold up the start
_MOST_ATTEMPTS = 1_000_000  # at one step, by one server
_ANSWERS = ("step", "repeat", "advertise", "reveal")
_HERE = ("greeted", "ready", "finished")
_AT_WORK = ("new", "greeted", "ready")


class Coordinator:
    """Runs a job over sites; holds no key, reads no number.

    Parameters
    ----------
    folder
        Where run, sums, history and audit log are kept.
    job
        What is trained.
    identities
        Pinned identity of every site: what they did not sign is refused.
    report
        Called with lines for the operator.
    resume
        Go on with the run in the folder.
    expected
        Sites that may take part; all of the job by default.
    poll
        Seconds between two looks for answers.
    progress
        Show a progress bar over the rounds.
    moves
        Whether a site that starts again may be another node, which takes the place of the one before.

    Raises
    ------
    ValueError
        If the folder holds another run.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        identities: Mapping[str, PublicIdentity],
        report: Callable[[str], None],
        *,
        resume: bool = False,
        expected: Collection[str] | None = None,
        poll: float = 0.02,
        progress: bool = False,
        moves: bool = False,
    ) -> None:
        self._expected = set(job.sites if expected is None else expected)
        self._job, self._identities, self._report, self._poll, self._moves = job, identities, report, poll, moves
        missing = sorted(set(job.sites) - identities.keys())
        if missing:
            msg = f"Expected the identity of every site of the job, found none of {first_of(missing)}. Pin them."
            raise ValueError(msg)
        self._server = (PairwiseServer if job.sum == "pairwise" else Aggregator)(identities)
        self._kept = RunFolder(folder, job, resume=resume)
        self._journal = self._kept.journal
        self._participants = Participants()
        self._tickets: dict[str, tuple[Participant, tuple[object, ...]]] = {}  # of those that left since, too
        self._finished: set[str] = set()
        self._failed: dict[str, str] = {}  # why, by site
        self._used = self._kept.nonces()
        self._reported: set[str] = set()
        self._met: set[str] = set()
        self._bar = tqdm(total=job.n_rounds, disable=not progress, unit="round", desc="Training")
        self._agreed: dict[str, str] = {}
        self._needed = _Needed(job.min_sites)
        self._started = self._reminded = self._answered = time.monotonic()
        self._slow: set[str] = set()
        self._last: set[str] = set(self._expected) if self._kept.n_sums else set()
        self._repeats: Counter[tuple[str, str]] = Counter()  # of sites that asked for wider bounds, by purpose
        self._status, self._n_bytes = StatusFile(folder), 0
        self._lost: Counter[str] = Counter()  # exchanges of masks in a row that a site did not end
        self._aggregation = self._next_aggregation()

    # ---- the loop

    def run(self, transport: Transport) -> None:
        """Train until all sites have the model.

        Raises
        ------
        ValueError
            If sites differ in what must be the same.
        RuntimeError
            If too few sites answer.
        """
        try:
            while not self._is_finished():
                self._look_around(transport)
                self._ask(transport)
                for ticket, message in transport.receive(self._tickets.keys()):
                    self._take(*self._tickets.pop(ticket), message)
                self._advance()
                time.sleep(self._poll)
        except (ValueError, RuntimeError) as error:
            self._journal.log("stopped", reason=str(error))
            self._report_status("stopped", reason=str(error))
            dismiss(transport, self._participants, self._kept.run, error, self._poll)
            raise
        finally:
            self._bar.close()
        self._journal.log("finished", rounds=self._kept.n_rounds)
        self._report_status("finished")

    def _look_around(self, transport: Transport) -> None:
        for gone in self._participants.follow(transport.nodes()):
            if gone.stage not in ("new", "refused") and gone.site not in self._finished:
                self._report(f"site '{gone.site}' is gone")

    def _ask(self, transport: Transport) -> None:
        for number, participant in self._participants.items():
            if not participant.is_asked and (message := self._message_for(participant)) is not None:
                seconds = _SECONDS_TO_GREET if message.kind in ("hello", "agree") else self._job.deadline + 60
                ticket = transport.send(number, message, seconds=seconds)
                self._tickets[ticket] = (participant, self._aggregation.turn)
                participant.is_asked = True

    def _message_for(self, participant: Participant) -> Message | None:
        if participant.reason:
            reason, participant.reason = participant.reason, ""
            return Message("end", {"run": self._kept.run, "reason": reason})
        if participant.stage == "new":
            return Message("hello", {"run": self._kept.run, "job": self._job.text})
        if participant.stage == "greeted" and self._kept.facts:
            return Message("agree", {"run": self._kept.run, "facts": self._kept.facts})
        if participant.stage == "ready" and (asked := self._aggregation.asks(str(participant.site))) is not None:
            sums = self._kept.sums_from(participant.position)
            heads = [{"step": own.fields["step"], "members": own.fields["members"]} for own in sums]
            updates = tuple(update for own in sums for update in own.updates)
            fields = {"run": self._kept.run, "step": self._kept.n_sums, "sums": heads, **asked}
            return Message("step", fields, updates)
        return None

    def _next_aggregation(self) -> Aggregation:
        """Begin the next step."""
        options: dict[str, Any] = {
            "min_sites": self._needed.most,
            "deadline": self._job.deadline,
            "journal": self._journal,
            "report": self._report,
            "step": self._kept.n_sums,
            "first_bound": default_bound(self._job.bits),
            "repeats": self._repeats,
            "founders": self._kept.founders,
        }
        given = (self._server, self._used, self._kept.bounds)
        if self._job.sum == "keyed":
            return Aggregation(*given, **options)
        options |= {"first_attempt": self._kept.n_starts * _MOST_ATTEMPTS + 1, "lost": self._lost}
        return PairwiseAggregation(*given, folder=self._kept.path, **options)

    # ---- answers

    def _take(self, participant: Participant, asked: tuple[object, ...], message: Message | None) -> None:
        participant.is_asked = False
        if message is None:
            return
        self._answered = time.monotonic()
        if message.kind == "busy":
            return
        self._slow.discard(str(participant.site))
        try:
            if asked != self._aggregation.turn and message.kind in _ANSWERS:
                participant.position = self._position_in(message)
                self._journal.log("late", site=participant.site, step=self._kept.n_sums)
                return
            {
                "hello": self._take_hello,
                "ready": self._take_ready,
                **dict.fromkeys(_ANSWERS, self._take_step),
                "behind": self._take_behind,
                "finished": self._take_finished,
                "failed": self._take_failed,
                "bye": self._take_failed,
                "hello first": self._take_restarted,
                "unread": self._take_unread,
            }[message.kind](participant, message)
        except (OSError, StoppedError):
            raise
        except Exception as error:  # noqa: BLE001 (whatever a site sent: it ends no run)
            participant.n_refused += 1
            if participant.n_refused >= _MAX_REFUSALS:
                participant.stage = "refused"
            reason = readable(error) or type(error).__name__
            participant.reason = reason if participant.stage == "refused" else ""
            self._journal.log("refused", site=participant.site, kind=message.kind[:20], reason=reason)
            self._report(f"refused an answer of {named(participant)}: {reason}")

    def _take_hello(self, participant: Participant, message: Message) -> None:
        hello = dict(message.fields)
        signature = bytes.fromhex(hello.pop("signature"))
        site = str(hello["site"])
        if site not in self._expected:
            msg = f"site '{site}' is not in the job, or revoked. Name it in `sites`, and send the job to all sites"
            raise ValueError(msg)
        check_hello(self._identities[site], signature, hello)
        self._participants.make_room(participant, site, moves=self._moves)
        participant.site = site
        refuse_other_job(participant, hello, self._job.digest)
        participant.hello, participant.stage = hello, "greeted"
        self._failed.pop(site, None)
        if self._kept.facts:
            self._admit(participant, site)
        back = "back" if site in self._met else "here"
        self._met.add(site)
        self._report(f"site '{site}' is {back} ({len(self._participants.sites(*_HERE))} of {len(self._expected)})")

    def _admit(self, participant: Participant, site: str) -> None:
        """Compare a site that comes late, or again, with those that began."""
        checks = {**self._kept.checks, site: checks_of(participant.hello)}
        try:
            compare_sites(checks)
        except ValueError:
            participant.stage = "refused"
            raise
        self._kept.checks[site] = checks[site]
        self._kept.write()  # not its labels: the network has those that the run began with

    def _take_ready(self, participant: Participant, message: Message) -> None:
        site, agreed = str(participant.site), str(message.fields["agreed"])
        self._agreed[site] = agreed
        (usual, n), *others = Counter(self._agreed.values()).most_common()
        if not self._kept.agreed and n >= self._job.min_sites:
            self._kept.agreed = usual
            self._kept.write()
        if others and not self._kept.agreed and self._agreed.keys() >= self._kept.facts.keys():
            msg = (
                "Expected all sites to agree on labels or perturbations, features and gene ontology, found that they "
                "do not. Compare the files that the sites read, and start the server again."
            )
            raise StoppedError(msg)
        if self._kept.agreed not in ("", agreed):
            participant.stage = "refused"
            msg = "it knows other labels, perturbations or features than those that the run began with"
            raise ValueError(msg)
        self._needed[site] = checked_count("a number of sites", message.fields["least"], len(self._kept.facts))
        self._aggregation.min_sites = self._needed.most
        participant.position, participant.stage = self._position_in(message), "ready"
        self._aggregation.forget(site)

    def _position_in(self, message: Message) -> int:
        """Step of the run that a site is at."""
        position = checked_count("a position", message.fields["position"])
        if position > self._kept.n_sums:
            msg = f"it is at step {position}, the run at step {self._kept.n_sums}"
            raise ValueError(msg)
        return position

    def _take_behind(self, participant: Participant, message: Message) -> None:
        position = self._position_in(message)
        if position == participant.position:
            msg = f"it was at step {position} before, and brings nothing for it"
            raise ValueError(msg)
        participant.position = position

    def _take_restarted(self, participant: Participant, message: Message) -> None:
        """A site that started again knows nothing of this run: it is greeted first."""
        del message
        participant.stage = "new"

    def _take_unread(self, participant: Participant, message: Message) -> None:
        del participant
        msg = f"it could not use a message: {message.fields.get('message', '')}"
        raise ValueError(msg)

    def _take_step(self, participant: Participant, message: Message) -> None:
        position = self._position_in(message)
        self._aggregation.take(str(participant.site), message)
        if message.kind == "repeat":
            self._kept.write()
        participant.position = position

    def _take_finished(self, participant: Participant, message: Message) -> None:
        del message
        if not self._kept.n_sums:
            msg = "it has a model, though nothing was added yet"
            raise ValueError(msg)
        participant.stage = "finished"
        self._finished.add(str(participant.site))
        self._report(f"site '{participant.site}' has the model")
        if not self._kept.is_closing and 2 * len(self._finished & self._last) >= len(self._last):
            self._kept.close()  # not on the word of one: the others might need further sums
            self._started = time.monotonic()

    def _take_failed(self, participant: Participant, message: Message) -> None:
        participant.stage = "refused"
        reason = readable(message.fields.get("message", "it stopped"))
        self._journal.log("failed", site=participant.site, reason=reason)
        self._report(f"{named(participant)} stopped: {reason}")
        if participant.site is not None:
            self._failed[participant.site] = reason
        if self._failed.keys() >= self._expected:
            why = "; ".join(f"'{site}': {own}" for site, own in sorted(self._failed.items()))
            when = f"in step {self._kept.n_sums}" if self._kept.n_sums else "before the first step"
            cure = ", start them again, and go on with `--resume`" if self._kept.n_sums else ""
            msg = f"Expected sites that take part, found that all stopped {when} ({why[:2000]}). Mend that first{cure}."
            raise StoppedError(msg)

    # ---- steps

    def _advance(self) -> None:
        now = time.monotonic()
        if not self._kept.facts:
            self._greet(now)
        elif not self._kept.is_closing:
            self._maybe_add(now)
        self._remind(now)
        self._report_status()

    def _report_status(self, state: str = "", **more: str) -> None:
        """Write who is connected, how far the run is and what is waited for, for who asks."""
        answered = self._aggregation.sites
        own = status_of(self._kept, self._job, self._expected, self._participants, self._finished, answered)
        more |= {"state": state} if state else {}
        self._status.write({**own, "received_bytes": self._n_bytes, **more}, time.monotonic(), at_once=bool(state))

    def _greet(self, now: float) -> None:
        greeted = {one.site: one for one in self._participants.values() if one.stage == "greeted"}
        late = self._job.wait and now - self._started > self._job.wait and len(greeted) >= self._job.min_sites
        if set(greeted) != self._expected and not late:
            return
        self._kept.checks = {str(site): checks_of(one.hello) for site, one in greeted.items()}
        compare_sites(self._kept.checks)
        self._kept.facts = {str(site): one.hello["facts"] for site, one in greeted.items()}
        self._kept.write()
        self._journal.log("preflight", sites=sorted(self._kept.facts))
        sites = first_of(sorted(self._kept.facts), 20)
        found = find_difference(self._kept.facts, self._kept.add_members())
        if found is not None:
            self._report(
                f"warning: {describe_difference(*found, self._kept.facts)}. Sites refuse a run over the same data that "
                "shows this, unless they start with `--accept-difference`"
            )
        self._report(f"preflight passed: same job, version, key and features at {sites}")
        self._started = self._answered = now

    def _maybe_add(self, now: float) -> None:
        refused = {str(one.site) for one in self._participants.values() if one.stage == "refused"}
        if blocking := sorted(self._aggregation.needs & refused):
            msg = (
                f"Expected the seed of every site that is in the sum of step {self._kept.n_sums}, found that "
                f"{first_of(blocking)} did not give the one that it committed to: nobody can open that sum. Start a "
                "new run without that site."
            )
            raise StoppedError(msg)
        sums = self._aggregation.add(now, self._participants.sites(*_AT_WORK), self._slow)
        if sums is None:
            return
        step, sites = self._kept.n_sums, sorted(self._aggregation.sites)
        self._kept.add(sums_message(step, [(combined, [_name(term) for term in terms]) for combined, terms in sums]))
        self._used |= {term.header["nonce"].hex() for _, terms in sums for term in terms}
        left_out = sorted(self._expected - set(sites))
        self._journal.log(
            "step",
            step=step,
            sites=sites,
            left_out=left_out,
            sums=[hashlib.sha256(combined.state[MASKED].data).hexdigest() for combined, _ in sums],
        )
        self._report_sums(step, [combined for combined, _ in sums], left_out, now - self._started)
        self._last = set(sites)
        self._n_bytes += self._aggregation.n_bytes
        self._slow |= self._expected - set(sites)  # nobody waits twice for a site that does not answer
        self._aggregation, self._started = self._next_aggregation(), now

    def _report_sums(self, step: int, sums: Sequence[Update], left_out: Sequence[str], seconds: float) -> None:
        """One line a round of training, and one for each kind of sum beside it."""
        n_sites, n_bytes = len(self._aggregation.sites), self._aggregation.n_bytes
        without = f", without {', '.join(left_out)}" if left_out else ""
        for combined in sums:
            if combined.purpose == "training":
                self._bar.update(combined.round - self._bar.n)
                row = [step, combined.round, n_sites, " ".join(left_out), f"{seconds:.3f}", n_bytes]
                self._kept.add_to_history(row)
                self._report(
                    f"round {combined.round}/{self._job.n_rounds}: {n_sites} sites{without}, {seconds:.1f} s, "
                    f"{in_bytes(n_bytes)}"
                )
            elif combined.purpose not in WITH_ROUNDS and combined.purpose not in self._reported:
                self._reported.add(combined.purpose)
                if purpose_of(combined.purpose) is None:
                    self._report(f"added '{combined.purpose}': {n_sites} sites{without}, {in_bytes(n_bytes)}")

    def _is_finished(self) -> bool:
        """Whether all sites that took part to the end have the model, or had time enough to fetch it."""
        if not self._kept.facts or not self._kept.is_closing:
            return False
        here = self._participants.sites(*_AT_WORK)
        waited = time.monotonic() - self._started
        waiting = ((here | self._last) if waited < _GONE else here) - self._finished
        return not waiting or waited > max(self._job.deadline, _SECONDS_TO_MAKE_THE_MODEL)

    def _remind(self, now: float) -> None:
        waiting = sorted(self._expected - self._aggregation.sites - self._participants.sites(*_AT_WORK, "finished"))
        if now - self._reminded > _REMIND and waiting and not self._kept.is_closing:
            n = f"{len(self._participants.sites(*_HERE))} of at least {self._needed.most} sites are here"
            self._report(f"waiting for {first_of(waiting, 20)}: {n}")
            self._reminded = now
        if now - self._answered > self._job.give_up:
            msg = (
                f"Expected answers of at least {self._needed.most} sites, found none for {self._job.give_up:g} s "
                f"in step {self._kept.n_sums}; missing are {first_of(waiting or sorted(self._expected), 20)}. Let "
                "them start `scinfl federation site` again, and resume with `--resume`."
            )
            raise RuntimeError(msg)


class _Needed(dict[str, int]):
    """Sites that a sum needs, by the site that asks for them: more than the job says where two sites ask for it."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self._least = least

    @property
    def most(self) -> int:
        """What counts; one site alone might only hold up the others."""
        return max(self._least, *sorted(self.values())[-2:-1], 0)


def _name(term: Update) -> tuple[str, ...]:
    """What sites must know of a term in a sum: whose it is, and what its masks were made with."""
    return str(term.site), term.header["nonce"].hex(), term.header.get("exchange", b"").hex()
