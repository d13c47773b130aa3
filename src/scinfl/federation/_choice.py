"""Which sites take part in a round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scinfl.federation._protection import Protection, check_order
from scinfl.federation._site import Site
from scinfl.federation._strategy import Strategy


def n_chosen(sites: Sequence[Site], fraction: float, min_sites: int) -> int:
    """Number of sites in a round."""
    return max(min_sites, math.ceil(round(fraction * len(sites), 9)))


def choose_sites(sites: Sequence[Site], fraction: float, min_sites: int, rng: int, number: int) -> list[Site]:
    """Sites of one round, drawn from the seed of the run and the number of the round, in their order."""
    n = n_chosen(sites, fraction, min_sites)
    if n == len(sites):
        return list(sites)
    drawn = np.random.default_rng([rng, number]).choice(len(sites), n, replace=False)
    return [sites[index] for index in sorted(drawn)]


def check_sites(
    sites: Sequence[Site], strategy: Strategy, protections: Sequence[Protection], fraction: float, min_sites: int
) -> None:
    """Refuse sites that cannot make a round with this strategy under these protections.

    Raises
    ------
    ValueError
        If two sites share a name, a round has too few sites, or protections hide what the strategy needs.
    """
    names = [site.name for site in sites]
    if not names or len(set(names)) < len(names):
        msg = f"Expected sites with different names, found {names}."
        raise ValueError(msg)
    if not 0 < fraction <= 1:
        msg = f"Expected `fraction` above 0 and at most 1, found {fraction}."
        raise ValueError(msg)
    if not 1 <= min_sites <= len(sites):
        msg = f"Expected `min_sites` from 1 to the number of sites ({len(sites)}), found {min_sites}."
        raise ValueError(msg)
    check_order(protections)
    least, n = (
        max((protection.min_sites for protection in protections), default=1),
        n_chosen(sites, fraction, min_sites),
    )
    if n < least:
        cure = "Raise `fraction` or `min_sites`" if len(sites) >= least else "Let more sites take part"
        found = f"{n} of {len(sites)}"
        msg = f"Expected at least {least} sites in a round, as the protections ask for, found {found}. {cure}."
        raise ValueError(msg)
    hiding = [protection for protection in protections if not protection.adds_alike]
    if strategy.needs_plaintext and hiding:
        msg = (
            f"Expected no protections with {type(strategy).__name__}, found {len(hiding)}: it compares single "
            "updates, which a masked sum hides. Use FedAvg, or pass `protections=()`."
        )
        raise ValueError(msg)
