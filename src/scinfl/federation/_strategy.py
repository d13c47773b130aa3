"""How the updates of a round become the next shared state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from scinfl.federation._update import State, Update


class Strategy(Protocol):
    """A weighted sum, and what to make of it.

    ``reduce`` is all that a server ever needs to do. ``apply`` is deterministic and runs at the sites when the server
    cannot read the sum. ``memory`` is what a strategy keeps between rounds.
    """

    needs_plaintext: bool
    """Whether ``reduce`` must see single updates, so that masked sums are out of the question."""

    def weight(self, n_obs: int) -> float:
        """Weight of a site with so many observations, before normalisation."""
        ...

    def reduce(self, updates: Sequence[Update]) -> Update:
        """Mean of the updates of a round."""
        ...

    def apply(self, state: State, mean: Update, memory: State) -> tuple[State, State]:
        """Next shared state and memory."""
        ...


@dataclass(frozen=True)
class FedAvg:
    r"""Federated averaging (McMahan et al. 2017).

    .. math:: w \leftarrow \sum_k \frac{n_k}{\sum_j n_j} w_k

    Parameters
    ----------
    weights
        ``"n_obs"`` weights sites by their observations, ``"uniform"`` weights all equally.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> updates = [
    ...     si.federation.Update(site, 1, {"w": np.array([value])}, n_obs=n, weight=n)
    ...     for site, value, n in (("a", 1.0, 10), ("b", 2.0, 30), ("c", 9.0, 10))
    ... ]
    >>> strategy = si.federation.FedAvg()
    >>> state, memory = strategy.apply({"w": np.zeros(1)}, strategy.reduce(updates), {})
    >>> state["w"]
    array([3.2])
    """

    weights: Literal["n_obs", "uniform"] = "n_obs"
    needs_plaintext = False

    def __post_init__(self) -> None:
        if self.weights not in ("n_obs", "uniform"):
            msg = f"Expected `weights` to be 'n_obs' or 'uniform', found {self.weights!r}."
            raise ValueError(msg)

    def weight(self, n_obs: int) -> float:
        """Observations, or 1."""
        return float(n_obs) if self.weights == "n_obs" else 1.0

    def reduce(self, updates: Sequence[Update]) -> Update:
        """Weighted mean."""
        return weighted_mean(updates)

    def apply(self, state: State, mean: Update, memory: State) -> tuple[State, State]:
        """Take the mean; names that no site sent keep their value."""
        return {**state, **mean.state}, memory


def weighted_mean(updates: Sequence[Update]) -> Update:
    """Mean of arrays and metrics with the weights of the updates, summed in float64 in the order of the sites' names.

    Raises
    ------
    ValueError
        If updates are none, differ in their arrays or key versions, hold values that are not finite, or all weigh 0.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> updates = [
    ...     si.federation.Update(site, 1, {"w": np.array([value])}, n_obs=n, weight=n)
    ...     for site, value, n in (("a", 1.0, 10), ("b", 2.0, 30), ("c", 9.0, 10))
    ... ]
    >>> si.federation.rounds.weighted_mean(updates).state["w"]
    array([3.2])
    """
    if not updates:
        msg = "Expected at least one update to average, found none."
        raise ValueError(msg)
    updates = sorted(updates, key=lambda update: update.site)
    total = sum(update.weight for update in updates)
    if total <= 0:
        msg = "Expected updates with a positive total weight, found 0: every site of the round is empty."
        raise ValueError(msg)
    first = updates[0]
    _check_consistent(updates)
    state: State = {}
    for name, like in first.state.items():
        mean = np.zeros(like.shape, np.float64)
        for update in updates:
            mean += np.multiply(update.state[name], update.weight / total, dtype=np.float64)
        state[name] = mean.astype(like.dtype)
    shared = set.intersection(*(set(update.metrics) for update in updates))
    metrics = {
        name: float(sum(update.metrics[name] * update.weight for update in updates) / total)
        for name in first.metrics
        if name in shared
    }
    return Update(
        site="",
        round=first.round,
        state=state,
        n_obs=sum(update.n_obs for update in updates),
        weight=total,
        metrics=metrics,
        key_version=first.key_version,
        purpose=first.purpose,
    )


def _check_consistent(updates: Sequence[Update]) -> None:
    first = updates[0]
    expected = {name: array.shape for name, array in first.state.items()}
    for update in updates:
        if update.key_version != first.key_version:
            msg = (
                f"Expected all updates under key version {first.key_version}, found {update.key_version} from site "
                f"'{update.site}'. Give that site the current key."
            )
            raise ValueError(msg)
        found = {name: array.shape for name, array in update.state.items()}
        if found != expected:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            msg = (
                f"Expected the same arrays from all sites, found others from site '{update.site}': {odd[:5]}. "
                "Train all sites with the same settings."
            )
            raise ValueError(msg)
        for name, array in update.state.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                msg = (
                    f"Expected finite parameters, found NaN or infinity in '{name}' from site '{update.site}'. "
                    "Lower the learning rate `lr`, or look for extreme values in that site's data."
                )
                raise ValueError(msg)
