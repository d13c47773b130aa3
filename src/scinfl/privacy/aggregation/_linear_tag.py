"""A checksum that adds up, and that requires the key."""

from __future__ import annotations

import numpy as np

PRIME = 2**61 - 1
"""Modulus of the tags, a Mersenne prime."""

_BLOCK = 2**15  # rows whose limb products stay in the cache, and exact in a double


def linear_tag(integers: np.ndarray, coefficients: np.ndarray) -> int:
    r"""Random projection of a vector of signed integers.

    .. math:: t(v) = \sum_i r_i v_i \bmod (2^{61} - 1)

    Linear, so the tags of several vectors add up to the tag of their sum as long as that sum does not wrap. Without
    :math:`r`, an attacker changes a vector without changing its tag with probability :math:`2^{-61}`, unless they add
    multiples of the prime: integers from :math:`2^{60}` must be refused beside the tag (:class:`FixedPoint`).

    Both are split into limbs of 16 bits, whose products add up exactly in doubles: the work is a matrix product.
    """
    n_limbs = integers.dtype.itemsize // 2
    signed = integers.view(f"<i{integers.dtype.itemsize}")
    total = 0
    for start in range(0, len(integers), _BLOCK):
        block = integers[start : start + _BLOCK].astype(f"<u{integers.dtype.itemsize}", copy=False)
        r = coefficients[start : start + _BLOCK].astype("<u8", copy=False).view("<u2").reshape(-1, 4).astype(np.float64)
        v = np.empty((len(block), n_limbs + 1))
        v[:, :n_limbs] = block.view("<u2").reshape(-1, n_limbs)
        v[:, n_limbs] = signed[start : start + _BLOCK] < 0
        products = v.T @ r  # (limbs of v and its sign) × limbs of r
        for i in range(n_limbs):
            for j in range(4):
                total += int(products[i, j]) << (16 * (i + j))
        for j in range(4):  # two's complement: the integer of a negative number is too large by 2^bits
            total -= int(products[n_limbs, j]) << (16 * (n_limbs + j))
    return total % PRIME
