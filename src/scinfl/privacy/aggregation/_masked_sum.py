"""Sums of integers that masks hide from the server."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from scinfl._checks import one_of
from scinfl._errors import RepeatRoundError, TamperedSumError
from scinfl.federation import Update
from scinfl.privacy.aggregation._aggregator import MASKED, Aggregator, signed_content
from scinfl.privacy.aggregation._context import BELIEFS, Place, RunContext, StepContext, SumContext, digest_of
from scinfl.privacy.aggregation._fixed_point import FixedPoint
from scinfl.privacy.aggregation._secure_sum import SecureSum, purpose_of
from scinfl.privacy.keys._identity import Identity, PublicIdentity

_TOTALS_BOUND = 2.0**40
MAX_BOUND = 2.0**40
_LARGEST_NUMBER = 2**63


class MaskedSum(SecureSum):
    r"""Fixed-point integers modulo :math:`2^b` behind masks, signed by their site; subclasses make the masks.

    All masks derive from a :class:`StepContext`: what the site believes of the run, the step and its sums. Sites that
    believe different things make a sum that none of them can read. A number beyond the bound repeats the round with
    four times the bound: nothing is clipped.

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
        bound = default_bound(bits) if bound is None else bound
        if not 0 < bound <= MAX_BOUND or not np.log2(bound).is_integer():
            msg = f"Expected `bound` to be a power of two up to 2^40, found {bound}."
            raise ValueError(msg)
        self._run = os.urandom(16).hex() if run is None else run
        self._numbers = FixedPoint(bits, float(bound))
        self._widened: dict[str, FixedPoint] = {}  # by purpose: large sums before training leave its precision alone
        self._identities = dict(identities or {})
        self._makes_identities = identities is None
        self._run_context: RunContext | None = None
        self._step: StepContext | None = None  # that an engine opened
        self._n_steps = 0
        self._positions: dict[Place, tuple[int, int]] = {}  # step and attempt, counted where no engine does

    def encode(self, update: Update) -> Update:
        """Mask an update: what it returns may be read by anybody."""
        share, contents = self._share(update), self._pack(update)
        context = self._context_of(update)
        own = _sum_of(context, update)
        try:
            integers = _numbers(own).encode(contents, share)
        except RepeatRoundError as error:
            self._widen(update.purpose, update.site, error)
        return self._mask(update, integers, context)

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Read the sum at a site, once it is known to be the sum of what the sites sent.

        Raises
        ------
        TamperedSumError
            If it is something else, or the sites believed different things.
        """
        self._check_members(len(members))
        return self._unpack(combined, self._read(combined, members))

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers; a total of weights, one number, always takes 8.

        Parameters
        ----------
        n_values
            How many numbers.
        """
        return max(n_values * self._numbers.bits // 8, 8)

    def exchange(self, purpose: str, round: int, sites: Sequence[str]) -> None:
        """Count the steps and attempts of one process: an upload of an earlier attempt is not added to a later one.

        Parameters
        ----------
        purpose, round
            What will be summed.
        sites
            Names of the sites that take part.
        """
        del sites
        if (purpose, round) not in self._positions:
            self._n_steps += 1
        step, attempt = self._positions.get((purpose, round), (self._n_steps, 0))
        self._positions[purpose, round] = step, attempt + 1

    # ---- for engines that carry updates over a network

    def open_run(self, context: RunContext) -> None:
        """Begin a run: nothing that was masked before is read any more.

        Parameters
        ----------
        context
            What this site believes of the run.
        """
        self._run_context, self._step = context, None
        self._forget()

    def open_step(
        self,
        step: int,
        places: Sequence[Place],
        *,
        attempt: int = 0,
        bounds: Mapping[str, int] | None = None,
        exchanges: Sequence[bytes] = (),
        history: bytes = b"",
    ) -> None:
        """Begin a step: until the next one, its sums are masked and read, and no others.

        Parameters
        ----------
        step, attempt
            Number of the step in the run, and of the attempt at it.
        places
            Purpose and round of its sums, whose layouts are known (:meth:`learn`).
        bounds
            Logarithm of the bound of each purpose; the present ones by default.
        exchanges
            Digest of the exchange of each sum, in the order of purpose and round; none without pairwise masks.
        history
            Hash of the members and tags of all earlier sums.
        """
        if not 0 <= attempt < _LARGEST_NUMBER:
            msg = f"Expected the number of an attempt, found {attempt}. Nothing was sent; do not trust this server."
            raise TamperedSumError(msg)
        sums = tuple(self._sum_context(place, (bounds or {}).get(place[0])) for place in sorted(places))
        self._step = StepContext(self.run_context.digest, step, attempt, sums, digest_of(exchanges), history)

    @property
    def run_context(self) -> RunContext:
        """What this site believes of the run; in one process its name and key alone."""
        if self._run_context is None:
            self._run_context = self._default_context()
        return self._run_context

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
            A power of two, not below the present bound.

        Raises
        ------
        TamperedSumError
            If it is something else.
        """
        present = self.bound_of(purpose)
        if not (isinstance(bound, int | float) and present <= bound <= MAX_BOUND and math.frexp(bound)[0] == 0.5):
            msg = (
                f"Expected the server to repeat '{purpose}' with a bound that is a power of two from {present:g} to "
                f"{MAX_BOUND:g}, found {bound!r}: another bound at each site would show one of them. Nothing was sent; "
                "do not trust this server."
            )
            raise TamperedSumError(msg)
        self._widened[purpose] = replace(self._numbers, bound=float(bound))

    def bound_in(self, combined: Update) -> int:
        """Logarithm of the bound that a sum was made with, to read it where this process sent no term of it.

        Parameters
        ----------
        combined
            What the server added.

        Raises
        ------
        TamperedSumError
            If it is none that a sum is made with.
        """
        bound = int.from_bytes(combined.header.get("bound", b"\x7f")[:1], "big", signed=True)
        if not self._numbers.bound <= 2.0**bound <= MAX_BOUND:
            msg = f"Expected a sum with a bound up to {MAX_BOUND:g}, found 2^{bound}. Do not trust this server."
            raise TamperedSumError(msg)
        return bound

    def forget(self) -> None:
        """Forget what was sent and is not in a sum, so that sums without it can be read."""
        self._forget()

    # ---- what the masks are, in subclasses

    @abstractmethod
    def _hide(self, upload: Update, context: bytes) -> Update:
        """Mask the integers of an upload, and add to its header what is needed to take the masks off."""

    @abstractmethod
    def _unmask(self, combined: Update, members: Sequence[Update], context: bytes) -> np.ndarray:
        """Take the masks off a sum and refuse one that is not of these members."""

    @abstractmethod
    def _default_context(self) -> RunContext:
        """What is known of a run in one process."""

    def _position(self, place: Place) -> tuple[int, int, Sequence[bytes]]:
        """Step, attempt and exchange of a sum that no engine opened."""
        return *self._positions.get(place, (0, 0)), ()

    @abstractmethod
    def _forget(self) -> None:
        """Forget what was sent in rounds that are repeated."""

    # ---- masking

    def _mask(self, update: Update, integers: np.ndarray, context: StepContext) -> Update:
        """Mask integers and sign them."""
        header = {
            "bound": _sum_of(context, update).bound_log2.to_bytes(1, "big", signed=True),
            "attempt": context.attempt.to_bytes(8, "big"),
            "context": context.digest,
        }
        bare = replace(update, state={MASKED: integers}, n_obs=0, weight=0.0, metrics={}, header=header)
        masked = self._hide(bare, context.digest)
        signature = self._identity(update.site).sign(signed_content(masked))
        return replace(masked, header={**masked.header, "signature": signature})

    def _read(self, combined: Update, members: Sequence[Update]) -> np.ndarray:
        """Numbers of a sum of these members."""
        context = self._context_of(combined)
        own, integers = _sum_of(context, combined), combined.state.get(MASKED, np.empty(0))
        numbers = _numbers(own)
        if integers.dtype != numbers.unsigned or integers.shape != (own.n_values,):
            msg = (
                f"Expected {own.n_values} integers as a sum of {np.dtype(numbers.unsigned)}, found {integers.dtype} of "
                f"shape {integers.shape}. Nothing was used."
            )
            raise TamperedSumError(msg)
        if combined.header.get("context", context.digest) != context.digest:
            msg = f"Expected a sum of sites that believe the same, found one of others: they differ in {BELIEFS}."
            raise TamperedSumError(msg)
        found = self._unmask(combined, members, context.digest)
        numbers.check(found)
        return numbers.decode(found)

    def _add(self, encoded: Sequence[Update]) -> Update:
        return Aggregator(self._public()).combine(encoded)

    def _hide_weight(self, upload: Update, weight: np.ndarray) -> Update:
        context = self._context_of(upload)
        return self._mask(upload, _numbers(_sum_of(context, upload)).encode(weight), context)

    def _read_weights(self, combined: Update, members: Sequence[Update]) -> np.ndarray:
        return self._read(combined, members)

    # ---- what masks are bound to

    def _context_of(self, update: Update) -> StepContext:
        """What this site believes of the step that a term or a sum belongs to."""
        place = update.purpose, update.round
        if self._step is None:
            step, attempt, exchanges = self._position(place)
            sums = (self._sum_context(place),)
            return StepContext(self.run_context.digest, step, attempt, sums, digest_of(exchanges))
        if place not in self._step.places:
            msg = (
                f"Expected a sum that step {self._step.step} asks for ({names_of(self._step.places)}), found "
                f"{names_of([place])}: it belongs to another step. Nothing was used; do not trust this server."
            )
            raise TamperedSumError(msg)
        return self._step

    def _sum_context(self, place: Place, bound_log2: int | None = None) -> SumContext:
        purpose, number = place
        if purpose_of(purpose) is not None:
            return SumContext(purpose, number, int(math.log2(_TOTALS_BOUND)), 64, 1)
        present = int(math.log2(self.bound_of(purpose)))
        bound = present if bound_log2 is None else bound_log2
        return SumContext(purpose, number, bound, self._numbers.bits, self._n_values(purpose))

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


def default_bound(bits: int) -> float:
    """Bound on numbers where none is asked for."""
    return 65536.0 if bits == 64 else 8.0


def names_of(places: Sequence[Place]) -> str:
    """Sums as text for a message."""
    return ", ".join(f"round {number} of '{purpose}'" for purpose, number in sorted(places)) or "none"


def _sum_of(context: StepContext, update: Update) -> SumContext:
    return context.sums[context.places.index((update.purpose, update.round))]


def _numbers(context: SumContext) -> FixedPoint:
    return FixedPoint(context.bits, 2.0**context.bound_log2)
