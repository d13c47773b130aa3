"""The terms of one step under pairwise masks, as they arrive at the server: advertise, send, reveal."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from scinfl._checks import first_of
from scinfl.flower.protocol._message import Message
from scinfl.flower.server._aggregation import MOST_LOST, Aggregation, Summed, usual_of
from scinfl.privacy.aggregation import Advertisement, PairwiseServer


class PairwiseAggregation(Aggregation):
    """Relays what sites advertise, collects their terms, and opens the sum with the seeds that they reveal.

    If a site is lost after it advertised, the masks of the others do not cancel: they repeat the exchange without it.
    Once all terms are here, the sum can only be opened with the seeds of all of them, so a site that is lost then is
    waited for; the terms are kept in a file, and each site keeps its seed.

    Parameters
    ----------
    folder
        Where the terms are kept until the sum is open.
    first_attempt
        Number of the first attempt, higher than any of a server that ran before.
    lost
        In how many exchanges in a row each site was lost.
    options
        See :class:`Aggregation`.
    """

    _server: PairwiseServer

    def __init__(self, *options: Any, folder: Path, first_attempt: int, lost: Counter[str], **others: Any) -> None:
        super().__init__(*options, **others)
        self._attempt, self._lost = first_attempt, lost
        self._phase: Literal["advertise", "terms", "reveal"] = "advertise"
        self._ads: dict[str, list[Advertisement]] = {}
        self._members: set[str] = set()
        self._seeds: dict[str, dict[str, bytes]] = {}
        self._odd: set[str] = set()  # whose terms do not fit to those of the others
        self._pending = folder / "pending.safetensors"
        if self._pending.exists():
            self._take_up(Message.read(self._pending))

    @property
    def turn(self) -> tuple[object, ...]:
        """Changes whenever what was asked before is no longer wanted."""
        return *super().turn, self._phase

    @property
    def needs(self) -> set[str]:
        """Sites without whose seed the sum cannot be opened."""
        return self._members - self._seeds.keys() if self._phase == "reveal" else set()

    @property
    def sites(self) -> set[str]:
        """Sites whose answer is here."""
        return set(self._ads if self._phase == "advertise" else self._answers)

    def asks(self, site: str) -> Mapping[str, Any] | None:
        """What a site is asked for in the present phase."""
        asked = {"phase": self._phase, "attempt": self._attempt, "bounds": self._bounds}
        if self._phase == "advertise":
            return None if site in self._ads or site in self._odd else asked
        if site not in self._members:
            return None
        if self._phase == "terms":
            ads = [ad for name in sorted(self._members) for ad in self._ads[name]]
            return None if site in self._answers else {**asked, "ads": [ad.to_json() for ad in ads]}
        return None if site in self._seeds else {**asked, "sites": sorted(self._members)}

    def take(self, site: str, message: Message) -> None:
        """Take an answer."""
        if message.kind == "advertise" and self._phase == "advertise":
            ads = [Advertisement.from_json(ad) for ad in message.fields["ads"]]
            if not ads or any(ad.site != site or ad.attempt != self._attempt for ad in ads):
                msg = f"Expected what site '{site}' advertises for attempt {self._attempt}, found something else."
                raise ValueError(msg)
            for ad in ads:
                self._server.check(ad)
            self._ads[site] = ads
        elif message.kind == "reveal" and self._phase == "reveal":
            self._seeds[site] = self._checked_seeds(site, message.fields["seeds"])
        elif message.kind == "step" and any("commitment" not in own.header for own in message.updates):
            msg = f"Expected masked terms of '{site}' with a commitment, found none. Nothing of it was used."
            raise ValueError(msg)
        elif message.kind in ("step", "repeat") and self._phase == "terms":  # later, seeds are out: no sum opens twice
            super().take(site, message)
        else:
            msg = f"Expected an answer to '{self._phase}', found '{message.kind}'. Nothing of it was used."
            raise ValueError(msg)

    def forget(self, site: str) -> None:
        """Repeat an exchange with a site whose process began again: it no longer knows the keys that it advertised."""
        if self._phase == "advertise":
            self._ads.pop(site, None)
        elif self._phase == "terms" and site in self._members - self._answers.keys():
            self._lose({site})

    def add(self, now: float, coming: Collection[str], slow: Collection[str]) -> Summed | None:
        """Sums of the step, once the seeds of all terms are here."""
        if self._phase == "advertise":
            self._relay(now, set(coming) - set(slow) - self._odd)
        elif self._phase == "terms":
            self._collect(now, coming)
        elif self._seeds.keys() >= self._members:
            sums = [(self._server.open(*own, self._seeds_of(own[0].purpose)), own[1]) for own in self._sums()]
            self._pending.unlink(missing_ok=True)
            return sums
        return None

    def _relay(self, now: float, coming: set[str]) -> None:
        """Settle whose masks belong together."""
        found = {
            site: sorted((ad.purpose, ad.round, ad.step, ad.run, ad.fingerprint) for ad in own)
            for site, own in self._ads.items()
        }
        if self._settle(self._ads, found, now, coming):
            self._members, self._phase, self._enough = set(self._ads), "terms", None

    def _collect(self, now: float, coming: Collection[str]) -> None:
        missing = self._members - self._answers.keys()
        if missing <= set(coming) and self._must_wait(now, missing):  # who left has lost the keys to its masks
            return
        if missing:
            self._lose(missing)
            return
        for site in self._members:
            self._lost.pop(site, None)
        found = self._forms()
        usual = usual_of(found, 1)
        if odd := {site for site, own in found.items() if own != usual}:
            for site in sorted(odd):
                self._leave_out(site, found[site], usual)
            self._odd |= odd
            self._start_again()
            return
        heads = {"attempt": self._attempt, "members": sorted(self._members)}
        updates = tuple(update for own in self._answers.values() for update in own)
        Message("pending", {**heads, "step": self._step}, updates).write(self._pending)
        self._phase = "reveal"

    def _lose(self, missing: Collection[str]) -> None:
        """Repeat the exchange, without sites that were lost in several as long as enough others are there."""
        self._journal.log("lost", step=self._step, sites=sorted(missing), attempt=self._attempt)
        self._lost.update(missing)
        often = {site for site in missing if self._lost[site] >= MOST_LOST}
        if often and len(self._ads.keys() - often) >= self.min_sites:
            self._odd |= often
            self._report(f"goes on without {first_of(sorted(often))}: it began exchanges of masks and did not end them")
        self._start_again()

    def _take_up(self, kept: Message) -> None:
        """Go on where a server was that is gone."""
        if kept.fields["step"] != self._step:
            self._pending.unlink()
            return
        self._attempt, self._members, self._phase = kept.fields["attempt"], set(kept.fields["members"]), "reveal"
        for update in kept.updates:
            self._answers.setdefault(update.site, []).append(update)

    def _start_again(self) -> None:
        super()._start_again()
        self._phase, self._ads, self._members, self._seeds = "advertise", {}, set(), {}

    def _seeds_of(self, purpose: str) -> dict[str, bytes]:
        return {site: own[purpose] for site, own in self._seeds.items()}

    def _checked_seeds(self, site: str, seeds: Mapping[str, str]) -> dict[str, bytes]:
        found = {str(purpose): bytes.fromhex(seed) for purpose, seed in seeds.items()}
        for update in self._answers[site]:
            seed = found[update.purpose]
            if len(seed) != 32 or hashlib.sha256(seed).digest() != update.header["commitment"]:
                msg = f"Expected the seed that site '{site}' committed to, found another. Nothing of it was used."
                raise ValueError(msg)
        return found
