"""How a site hides its terms in a step, in one message or in three."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scinfl._checks import first_of
from scinfl._errors import RepeatRoundError, TamperedSumError
from scinfl.federation import Update
from scinfl.federation.rounds import write_atomically
from scinfl.flower.protocol._message import HELLO_FIRST, Message
from scinfl.flower.protocol._round_history import Sum
from scinfl.flower.site._upload_log import Upload, UploadLog
from scinfl.privacy import PairwiseSum, Seal
from scinfl.privacy.aggregation import MASKED, Advertisement, MaskedSum, Place, names_of, purpose_of

Moment = Literal["asked", "here", "read"]
Watch = Callable[[Sequence[Place], Sequence[str], Moment], None]


class Masking:
    """Masks the terms of a site for one step, under the bounds that all sites know of, or asks for wider ones.

    What a sum in this step must hold of this site is kept, also for after a restart: an old upload in a sum is noticed.

    Parameters
    ----------
    protection
        Masks and reads.
    site
        Name of the site.
    uploads
        Where uploads are noted.
    watch
        Called with the places and members of sums, and refuses them: when terms are asked for under pairwise masks,
        when sums are here, and once they were read.
    """

    def __init__(self, protection: MaskedSum, site: str, uploads: UploadLog, *, watch: Watch | None = None) -> None:
        self.protection, self._watch = protection, watch
        self._site, self._uploads = site, uploads
        self._last: tuple[object, Message] | None = None  # the same question gets the same answer
        self._masked: int | None = None  # step that this process masked last
        self._open: tuple[Sequence[Place], Sequence[str]] = ((), ())  # sums that are here

    # ---- terms that leave

    def answer(
        self, asked: Mapping[str, Any], position: int, places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        """Answer to what the server asks in a step."""
        wider = self._widen(asked, places)
        if wider:
            return Message("repeat", {"bounds": wider})
        attempt = _attempt(asked)
        question = (position, attempt, {purpose: self.protection.bound_of(purpose) for purpose, _ in places})
        if self._last is None or self._last[0] != question:
            self._last = question, self._terms(position, attempt, places, encode)
        return self._last[1]

    def _terms(
        self, position: int, attempt: int, places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        exchanges = self._exchanges(places)
        history = self._uploads.history(position)
        self.protection.open_step(
            position, places, attempt=attempt, exchanges=list(exchanges.values()), history=history
        )
        try:
            terms = tuple(encode())
        except RepeatRoundError:
            return Message("repeat", {"bounds": {purpose: self.protection.bound_of(purpose) for purpose, _ in places}})
        self._masked = position
        headers = {term.purpose: term.header for term in terms}
        bounds = {name: int.from_bytes(header["bound"], "big", signed=True) for name, header in headers.items()}
        nonces = {name: header["nonce"].hex() for name, header in headers.items()}
        kept = {purpose: exchange.hex() for (purpose, _), exchange in exchanges.items()}
        self._uploads.add(Upload(position, attempt, bounds, nonces, kept))
        return Message("step", {}, terms)

    def _widen(self, asked: Mapping[str, Any], places: Sequence[Place]) -> dict[str, float]:
        """Take over the bounds of the server; returns those of this site that are wider."""
        protection, bounds = self.protection, asked.get("bounds", {})
        if not isinstance(bounds, Mapping):
            msg = f"Expected bounds by purpose, found {bounds!r}. Nothing was sent; do not trust this server."
            raise TamperedSumError(msg)
        at_first, wider = protection.bound_of(""), {}
        for purpose in [purpose for purpose, _ in places if purpose_of(purpose) is None]:
            bound, own = bounds.get(purpose, at_first), protection.bound_of(purpose)
            if isinstance(bound, int | float) and at_first <= bound < own:
                wider[purpose] = own
            else:
                protection.widen(purpose, bound)
        return wider

    def _look(self, places: Sequence[Place], members: Sequence[str], moment: Moment) -> None:
        if self._watch is not None:
            self._watch(places, members, moment)

    def _exchanges(self, places: Sequence[Place]) -> dict[Place, bytes]:
        del places
        return {}

    # ---- sums that come back

    def open_sums(self, position: int, places: Sequence[Place], sums: Sequence[Sum]) -> bool:
        """Make ready to read the sums of a step, and refuse those of another one.

        Returns
        -------
        Whether this site has a term in them.

        Raises
        ------
        TamperedSumError
            If they are sums of another step, or hold what this site did not send last.
        """
        self._last = None
        found = [(combined.purpose, combined.round) for combined, _ in sums]
        if sorted(found) != sorted(places):
            msg = (
                f"Expected the sums of step {position} ({names_of(places)}), found {names_of(found)}: the server "
                "brings those of another step. Nothing was used; do not trust this server."
            )
            raise TamperedSumError(msg)
        members = [sorted(member.site for member in own) for _, own in sums]
        if any(own != members[0] for own in members):
            msg = "Expected the same sites in all sums of a step, found others. Do not trust this server."
            raise TamperedSumError(msg)
        self._look(places, members[0], "here")
        self._open = places, members[0]
        counted = self._site in members[0]
        history = self._uploads.history(position)
        if counted:
            upload = self._own_upload(position, sums)
            if self._masked != position:
                self.protection.forget()  # it sent its terms before it started again
            attempt, bounds = upload.attempt, upload.bounds
            exchanges = [bytes.fromhex(upload.exchanges[name]) for name, _ in sorted(places) if upload.exchanges]
        else:
            self.protection.forget()  # what was masked here is not what is in the sums
            headers = [own.header for own, _ in sorted(sums, key=_place)]
            attempt = int.from_bytes(headers[0].get("attempt", b"")[:8], "big")
            bounds = {own.purpose: self.protection.bound_in(own) for own, _ in sums if purpose_of(own.purpose) is None}
            exchanges = [header["exchange"] for header in headers if "exchange" in header]
        self.protection.open_step(
            position, places, attempt=attempt, bounds=bounds, exchanges=exchanges, history=history
        )
        self._uploads.close(position, [part for own in sorted(sums, key=_place) for part in _parts(*own)])
        return counted

    def close_sums(self) -> None:
        """Note the sums of a step, which were read, before anything that follows from them is kept or sent."""
        self._look(*self._open, "read")

    def _own_upload(self, position: int, sums: Sequence[Sum]) -> Upload:
        """What this site sent in a step, which must be what is in its sums."""
        upload = self._uploads.of(position)
        for combined, members in sums:
            own = next(member for member in members if member.site == self._site)
            name = combined.purpose
            if upload is None or own.header.get("nonce", b"").hex() != upload.nonces.get(name):
                msg = (
                    f"Expected the sum of '{name}' in step {position} with what site '{self._site}' sent last, found "
                    "an old upload of it, or one that it never sent. Do not trust this server."
                )
                raise TamperedSumError(msg)
            exchanges = {member.header.get("exchange", b"").hex() for member in members}
            if exchanges != {upload.exchanges.get(name, "")}:
                msg = f"Expected uploads of one exchange for '{name}', found others. Do not trust this server."
                raise TamperedSumError(msg)
        return upload  # type: ignore[return-value]


class PairwiseMasking(Masking):
    """Advertises keys, masks the terms with what the others advertise, and reveals the seed of its own mask.

    What a site must still know after it starts again (its seed, and that it has revealed it) is kept sealed.

    Parameters
    ----------
    protection, site, uploads, options
        See :class:`Masking`.
    file, seal
        Where and how that is kept.
    keeps_keys
        Keep the keys to masks, too, until they are used: for a site that starts again between any two messages.
    """

    protection: PairwiseSum

    def __init__(
        self,
        protection: PairwiseSum,
        site: str,
        uploads: UploadLog,
        *,
        file: Path,
        seal: Seal,
        keeps_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(protection, site, uploads, **options)
        self._file, self._seal, self._keeps_keys = file, seal, keeps_keys
        self._position: int | None = None
        self._answers: dict[tuple[str, int], Message] = {}  # answers, by phase and attempt
        if file.exists():
            kept = json.loads(seal.unseal(file.read_bytes(), what="pairwise masks", site=site))
            self._position = kept["position"]
            protection.remember(site, kept["memory"])
            if kept["revealed"] is not None:
                attempt, seeds = kept["revealed"]
                self._answers["reveal", attempt] = Message("reveal", {"seeds": seeds})

    def answer(
        self, asked: Mapping[str, Any], position: int, places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        """Answer to what the server asks in a phase of a step."""
        if position != self._position:
            self._begin(position, places)
        turn = str(asked["phase"]), _attempt(asked)
        if turn not in self._answers:
            act = {"advertise": self._advertise, "terms": self._mask, "reveal": self._reveal}[turn[0]]
            self._answers[turn] = act(asked, places, encode)
        return self._answers[turn]

    def _begin(self, position: int, places: Sequence[Place]) -> None:
        self._position, self._answers = position, {}
        for purpose, _ in places:
            if (of := purpose_of(purpose)) is not None:
                self.protection.begin(of)

    def _advertise(self, asked: Mapping[str, Any], places: Sequence[Place], encode: Any) -> Message:
        del encode
        site, attempt, step = self.protection.site(self._site), _attempt(asked), self._position or 0
        ads = [site.advertise(purpose, number, attempt, step) for purpose, number in places]
        if self._keeps_keys:
            self._keep(None)
        return Message("advertise", {"ads": [ad.to_json() for ad in ads]})

    def _mask(
        self, asked: Mapping[str, Any], places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        ads = [Advertisement.from_json(ad) for ad in asked["ads"]]
        relayed = {place: [ad for ad in ads if (ad.purpose, ad.round) == place] for place in places}
        members = sorted({ad.site for ad in ads})
        if any(sorted(ad.site for ad in own) != members for own in relayed.values()):
            msg = (
                f"Expected one advertisement of each of {first_of(members)} for each sum of the step "
                f"({names_of(places)}), found others. Nothing was sent; do not trust this server."
            )
            raise TamperedSumError(msg)
        if self._keeps_keys and not all(self.protection.site(self._site).has_keys(*place) for place in places):
            return HELLO_FIRST  # it masked for these before it ended, and its answer got lost: masks hide one term
        self._look(places, members, "asked")
        for own in relayed.values():
            self.protection.receive(own)
        message = super().answer(asked, self._position or 0, places, encode)
        self._keep(None)
        return message

    def _reveal(self, asked: Mapping[str, Any], places: Sequence[Place], encode: Any) -> Message:
        del encode
        site = self.protection.site(self._site)
        seeds = {purpose: site.reveal(purpose, number, asked["sites"]).hex() for purpose, number in places}
        self._keep((_attempt(asked), seeds))
        return Message("reveal", {"seeds": seeds})

    def _exchanges(self, places: Sequence[Place]) -> dict[Place, bytes]:
        return {place: self.protection.exchange_of(place) for place in sorted(places)}

    def _keep(self, revealed: tuple[int, Mapping[str, str]] | None) -> None:
        memory = self.protection.site(self._site).memory(with_keys=self._keeps_keys)
        content = json.dumps({"position": self._position, "memory": memory, "revealed": revealed}).encode()
        self._file.parent.mkdir(parents=True, exist_ok=True)  # sums before training come before the journal
        write_atomically(self._file, self._seal.seal(content, what="pairwise masks", site=self._site))


def _attempt(asked: Mapping[str, Any]) -> int:
    attempt = asked.get("attempt", 0)
    if not isinstance(attempt, int) or attempt < 0:
        msg = f"Expected the number of an attempt, found {attempt!r}. Nothing was sent; do not trust this server."
        raise TamperedSumError(msg)
    return attempt


def _place(own: Sum) -> Place:
    return own[0].purpose, own[0].round


def _parts(combined: Update, members: Sequence[Update]) -> list[str | bytes]:
    """What distinguishes a sum from any other one."""
    names = [part for own in members for part in (own.site, own.header.get("nonce", b""))]
    # its numbers, too: anyone who has the key makes another sum with the same tag
    numbers = hashlib.sha256(np.ascontiguousarray(combined.state.get(MASKED, np.empty(0))).data).digest()
    return [combined.purpose, str(combined.round), combined.header.get("tag", b""), numbers, str(len(members)), *names]
