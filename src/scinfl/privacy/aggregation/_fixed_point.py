"""Real numbers as integers that can be added without reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl._errors import RepeatRoundError, TamperedSumError

_EXPONENTS = {64: 59, 32: 30}
_FARTHEST = 2**60


@dataclass(frozen=True)
class FixedPoint:
    r"""Fixed-point numbers modulo :math:`2^b`.

    .. math:: q(x) = \mathrm{round}(x \, 2^s / B) \bmod 2^b, \qquad s = 59 \text{ or } 30

    with 64 or 32 bits and a bound :math:`B` on every number and on every sum of numbers. Spare bits keep such a sum
    from wrapping; each number is off by at most :math:`B \, 2^{-1 - s}`: 6e-14 with 64 bits and B = 65536, 4e-9 with 32
    bits and B = 8 (64 bits also round to the 53 bits of a double).

    A sum from :math:`2^{60}` is refused. Tags are modulo the prime :math:`2^{61} - 1` (:func:`linear_tag`), so two sums
    within :math:`\pm 2^{60}` never have the same tag because they differ by a multiple of it; sums of 32 bits are too
    small for that.

    Parameters
    ----------
    bits
        64 or 32.
    bound
        :math:`B`, a power of two.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> numbers = si.privacy.aggregation.FixedPoint(bits=64, bound=65536.0)
    >>> a, b = numbers.encode(np.array([0.25])), numbers.encode(np.array([-0.5]))
    >>> numbers.decode(a + b)
    array([-0.25])
    """

    bits: int
    bound: float

    @property
    def unsigned(self) -> type[np.unsignedinteger]:
        """Type of the integers."""
        return np.uint64 if self.bits == 64 else np.uint32

    @property
    def _signed(self) -> type[np.signedinteger]:
        return np.int64 if self.bits == 64 else np.int32

    @property
    def scale(self) -> float:
        """Integers per unit."""
        return 2.0 ** _EXPONENTS[self.bits] / self.bound

    def encode(self, values: np.ndarray, weight: float = 1.0) -> np.ndarray:
        """Turn numbers times a weight of at most 1 into integers; the bound holds for the numbers.

        Raises
        ------
        RepeatRoundError
            If a number exceeds the bound. Nothing is ever clipped.
        """
        if values.size and not max(-values.min(), values.max()) <= self.bound:  # NaN is refused too
            msg = f"a number exceeds the bound {self.bound:g}"
            raise RepeatRoundError(msg)
        scaled = np.multiply(values, self.scale * weight, dtype=np.float64)
        np.rint(scaled, out=scaled)
        return scaled.astype(self._signed).view(self.unsigned)

    def decode(self, integers: np.ndarray) -> np.ndarray:
        """Turn a sum of integers back into numbers (float64)."""
        return integers.view(self._signed) / self.scale

    def check(self, integers: np.ndarray) -> None:
        """Refuse a sum that has a number from 2^60.

        Raises
        ------
        TamperedSumError
            If there is one: no sum of what was encoded is as large.
        """
        signed = integers.view(self._signed)
        if self.bits == 64 and signed.size and max(-int(signed.min()), int(signed.max())) >= _FARTHEST:
            msg = "Expected a sum within its bound, found a larger one: it was changed. Do not trust this server."
            raise TamperedSumError(msg)
