"""Sums of integers that masks hide from the server."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from scinfl._checks import one_of
from scinfl._errors import RepeatRoundError
from scinfl.federation import Update
from scinfl.privacy.aggregation._aggregator import MASKED, Aggregator, signed_content
from scinfl.privacy.aggregation._fixed_point import FixedPoint
from scinfl.privacy.aggregation._secure_sum import SecureSum
from scinfl.privacy.keys._identity import Identity, PublicIdentity

_TOTALS_BOUND = 2.0**40
MAX_BOUND = 2.0**40


class MaskedSum(SecureSum):
    r"""Fixed-point integers modulo :math:`2^b` behind masks, signed by their site; subclasses make the masks.

    A number beyond the bound repeats the round with four times the bound: nothing is clipped.

    Parameters
    ----------
    run
        Name of the run, the same at all sites; a random one by default.
    bits
        64 or 32.
    bound
        Bound on every number, a power of two: 65536 with 64 bits and 8 with 32 bits by default.
    min_sites
        Least number of sites in a sum.
    least
        Least value of ``min_sites``.
    identities
        Private identities of the sites of this process. By default the sites of an in-process run get one each.
    """

    def __init__(
        self,
        *,
        run: str | None,
        bits: Literal[64, 32],
        bound: float | None,
        min_sites: int,
        least: int,
        identities: Mapping[str, Identity] | None,
    ) -> None:
        super().__init__(min_sites, least=least)
        one_of("bits", bits, [64, 32])
        if bound is None:
            bound = 65536.0 if bits == 64 else 8.0
        if not 0 < bound <= MAX_BOUND or not np.log2(bound).is_integer():
            msg = f"Expected `bound` to be a power of two up to 2^40, found {bound}."
            raise ValueError(msg)
        self._run = os.urandom(16).hex() if run is None else run
        self._numbers = FixedPoint(bits, float(bound))
        self._widened: dict[str, FixedPoint] = {}  # by purpose: large sums before training leave its precision alone
        self._identities = dict(identities or {})
        self._makes_identities = identities is None

    def encode(self, update: Update) -> Update:
        """Mask an update: what it returns may be read by anybody."""
        share, contents = self._share(update), self._pack(update)
        try:
            integers = self._numbers_of(update.purpose).encode(contents, share)
        except RepeatRoundError as error:
            self._widen(update.purpose, update.site, error)
        return self._mask(update, integers, self._numbers_of(update.purpose).bound)

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Read the sum at a site, once it is known to be the sum of what the sites sent."""
        self._check_members(len(members))
        integers = self._unmask(combined, members, self._numbers.unsigned)
        return self._unpack(combined, self._numbers_of(combined.purpose).decode(integers))

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers; a total of weights, one number, always takes 8.

        Parameters
        ----------
        n_values
            How many numbers.
        """
        return max(n_values * self._numbers.bits // 8, 8)

    # ---- for engines that carry updates over a network

    def bound_of(self, purpose: str) -> float:
        """Bound on the numbers of a purpose.

        Parameters
        ----------
        purpose
            What the numbers are for.
        """
        return self._numbers_of(purpose).bound

    def widen(self, purpose: str, bound: float) -> None:
        """Take over the bound that a sum is repeated with, because a number of another site exceeds the present one.

        Parameters
        ----------
        purpose
            What the numbers are for.
        bound
            A power of two.
        """
        self._widened[purpose] = replace(self._numbers, bound=bound)

    def follow(self, combined: Update) -> None:
        """Take over the bound that a sum was made with, to read it where this process sent no term of it.

        Parameters
        ----------
        combined
            What the server added.
        """
        self.widen(combined.purpose, 2.0 ** int.from_bytes(combined.header["bound"], "big", signed=True))

    def forget(self) -> None:
        """Forget what was sent and is not in a sum, so that sums without it can be read."""
        self._forget()

    # ---- what the masks are, in subclasses

    @abstractmethod
    def _hide(self, upload: Update) -> Update:
        """Mask the integers of an upload, and add to its header what is needed to take the masks off."""

    @abstractmethod
    def _unmask(self, combined: Update, members: Sequence[Update], unsigned: type[np.unsignedinteger]) -> np.ndarray:
        """Take the masks off a sum and refuse one that is not of these members."""

    @abstractmethod
    def _forget(self) -> None:
        """Forget what was sent in rounds that are repeated."""

    # ---- masking

    def _mask(self, update: Update, integers: np.ndarray, bound: float) -> Update:
        """Mask integers and sign them."""
        header = {"bound": int(np.log2(bound)).to_bytes(1, "big", signed=True)}
        bare = replace(update, state={MASKED: integers}, n_obs=0, weight=0.0, metrics={}, header=header)
        masked = self._hide(bare)
        signature = self._identity(update.site).sign(signed_content(masked))
        return replace(masked, header={**masked.header, "signature": signature})

    def _add(self, encoded: Sequence[Update]) -> Update:
        return Aggregator(self._public()).combine(encoded)

    def _hide_weight(self, upload: Update, weight: np.ndarray) -> Update:
        return self._mask(upload, FixedPoint(64, _TOTALS_BOUND).encode(weight), _TOTALS_BOUND)

    def _read_weights(self, combined: Update, members: Sequence[Update]) -> np.ndarray:
        return FixedPoint(64, _TOTALS_BOUND).decode(self._unmask(combined, members, np.uint64))

    def _numbers_of(self, purpose: str) -> FixedPoint:
        return self._widened.get(purpose, self._numbers)

    def _widen(self, purpose: str, site: str, error: RepeatRoundError) -> None:
        bound = self._numbers_of(purpose).bound * 4
        if bound > MAX_BOUND:
            msg = (
                f"Expected numbers up to {MAX_BOUND:g}, found larger ones at site '{site}': training diverged. Lower "
                "the learning rate `lr`, or look for extreme values in that site's data."
            )
            raise ValueError(msg) from error
        self._widened[purpose] = replace(self._numbers, bound=bound)
        self._forget()
        msg = f"A number of site '{site}' exceeds the bound: the round is repeated with the bound {bound:g}."
        raise RepeatRoundError(msg) from error

    # ---- identities

    def _identity(self, site: str) -> Identity:
        if site not in self._identities:
            if not self._makes_identities:
                msg = f"Expected the identity key of site '{site}', found none. Pass it in `identities`."
                raise KeyError(msg)
            self._identities[site] = Identity.generate(site)
        return self._identities[site]

    def _public(self) -> dict[str, PublicIdentity]:
        return {site: identity.public for site, identity in self._identities.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bits={self._numbers.bits}, min_sites={self.min_sites})"

    def __getstate__(self) -> None:
        msg = f"A `{type(self).__name__}` cannot be pickled or copied, because it holds the keys of sites."
        raise TypeError(msg)
