"""The only thing that leaves a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

State = dict[str, np.ndarray]
"""Parameters by name."""


@dataclass(frozen=True)
class Update:
    """What one site sends in one round, or what the updates of several sites came to.

    Parameters
    ----------
    site
        Name of the site; empty for a mean over sites.
    round
        Number of the round, from 1.
    state
        Arrays by name: parameters after local training, or masked integers after a protection.
    n_obs
        Observations that the update was made from.
    weight
        Weight of the update in the mean, before normalisation over the sites of the round.
    metrics
        Scalars of this round, averaged with the same weights.
    key_version
        Version of the key that the state is locked with; ``None`` for a plain state.
    purpose
        What the update is for: ``"training"`` or ``"evaluation"``. Protections keep purposes apart.
    header
        What travels beside the arrays for a protection (a nonce, a tag), never secret.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> update = si.federation.Update("north", 1, {"w": np.zeros(3)}, n_obs=10, weight=10)
    >>> update.site, update.state["w"].shape
    ('north', (3,))
    """

    site: str
    round: int
    state: State
    n_obs: int
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    key_version: int | None = None
    purpose: str = "training"
    header: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.state.values())

    def payload(self) -> list[tuple[str, tuple[int, ...], str, int]]:
        """Name, shape, type and bytes of every array, for a report of what leaves a site."""
        return [(name, array.shape, str(array.dtype), array.nbytes) for name, array in self.state.items()]

    def __repr__(self) -> str:
        return (
            f"Update(site={self.site!r}, round={self.round}, {len(self.state)} arrays, {self.n_bytes} bytes, "
            f"key_version={self.key_version})"
        )
