"""Average parts of a network over the sites that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from scinfl.federation._strategy import Strategy
from scinfl.federation._update import State, Update

_SHARE = "has_"


class OwnedParts:
    r"""Lets another strategy average each part of the state over the sites that train it.

    A site sends back unchanged what it does not train, and reports with every update, as a metric, which parts it has
    (:meth:`shares`). With the share :math:`f` of the weight of the sites that have a part, and its old and mean values
    :math:`w` and :math:`\bar w`, the mean over these sites is

    .. math:: w + (\bar w - w) / f

    so that nothing but the usual sum is needed, and the server does not learn who has what from a masked one.

    Parameters
    ----------
    strategy
        What becomes of the mean. One that compares single updates cannot distinguish a site without a part from one
        that left it as it was, and is refused.
    parts
        Beginnings of parameter names, by part.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import FedAvg, OwnedParts, Update
    >>> strategy = OwnedParts(FedAvg(), {"adt": ["encoders.adt."]})
    >>> state = {"encoders.adt.weight": np.array([1.0])}
    >>> sent = {"a": (np.array([3.0]), 1.0), "b": (np.array([1.0]), 0.0)}  # only site a has proteins
    >>> updates = [
    ...     Update(site, 1, {"encoders.adt.weight": w}, 10, 10.0, {"has_adt": has}) for site, (w, has) in sent.items()
    ... ]
    >>> strategy.apply(state, strategy.reduce(updates), {})[0]
    {'encoders.adt.weight': array([3.])}
    """

    needs_plaintext = False

    def __init__(self, strategy: Strategy, parts: Mapping[str, Sequence[str]]) -> None:
        if strategy.needs_plaintext:
            msg = (
                f"Expected a strategy of sums where sites have different modalities, found "
                f"{type(strategy).__name__}: it would compare trained parts with untouched ones. Use FedAvg."
            )
            raise ValueError(msg)
        self._strategy = strategy
        self._parts = {part: tuple(beginnings) for part, beginnings in parts.items()}
        self.proximal = float(getattr(strategy, "proximal", 0.0))

    def __repr__(self) -> str:
        return f"OwnedParts({self._strategy!r}, {sorted(self._parts)})"

    def shares(self, parts: Sequence[str]) -> dict[str, float]:
        """Metrics by which a site reports which parts it has.

        Parameters
        ----------
        parts
            Names of its parts.
        """
        return {f"{_SHARE}{part}": float(part in parts) for part in self._parts}

    @staticmethod
    def reported(metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics by which a site reports which parts it has, of all that it reports."""
        return {name: value for name, value in metrics.items() if name.startswith(_SHARE)}

    def weight(self, n_obs: int) -> float:
        """As the strategy weighs it."""
        return self._strategy.weight(n_obs)

    def reduce(self, updates: Sequence[Update]) -> Update:
        """As the strategy reduces them."""
        return self._strategy.reduce(updates)

    def apply(self, state: State, mean: Update, memory: State) -> tuple[State, State]:
        """Give the strategy the mean of each part over the sites that have it.

        Raises
        ------
        ValueError
            If a protection removed the metrics by which sites report their parts.
        """
        over_owners = {name: self._over_owners(name, state[name], array, mean) for name, array in mean.state.items()}
        return self._strategy.apply(state, replace(mean, state=over_owners), memory)

    def _over_owners(self, name: str, old: np.ndarray, array: np.ndarray, mean: Update) -> np.ndarray:
        for part, beginnings in self._parts.items():
            if name.startswith(beginnings):
                share = mean.metrics.get(f"{_SHARE}{part}")
                if share is None:
                    msg = (
                        f"Expected updates that report which sites have '{part}', found none: a protection removed "
                        "their metrics. Use a sum (keyed, pairwise or homomorphic), or sites that all have every part."
                    )
                    raise ValueError(msg)
                if share <= 0:
                    return old
                return (old + (array.astype(np.float64) - old) / share).astype(array.dtype)
        return array
