"""Means that single odd updates do not move. They compare updates, so they need them in the open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scinfl._checks import number_between
from scinfl.federation._strategy import FedAvg, weighted_mean
from scinfl.federation._update import Update


@dataclass(frozen=True)
class TrimmedMean(FedAvg):
    """Mean of each parameter without its largest and smallest values (Yin et al. 2018). All sites have the same weight.

    Parameters
    ----------
    weights
        Weights of the metrics, see :class:`FedAvg`.
    trim
        Share of the sites that is left out at each end, rounded up.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> updates = [
    ...     si.federation.Update(site, 1, {"w": np.array([value])}, n_obs=n, weight=n)
    ...     for site, value, n in (("a", 1.0, 10), ("b", 2.0, 30), ("c", 9.0, 10))
    ... ]
    >>> si.federation.TrimmedMean(trim=0.2).reduce(updates).state["w"]
    array([2.])
    """

    trim: float = 0.2
    needs_plaintext = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number_between("trim", self.trim, 0, 0.499)

    def reduce(self, updates: Sequence[Update]) -> Update:
        """Trimmed mean of the updates of a round."""
        n_out = int(np.ceil(round(self.trim * len(updates), 9)))
        if 2 * n_out >= len(updates):
            msg = (
                f"Expected more than {2 * n_out} sites in a round to trim {n_out} at each end, found {len(updates)}. "
                "Lower `trim` or let more sites take part."
            )
            raise ValueError(msg)
        mean = weighted_mean(updates)
        state = {}
        for name, like in mean.state.items():
            stacked = np.sort(np.stack([update.state[name] for update in updates]), axis=0)
            state[name] = stacked[n_out : len(updates) - n_out].mean(0, dtype=np.float64).astype(like.dtype)
        return replace(mean, state=state)


@dataclass(frozen=True)
class Median(FedAvg):
    """Median of each parameter over the sites (Yin et al. 2018). All sites have the same weight.

    Parameters
    ----------
    weights
        Weights of the metrics, see :class:`FedAvg`.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> updates = [
    ...     si.federation.Update(site, 1, {"w": np.array([value])}, n_obs=n, weight=n)
    ...     for site, value, n in (("a", 1.0, 10), ("b", 2.0, 30), ("c", 9.0, 10))
    ... ]
    >>> si.federation.Median().reduce(updates).state["w"]
    array([2.])
    """

    needs_plaintext = True

    def reduce(self, updates: Sequence[Update]) -> Update:
        """Median of the updates of a round."""
        mean = weighted_mean(updates)
        state = {
            name: np.median(np.stack([update.state[name] for update in updates]), axis=0).astype(like.dtype)
            for name, like in mean.state.items()
        }
        return replace(mean, state=state)
