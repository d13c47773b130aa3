"""Amounts as people read them."""

from __future__ import annotations

import math


def in_bytes(n: float) -> str:
    """Bytes in the unit that is read easily.

    Examples
    --------
    >>> in_bytes(812), in_bytes(405_864), in_bytes(1_352_896)
    ('812 bytes', '406 kB', '1.4 MB')
    """
    if n < 1000:
        return f"{n:.0f} bytes"
    power = min(int(math.log(n, 1000)), 3)
    amount = n / 1000**power
    return f"{amount:.{0 if amount >= 100 else 1}f} {('', 'kB', 'MB', 'GB')[power]}"
