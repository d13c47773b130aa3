"""What the extras of scinfl need, as the installed package states it."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

_FOR_DEVELOPERS = {"doc", "lint", "test"}


def extras() -> dict[str, list[Requirement]]:
    """Requirements of each extra that users may want."""
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requires("scinfl") or []):
        # a requirement of an extra holds for this name and not for another
        for extra in _named(requirement) - _FOR_DEVELOPERS:
            found.setdefault(extra, []).append(requirement)
    return dict(sorted(found.items()))


def install_line(extra: str) -> str:
    """Command that installs what an extra needs, wherever scinfl itself came from.

    Examples
    --------
    >>> from scinfl._extras import install_line
    >>> install_line("dp")
    "pip install 'opacus>=1.5'"
    """
    return "pip install " + " ".join(f"'{needed.name}{needed.specifier}'" for needed in extras()[extra])


def _named(requirement: Requirement) -> set[str]:
    marker = str(requirement.marker or "")
    _, found, rest = marker.partition('extra == "')
    return {rest.partition('"')[0]} if found else set()
