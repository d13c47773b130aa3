"""The terms of one step, as they arrive at the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from math import frexp
from typing import Any

from scinfl._checks import first_of
from scinfl.federation import Journal, Update
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._round_history import WITH_ROUNDS
from scinfl.privacy.aggregation import BELIEFS, MASKED, MAX_BOUND, Aggregator

Summed = list[tuple[Update, list[Update]]]
"""Sums, and the terms in each."""

_MOST_REPEATS = 8  # of one site for one purpose, four times the bound each
_MOST_NAMES = 8  # purposes in a step
_MOST_NAME = 200
MOST_LOST = 2
"""Exchanges of masks in a row that a site may begin and not end."""


class StoppedError(RuntimeError):
    """The run cannot go on, whatever sites send next."""


class Aggregation:
    """Collects terms until enough sites sent theirs, and adds them.

    All sums before training have the same members, since sites refuse others: a site that is lost between two of them
    is waited for, and a site that comes between them is left out until training begins.
    """

    def __init__(
        self,
        server: Aggregator,
        used: Collection[str],
        bounds: dict[str, float],
        *,
        min_sites: int,
        deadline: float,
        journal: Journal,
        report: Callable[[str], None],
        step: int,
        first_bound: float,
        repeats: Counter[tuple[str, str]],
        founders: Collection[str] = (),
    ) -> None:
        self._server, self._used, self._bounds = server, used, bounds
        self.min_sites, self._deadline = min_sites, deadline
        self._journal, self._report, self._step = journal, report, step
        self._first_bound, self._repeats = first_bound, repeats  # how often a site asked for a wider bound, by purpose
        self._founders = set(founders)  # members of the sums before training so far
        self._asked_again: Counter[str] = Counter()  # how often a site did in this step, whatever it named
        self._attempt = 0
        self._answers: dict[str, list[Update]] = {}
        self._enough: float | None = None  # when enough sites had answered
        self._is_odd_reported = False
        self.n_bytes = 0

    @property
    def turn(self) -> tuple[object, ...]:
        """Changes whenever what was asked before is no longer wanted."""
        return self._step, self._attempt

    @property
    def sites(self) -> set[str]:
        """Sites whose answer is here."""
        return set(self._answers)

    def asks(self, site: str) -> Mapping[str, Any] | None:
        """What else a site is asked for; ``None`` where nothing of it is missing."""
        return None if site in self._answers else {"attempt": self._attempt, "bounds": self._bounds}

    def take(self, site: str, message: Message) -> None:
        """Take an answer.

        Raises
        ------
        ValueError
            If it is refused.
        """
        if message.kind == "repeat":
            self._repeat(site, message)
            return
        self._check_terms(site, message.updates)
        self._answers[site] = list(message.updates)
        self.n_bytes += sum(update.n_bytes for update in message.updates)

    def forget(self, site: str) -> None:
        """Note that the process of a site began again; what it sent is still its term."""

    @property
    def needs(self) -> set[str]:
        """Sites without whose answer this step cannot end."""
        return set()

    def add(self, now: float, coming: Collection[str], slow: Collection[str]) -> Summed | None:
        """Sums of the step, once nobody is waited for any longer."""
        is_settled = self._settle(self._answers, self._forms(), now, set(coming) - set(slow))
        return self._sums() if is_settled else None

    def _settle(self, answers: dict[str, Any], found: Mapping[str, Any], now: float, coming: set[str]) -> bool:
        """Keep answers of the form that most sites sent, once nobody is waited for any longer; whether that is so."""
        usual = usual_of(found, self.min_sites)
        if usual is None:
            self._enough = None
            self._report_odd(found)
            return False
        founders = self._founders if not any(purpose in WITH_ROUNDS for purpose, *_ in usual) else set()
        if self._must_wait(now, (founders or coming) - answers.keys()):
            return False
        for site in [site for site, own in found.items() if own != usual]:
            del answers[site]
            self._leave_out(site, found[site], usual)
        if missing := founders - answers.keys():
            raise self._lacks(missing)
        for site in answers.keys() - founders if founders else ():
            del answers[site]  # it takes part from the first round on
        return True

    def _lacks(self, sites: Collection[str]) -> StoppedError:
        options = " ".join(f"--accept-difference {site}" for site in sorted(sites))
        return StoppedError(
            f"Expected the same sites in all sums before training, found that {first_of(sorted(sites))} took part in "
            f"earlier ones and is missing in step {self._step}: the difference would be what it contributes. Start it "
            "and the other sites again, and go on with `--resume`; or move the folder of this run away, leave it out "
            f"of `sites` in the job of all, and start a new run, to which the other sites agree with `{options}`."
        )

    def _forms(self) -> dict[str, Any]:
        """What each site sent terms of, and under which beliefs: terms of one form can be added."""
        return {
            site: sorted((own.purpose, own.round, *self._server.form_of(own)) for own in updates)
            for site, updates in self._answers.items()
        }

    def _must_wait(self, now: float, missing: Collection[str]) -> bool:
        self._enough = self._enough or now
        return bool(missing) and now - self._enough < self._deadline

    def _sums(self) -> Summed:
        purposes = sorted(update.purpose for update in next(iter(self._answers.values())))
        terms = [[u for own in self._answers.values() for u in own if u.purpose == purpose] for purpose in purposes]
        return [(self._server.combine(own), own) for own in terms]

    def _leave_out(self, site: str, found: Any, usual: Any) -> None:
        self._journal.log("refused", site=site, kind="step", reason=f"it sent {found} where others sent {usual}")
        self._report(
            f"left out site '{site}', which is at another step than the others, or believes other things than they do: "
            f"{BELIEFS}"
        )

    def _report_odd(self, found: Mapping[str, Any]) -> None:
        """Name, once, who keeps the others from a sum."""
        if len(found) < self.min_sites or self._is_odd_reported:
            return
        self._is_odd_reported = True
        usual = usual_of(found, 1)
        odd = first_of(sorted(site for site, own in found.items() if own != usual))
        self._journal.log("differ", step=self._step, sites=found)
        self._report(f"no sum of step {self._step}: what site {odd} believes differs from the others in {BELIEFS}")

    def _repeat(self, site: str, message: Message) -> None:
        """A number exceeds the bound: all sites send the step again, with one that is four times as wide."""
        bounds = {str(purpose): float(bound) for purpose, bound in dict(message.fields["bounds"]).items()}
        wider = {purpose: bound for purpose, bound in bounds.items() if bound > self._bound_of(purpose)}
        is_sound = len(bounds) <= _MOST_NAMES and all(
            len(purpose) <= _MOST_NAME and 0 < bound <= MAX_BOUND and frexp(bound)[0] == 0.5
            for purpose, bound in bounds.items()
        )
        if not wider or not is_sound:
            msg = f"Expected powers of two up to {MAX_BOUND:g} as wider bounds, found others. Nothing of it was used."
            raise ValueError(msg)
        self._asked_again[site] += 1
        if self._asked_again[site] > 2 * _MOST_REPEATS:
            msg = f"Expected site '{site}' to need few wider bounds in a step, found no end. Nothing of it was used."
            raise ValueError(msg)
        for purpose, bound in wider.items():
            self._repeats[site, purpose] += 1
            if bound > 4 * self._bound_of(purpose) or self._repeats[site, purpose] > _MOST_REPEATS:
                msg = (
                    f"Expected site '{site}' to ask for four times the bound of '{purpose}' at once, at most "
                    f"{_MOST_REPEATS} times, found {bound:g}: wide bounds leave few digits to all sites. Nothing of it "
                    "was used."
                )
                raise ValueError(msg)
        self._bounds |= wider
        self._journal.log("repeat", step=self._step, site=site, bounds=self._bounds)
        self._start_again()

    def _bound_of(self, purpose: str) -> float:
        return self._bounds.get(purpose, self._first_bound)

    def _start_again(self) -> None:
        self._answers.clear()
        self._enough = None
        self._attempt += 1

    def _check_terms(self, site: str, updates: Sequence[Update]) -> None:
        """Refuse anything but fresh terms of this site, that the site signed."""
        for update in updates:
            if update.site != site or set(update.state) != {MASKED}:
                msg = f"Expected masked terms of site '{site}', found others. Nothing of them was used."
                raise ValueError(msg)
            self._server.verify(update)
            masked = update.state[MASKED]
            if masked.ndim != 1 or masked.dtype.kind != "u":
                msg = f"Expected masked integers in a row, found {masked.dtype} {masked.shape}. Nothing was used."
                raise ValueError(msg)
            if update.header["nonce"].hex() in self._used:
                msg = (
                    f"Expected a fresh term of '{update.purpose}', found one that was added before: an old answer. "
                    "Nothing of it was used."
                )
                raise ValueError(msg)
        if not updates or len({update.purpose for update in updates}) < len(updates):
            msg = f"Expected one term per purpose, found {_purposes(updates)}. Nothing of them was used."
            raise ValueError(msg)


def usual_of(found: Mapping[str, Any], least: int) -> Any:
    """What most sites sent, if enough of them did: the sites know the purposes and rounds of a step, not the server."""
    usual = Counter(map(str, found.values())).most_common(1)
    if not usual or usual[0][1] < least:
        return None
    return next(own for own in found.values() if str(own) == usual[0][0])


def _purposes(updates: Sequence[Update]) -> list[tuple[str, int]]:
    return sorted((update.purpose, update.round) for update in updates)
