"""Strategies that look at the mean of a round only, so they work under secure aggregation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl._checks import number_between
from scinfl.federation._strategy import FedAvg
from scinfl.federation._update import State, Update


@dataclass(frozen=True)
class FedProx(FedAvg):
    r"""Federated averaging whose sites are held near the shared state (Li et al. 2020).

    The local loss of a site gains the proximal term

    .. math:: \tfrac{\mu}{2} \lVert w - w_\text{shared} \rVert^2

    Parameters
    ----------
    weights
        See :class:`FedAvg`.
    proximal
        :math:`\mu`.

    Examples
    --------
    >>> import scinfl as si
    >>> si.federation.FedProx(proximal=0.1)
    FedProx(weights='n_obs', proximal=0.1)
    """

    proximal: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        number_between("proximal", self.proximal, 0, 1e3)


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    r"""Federated averaging with momentum at the server (Hsu et al. 2019).

    .. math:: m \leftarrow \beta m + (\bar w - w), \qquad w \leftarrow w + \eta m

    Parameters
    ----------
    weights
        See :class:`FedAvg`.
    lr
        :math:`\eta`.
    momentum
        :math:`\beta`.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> strategy = si.federation.FedAvgM(momentum=0.5)
    >>> mean = si.federation.Update("", 1, {"w": np.ones(1)}, n_obs=10, weight=10)
    >>> state, memory = strategy.apply({"w": np.zeros(1)}, mean, {})
    >>> state, memory = strategy.apply(state, mean, memory)  # there already, but still moving
    >>> state["w"]
    array([1.5])
    """

    lr: float = 1.0
    momentum: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        number_between("lr", self.lr, 0, 1e3, open_low=True)
        number_between("momentum", self.momentum, 0, 0.999)

    def apply(self, state: State, mean: Update, memory: State) -> tuple[State, State]:
        """Move along the momentum."""
        memory = {
            name: (self.momentum * memory.get(name, 0.0) + (new - state[name])).astype(new.dtype)
            for name, new in mean.state.items()
        }
        moved = {name: (state[name] + self.lr * m).astype(m.dtype) for name, m in memory.items()}
        return {**state, **moved}, memory


@dataclass(frozen=True)
class FedAdam(FedAvg):
    r"""Adam at the server, on the change of the mean (Reddi et al. 2021).

    .. math::
        \Delta = \bar w - w, \quad m \leftarrow \beta_1 m + (1 - \beta_1) \Delta, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2, \quad w \leftarrow w + \eta \frac{m}{\sqrt v + \tau}

    Parameters
    ----------
    weights
        See :class:`FedAvg`.
    lr
        :math:`\eta`.
    beta1, beta2
        :math:`\beta_1`, :math:`\beta_2`.
    tau
        :math:`\tau`, which bounds how much a small change is amplified.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> strategy = si.federation.FedAdam(lr=0.01)
    >>> mean = si.federation.Update("", 1, {"w": np.ones(1)}, n_obs=10, weight=10)
    >>> state, memory = strategy.apply({"w": np.zeros(1)}, mean, {})
    >>> state["w"].round(4)
    array([0.0099])
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        number_between("lr", self.lr, 0, 1e3, open_low=True)
        number_between("beta1", self.beta1, 0, 0.9999)
        number_between("beta2", self.beta2, 0, 0.9999)
        number_between("tau", self.tau, 0, 1, open_low=True)

    def apply(self, state: State, mean: Update, memory: State) -> tuple[State, State]:
        """Take one step of Adam."""
        kept: State = {}
        moved: State = {}
        for name, new in mean.state.items():
            change = new.astype(np.float64) - state[name]
            m = self.beta1 * memory.get(f"m/{name}", 0.0) + (1 - self.beta1) * change
            v = self.beta2 * memory.get(f"v/{name}", 0.0) + (1 - self.beta2) * change**2
            moved[name] = (state[name] + self.lr * m / (np.sqrt(v) + self.tau)).astype(new.dtype)
            kept[f"m/{name}"], kept[f"v/{name}"] = m, v
        return {**state, **moved}, kept
