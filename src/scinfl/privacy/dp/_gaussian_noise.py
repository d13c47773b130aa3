"""Random numbers that nobody can foresee or repeat: they come from the operating system."""

from __future__ import annotations

import math
import os

import numpy as np
from scipy.special import ndtri


def gaussian_noise(shape: int | tuple[int, ...], deviation: float) -> np.ndarray:
    r"""Normal noise from the operating system's generator (float64).

    .. math:: \pm \sigma\, \Phi^{-1}\big((k + \tfrac12)\, 2^{-53}\big), \qquad k < 2^{52} \text{ uniform}

    There is no seed: noise that can be drawn again can be subtracted. Doubles are no real numbers, and what depends on
    their last bits may reveal more than a proof about real numbers allows (Mironov 2012); a published sum of a number
    and such noise is rounded, see :func:`on_grid`.
    """
    bits = np.frombuffer(os.urandom(8 * int(np.prod(shape))), np.uint64)
    size = ndtri(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53)  # the lower half keeps its precision
    return (np.where(bits & np.uint64(1), size, -size) * deviation).reshape(shape)


def uniform_numbers(n: int) -> np.ndarray:
    """Uniform numbers on [0, 1) from the operating system's generator (float64)."""
    return (np.frombuffer(os.urandom(8 * n), np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def on_grid(values: np.ndarray, deviation: float) -> np.ndarray:
    """Round noisy values to a grid, finer than the noise by about a million, that hides the last bits of doubles."""
    if deviation == 0:
        return values
    step = 2.0 ** (math.floor(math.log2(deviation)) - 20)
    return np.rint(values / step) * step
