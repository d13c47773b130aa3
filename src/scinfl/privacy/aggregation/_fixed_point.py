"""Real numbers as integers that can be added without reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl._errors import RepeatRoundError


@dataclass(frozen=True)
class FixedPoint:
    r"""Fixed-point numbers modulo :math:`2^b`.

    .. math:: q(x) = \mathrm{round}(x \, 2^{b - 2} / B) \bmod 2^b

    with a bound :math:`B` on every number and on every sum of numbers. Two bits are spare, so that such a sum never
    wraps; each number is off by at most :math:`B \, 2^{1 - b}`: 7e-15 with 64 bits and B = 65536, 4e-9 with 32 bits and
    B = 8 (64 bits also round to the 53 bits of a double).

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
        return 2.0 ** (self.bits - 2) / self.bound

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
