"""The difference rule: two sums over the same data show what the sites contributed that are in one of them only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from scinfl._checks import first_of


def find_difference(
    members: Collection[str], earlier: Mapping[str, Collection[Collection[str]]]
) -> tuple[str, list[str]] | None:
    """Earlier run with other members, and the sites by which they differ; those that differ by fewest.

    However many these are: three runs whose members differ by many in each pair may single out one site together, and
    no site knows all runs of the others. Where every run over the same data has the same members, sums show their
    totals and nothing else.

    Parameters
    ----------
    members
        Sites of a sum.
    earlier
        Sets of members of the sums of earlier runs over the same data, by run.
    """
    found = [(sorted(set(members) ^ set(before)), run) for run, sets in earlier.items() for before in sets]
    differing = [(differ, run) for differ, run in found if differ]
    if not differing:
        return None
    differ, run = min(differing, key=lambda pair: (len(pair[0]), pair[0]))
    return run, differ


def describe_difference(run: str, differ: Collection[str], members: Collection[str]) -> str:
    """Which sites become readable, and to whom."""
    readers = sorted(set(members) - set(differ))
    return (
        f"run '{run[:12]}' over the same data had other members: {first_of(sorted(differ), 20)} took part in one of "
        "the two only, so the difference of both sums is what they contributed, readable to every site that reads both "
        f"({first_of(readers, 20)}) and to anyone who works with one of these; the server alone reads neither"
    )
