"""How a site hides its terms in a step, in one message or in three."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scinfl._errors import RepeatRoundError
from scinfl.federation import Update
from scinfl.federation.rounds import write_atomically
from scinfl.flower.protocol._message import Message
from scinfl.privacy import PairwiseSum, Seal
from scinfl.privacy.aggregation import Advertisement, MaskedSum, purpose_of

Place = tuple[str, int]
"""Purpose and round of a sum."""


class Masking:
    """Masks the terms of a site under the bounds that all sites know of, or asks for wider ones.

    Parameters
    ----------
    protection
        Makes the masks.
    """

    def __init__(self, protection: MaskedSum) -> None:
        self.protection = protection

    def answer(
        self, asked: Mapping[str, Any], position: int, places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        """Answer to what the server asks in a step.

        Parameters
        ----------
        asked
            Fields of the question.
        position
            Number of the step.
        places
            What is summed in it.
        encode
            Masks the terms.
        """
        del position
        protection, bounds = self.protection, asked.get("bounds", {})
        purposes, at_first = [purpose for purpose, _ in places], protection.bound_of("")
        for purpose in purposes:
            if bounds.get(purpose, at_first) > protection.bound_of(purpose):
                protection.widen(purpose, float(bounds[purpose]))
        wider = {p: protection.bound_of(p) for p in purposes if protection.bound_of(p) > bounds.get(p, at_first)}
        if not wider:
            try:
                return Message("step", {}, tuple(encode()))
            except RepeatRoundError:
                wider = {purpose: protection.bound_of(purpose) for purpose in purposes}
        return Message("repeat", {"bounds": wider})


class PairwiseMasking(Masking):
    """Advertises keys, masks the terms with what the others advertise, and reveals the seed of its own mask.

    What a site must still know after it starts again (its seed, and that it has revealed it) is kept sealed.

    Parameters
    ----------
    protection
        Makes the masks.
    site
        Name of this site.
    file
        Where to keep it.
    seal
        Seals it.
    """

    protection: PairwiseSum

    def __init__(self, protection: PairwiseSum, site: str, file: Path, seal: Seal) -> None:
        super().__init__(protection)
        self._site, self._file, self._seal = site, file, seal
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
        """Answer to what the server asks in a phase of a step.

        Parameters
        ----------
        asked, position, places, encode
            See :meth:`Masking.answer`.
        """
        if position != self._position:
            self._begin(position, places)
        turn = str(asked["phase"]), int(asked["attempt"])
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
        site = self.protection.site(self._site)
        ads = [site.advertise(purpose, number, int(asked["attempt"])) for purpose, number in places]
        return Message("advertise", {"ads": [ad.to_json() for ad in ads]})

    def _mask(
        self, asked: Mapping[str, Any], places: Sequence[Place], encode: Callable[[], Sequence[Update]]
    ) -> Message:
        ads = [Advertisement.from_json(ad) for ad in asked["ads"]]
        for place in places:
            self.protection.receive([ad for ad in ads if (ad.purpose, ad.round) == place])
        message = super().answer(asked, 0, places, encode)
        self._keep(None)
        return message

    def _reveal(self, asked: Mapping[str, Any], places: Sequence[Place], encode: Any) -> Message:
        del encode
        site = self.protection.site(self._site)
        seeds = {purpose: site.reveal(purpose, number, asked["sites"]).hex() for purpose, number in places}
        self._keep((int(asked["attempt"]), seeds))
        return Message("reveal", {"seeds": seeds})

    def _keep(self, revealed: tuple[int, Mapping[str, str]] | None) -> None:
        memory = self.protection.site(self._site).memory()
        content = json.dumps({"position": self._position, "memory": memory, "revealed": revealed}).encode()
        self._file.parent.mkdir(parents=True, exist_ok=True)  # sums before training come before the journal
        write_atomically(self._file, self._seal.seal(content, what="pairwise masks", site=self._site))
