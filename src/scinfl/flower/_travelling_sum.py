"""A sum whose other terms come from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from scinfl._errors import RepeatRoundError
from scinfl.federation import Update
from scinfl.flower._letter import Letter
from scinfl.flower._steps import Sum, Summing, as_update, terms
from scinfl.privacy import BlindServer, Identity, Key, KeyedSum
from scinfl.privacy._blind_sum import total_of
from scinfl.privacy._masked_sum import MaskedSum

logger = logging.getLogger(__name__)


class TravellingSum:
    """Lets code that adds up the sites of one process add up those of all machines.

    A site that speaks for itself alone masks its term; what the server adds is a step of the run, and the sum of all
    sites comes back. Sums before and after training pass through this as they are; training itself goes through
    :class:`~scinfl.flower._part.Part`, which saves messages.

    Parameters
    ----------
    protection
        Masks and reads.
    steps
        Steps of the run.
    site
        Name of this site.
    """

    sums: ClassVar[bool] = True
    travels: ClassVar[bool] = True

    def __init__(self, protection: MaskedSum, steps: Summing, site: str) -> None:
        self.protection, self._steps, self._site = protection, steps, site
        self._update: Any = None
        self._members: list[Update] = []

    @property
    def min_sites(self) -> int:
        """Least number of sites in a sum."""
        return self.protection.min_sites

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers.

        Parameters
        ----------
        n_values
            How many numbers.
        """
        return self.protection.bytes_of(n_values)

    def on_step(self, network: Any, batch: Any) -> None:
        """Leave the step to the site."""
        del network, batch

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Total weight of all sites.

        Parameters
        ----------
        purpose
            What the weights are for.
        weights
            Weight of this site.
        """
        ((site, weight),) = weights.items()

        def hidden() -> list[Update]:
            return [as_update(self.protection.encode_weight(purpose, site, weight))]

        combined, members = self._sum(total_of(purpose), hidden)
        return self.protection.decode_weights(purpose, combined, members)

    def encode(self, update: Any) -> Any:
        """Mask the term of this site.

        Parameters
        ----------
        update
            What it adds.
        """
        self._update = update
        while True:
            try:
                return self.protection.encode(update)
            except RepeatRoundError as error:  # until it fits; the other sites hear of the bound in their turn
                logger.info("%s", error)

    def combine(self, encoded: Sequence[Any]) -> Any:
        """Sum of the terms of all sites, as the server added them.

        Parameters
        ----------
        encoded
            Term of this site.
        """
        (own,) = encoded
        purpose, bound = own.purpose, self.protection.bound_of(own.purpose)

        def masked() -> list[Any]:
            same = self.protection.bound_of(purpose) == bound
            return [own if same else self.protection.encode(self._update)]

        combined, self._members = self._sum(purpose, masked)
        self.protection.widen(purpose, 2.0 ** int.from_bytes(combined.header["bound"], "big", signed=True))
        return combined

    def decode(self, combined: Any, members: Sequence[Any]) -> Any:
        """Read the sum.

        Parameters
        ----------
        combined
            What the server added.
        members
            Ignored: the server says whose terms are in it.
        """
        del members
        return self.protection.decode(combined, self._members)

    def _sum(self, purpose: str, encode: Callable[[], Sequence[Any]]) -> Sum:
        sent = []

        def make(bounds: Mapping[str, float]) -> Letter:
            letter = terms(self.protection, [purpose], bounds, encode)
            sent.append(letter.kind)
            return letter

        ((combined, members),) = self._steps.sums(make, keep=True)
        counted = self._site in {member.site for member in members}
        if not sent or not counted:
            self.protection.forget()  # what was masked here is not what is in the sum
        if not counted:
            logger.warning("The sum of '%s' went on without this site.", purpose)
        return combined, members

    def __repr__(self) -> str:
        return repr(self.protection)


class _Alone(KeyedSum):
    """A keyed sum of one site: nothing of it leaves."""

    def _check_number(self, n_sites: int, error: type[ValueError]) -> None:
        del n_sites, error


class _NoSteps:
    """Steps of a site that has nobody to ask: its own term is the sum."""

    def __init__(self, identity: Identity) -> None:
        self._server = BlindServer({identity.site: identity.public})

    def sums(self, make: Callable[[Mapping[str, float]], Letter], *, keep: bool = False) -> list[Sum]:
        del keep
        bounds: Mapping[str, float] = {}
        while (letter := make(bounds)).kind == "repeat":
            bounds = letter.fields["bounds"]
        return [(self._server.combine([term]), [term]) for term in letter.updates]


def rehearsed_sum(key: Key, identity: Identity, bits: Any) -> TravellingSum:
    """A sum that goes nowhere, to list what would leave this site.

    Parameters
    ----------
    key
        Secret of the sites.
    identity
        Identity of this site.
    bits
        Bits of the numbers.
    """
    alone = _Alone(key, run="dry run", bits=bits, identities={identity.site: identity})
    return TravellingSum(alone, _NoSteps(identity), identity.site)
