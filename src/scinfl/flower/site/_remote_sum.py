"""A sum whose other terms come from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from scinfl.federation import Protection, Update
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._round_history import Sum, Summing
from scinfl.flower.site._masking import Masking
from scinfl.flower.site._upload_log import UploadLog
from scinfl.privacy import Identity, Key
from scinfl.privacy.aggregation import MASKED, Aggregator, MaskedSum, Place, UnsentSum, names_of, total_of

logger = logging.getLogger(__name__)


class RemoteSum(Protection):
    """Lets code that adds up the sites of one process add up those of all machines.

    A site masks its own term; what the server adds is a step of the run, and the sum of all sites comes back. Sums
    before and after training pass through this as they are; training itself goes through
    :class:`~scinfl.flower.site._site_training.SiteTraining`, which saves messages.
    """

    sums: ClassVar[bool] = True
    travels: ClassVar[bool] = True

    def __init__(self, masking: Masking, steps: Summing, site: str, *, min_sites: int | None = None) -> None:
        self.masking, self._steps = masking, steps
        self._site = site
        self._pending: dict[str, Update] = {}  # that the next exchange takes along, by purpose
        self._sums: dict[str, Sum] = {}  # of the last exchange
        self.min_sites = min_sites or masking.protection.min_sites  # of what is summed; a sum may need more

    @property
    def protection(self) -> MaskedSum:
        """Masks and reads."""
        return self.masking.protection

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers."""
        return self.protection.bytes_of(n_values)

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Total weight of all sites."""
        return self.agree_on({purpose: weights})[purpose]

    def agree_on(self, weights: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Total weights of all sites, in one exchange."""

        def hidden() -> list[Update]:
            return [self.protection.encode_weight(what, self._site, own[self._site]) for what, own in weights.items()]

        sums = self._exchange([(total_of(purpose), 0) for purpose in weights], hidden, n_values=len(weights))
        totals = {purpose: self.protection.decode_weights(purpose, *sums[total_of(purpose)]) for purpose in weights}
        self.masking.close_sums()
        return totals

    def reuse_total(self, purpose: str, agreed: str) -> None:
        """Take the total weight of a purpose from another one with the same weights: no message is needed."""
        self.protection.reuse_total(purpose, agreed)

    def encode(self, update: Update) -> Update:
        """Give the form of this site's term; it is masked when the server asks for it."""
        self._pending[update.purpose] = update  # masked when it is asked for: only then is it known with whom
        kind = np.uint64 if self.bytes_of(1_000) == 8_000 else np.uint32
        return replace(update, state={MASKED: np.zeros(_n_values(update), kind)}, metrics={})

    def combine(self, encoded: Sequence[Update]) -> Update:
        """Sum of the terms of all sites, as the server added them, in one exchange with all others that are encoded."""
        if self._pending:
            pending, self._pending = list(self._pending.values()), {}
            for own in pending:
                self.protection.learn(own)
            places = [(own.purpose, own.round) for own in pending]
            n_values = sum(map(_n_values, pending))
            self._sums = self._exchange(places, lambda: list(map(self.protection.encode, pending)), n_values=n_values)
        return self._sums[encoded[0].purpose][0]

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Read the sum."""
        del members
        mean = self.protection.decode(combined, self._sums[combined.purpose][1])
        self.masking.close_sums()
        return mean

    def _exchange(
        self, places: Sequence[Place], encode: Callable[[], Sequence[Update]], *, n_values: int
    ) -> dict[str, Sum]:
        """Sums by purpose."""
        position = self._steps.position
        found = self._steps.sums(
            lambda asked: self.masking.answer(asked, position, places, encode),
            n_bytes=self.bytes_of(n_values),
            keep=True,
        )
        if not self.masking.open_sums(position, places, found):
            logger.warning("The sums of %s went on without this site.", names_of(places))
        return {combined.purpose: (combined, members) for combined, members in found}

    def __repr__(self) -> str:
        return repr(self.protection)


def _n_values(update: Update) -> int:
    return sum(array.size for array in update.state.values()) + 1 + len(update.metrics)


class _NoSteps:
    """RoundHistory of a site without a server: its own term is the sum."""

    position = 0

    def __init__(self, identity: Identity) -> None:
        self._server = Aggregator({identity.site: identity.public})

    def sums(self, make: Callable[[Mapping[str, Any]], Message], *, n_bytes: int, keep: bool = False) -> list[Sum]:
        del n_bytes, keep
        bounds: Mapping[str, float] = {}
        while (message := make({"bounds": bounds})).kind == "repeat":
            bounds = message.fields["bounds"]
        return [(self._server.combine([term]), [term]) for term in message.updates]


def rehearsed_sum(key: Key, identity: Identity, bits: Any) -> RemoteSum:
    """A sum that is not sent, to list what would leave this site."""
    alone = UnsentSum(key, run="dry run", bits=bits, identities={identity.site: identity})
    return RemoteSum(Masking(alone, identity.site, UploadLog()), _NoSteps(identity), identity.site)
