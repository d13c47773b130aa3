"""Amounts, and text of others, as people read them."""

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


def readable(text: object) -> str:
    """The first 500 characters of what another party sent, without those that a terminal obeys or cannot show.

    Examples
    --------
    >>> readable("lost" + chr(10) + "round 3/3")
    'lost�round 3/3'
    """
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text)[:500])
