"""Protections of sums by default."""

from __future__ import annotations

from scinfl._checks import warn
from scinfl._errors import TwoSitesWarning
from scinfl.privacy.aggregation._keyed_sum import KeyedSum
from scinfl.privacy.keys._key import Key


def default_protections(key: Key | None, n_sites: int, *, warns: bool = True) -> list[KeyedSum]:
    """Keyed sums where there is a key and somebody to hide a site from."""
    if key is None or n_sites == 1:
        return []
    if n_sites == 2 and warns:
        warn(
            "Two sites: the server cannot read what they send, but each site can subtract its own from the sum and "
            "sees the other's. Let a third site take part if that matters.",
            TwoSitesWarning,
        )
    return [KeyedSum(key, min_sites=min(3, n_sites))]
