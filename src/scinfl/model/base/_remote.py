"""Where the other sites are, if not in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scinfl.federation import Run


@dataclass(frozen=True)
class RemoteContext:
    """The place of one site in a federation whose other sites are on machines of their own.

    Parameters
    ----------
    site
        Name of the site, whose rows are all that the model has.
    sites
        Names of all sites.
    engine
        Trains together with the others, in place of :func:`scinfl.federation.simulate`.
    facts
        What the sites shared with each other before training, by site.
    """

    site: str
    sites: Sequence[str]
    engine: Callable[..., Run]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Place among all sites in the order of their names."""
        return sorted(self.sites).index(self.site)
