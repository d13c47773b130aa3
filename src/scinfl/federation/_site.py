"""What the federation asks of a site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scinfl.federation._update import State, Update


class Site(Protocol):
    """Holds its own data; answers with updates only.

    Everything random in a round is drawn from the run's seed, the round and the site, so that a repeated round gives
    the same update.
    """

    name: str
    n_obs: int
    n_validation: int

    @property
    def metric_names(self) -> Sequence[str]:
        """Names of the metrics of :meth:`evaluate`; needed where the sites are on machines of their own."""
        ...

    def fit(self, round: int, state: State) -> Update:
        """Start from the shared state, train locally, return the new state."""
        ...

    def evaluate(self, round: int, state: State) -> Update | None:
        """Metrics of the shared state on the site's validation observations; ``None`` where it has none.

        The update carries metrics and no array; its weight is the number of validation observations.
        """
        ...

    def local_state(self) -> State:
        """What stays at the site between rounds (normalisation statistics, personal layers)."""
        ...

    def load_local_state(self, state: State) -> None:
        """Restore what :meth:`local_state` gave."""
        ...
