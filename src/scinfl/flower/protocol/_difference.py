"""The difference rule: two sums over the same data show what the sites contributed that are in one of them only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from scinfl._checks import first_of


def find_difference(
    members: Collection[str], earlier: Mapping[str, Collection[Collection[str]]], min_sites: int
) -> tuple[str, list[str]] | None:
    """Earlier run, and the sites by which its members differ, if these are too few to hide in a sum.

    Parameters
    ----------
    members
        Sites of a sum.
    earlier
        Sets of members of the sums of earlier runs over the same data, by run.
    min_sites
        Least number of sites that hide one another.
    """
    for run, sets in earlier.items():
        for before in sets:
            differ = set(members) ^ set(before)
            if 0 < len(differ) < min_sites:
                return run, sorted(differ)
    return None


def describe_difference(run: str, differ: Collection[str], members: Collection[str]) -> str:
    """Which sites become readable, and to whom."""
    readers = sorted(set(members) - set(differ))
    return (
        f"run '{run[:12]}' over the same data had other members: {first_of(sorted(differ), 20)} took part in one of "
        "the two only, so the difference of both sums is what they contributed, readable to every site that reads both "
        f"({first_of(readers, 20)}) and to anyone who works with one of these; the server alone reads neither"
    )
