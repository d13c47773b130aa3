"""What a site sends when it trains a network on cells, and who reads what of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.federation import FedAvg, State, Update
from scinfl.model._cells import Cells
from scinfl.model._share import shared_names
from scinfl.model._site import LocalSite, LocalTraining, SharedNetwork
from scinfl.nn import keyed_layers, set_key
from scinfl.privacy import Key, KeyedSum, attacks

if TYPE_CHECKING:
    from scinfl.tl._audit_target import Rows, Target

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sent:
    """One update: its change as it travels, as whoever has the key reads it, and the parameters that travel."""

    travelling: State
    opened: State
    state: State


class Sender:
    """A site that trains a network on cells and sends what came of it.

    Parameters
    ----------
    network
        Network as sites train it.
    target
        Model and settings.
    """

    def __init__(self, network: nn.Module, target: Target) -> None:
        self.network, self._target = network, target
        share = target.model._share
        self.shared = shared_names(network, share)

    @property
    def first(self) -> str | None:
        """Name of the first layer, where its weight leaves the site."""
        name = self._target.model.first_layer
        return name if f"{name}.weight" in self.shared else None

    @property
    def last_bias(self) -> str | None:
        """Name of the bias of the last layer, where it leaves the site."""
        return "head.bias" if "head.bias" in self.shared else None

    def step(self, rows: Rows, **local: Any) -> Sent:
        """Send the change of full steps on some cells, by default one of gradient descent; dropout is off."""
        change = attacks.local_change(self.network, rows.x, rows.y, **{"lr": 1.0, **local})
        return self._sent({name: value.detach() for name, value in change.items()})

    def round(self, rows: Rows, *, number: int = 1) -> Sent:
        """Send what one real local round makes of the network."""
        network = self._copy()
        x, y = rows.x.numpy(), rows.y.numpy()
        settings = self._target.training
        training = LocalTraining(
            settings["local_epochs"], settings["batch_size"], settings["lr"], settings["weight_decay"], self._target.rng
        )
        site = LocalSite(
            "site",
            SharedNetwork(network),
            self.shared,
            Cells(x, np.arange(len(x)), y, _CPU),
            Cells(x, np.arange(0), y[:0], _CPU),
            training,
            FedAvg(),
        )
        before = {name: p.detach().clone() for name, p in self.network.named_parameters() if name in self.shared}
        after = site.fit(number, {name: p.numpy() for name, p in before.items()}).state
        return self._sent({name: torch.from_numpy(after[name]) - before[name] for name in before})

    def with_change(self, change: Mapping[str, np.ndarray]) -> nn.Module:
        """The network after a change, as whoever has the key reads it."""
        network = self._copy()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in change:
                    parameter.add_(torch.from_numpy(change[name]).to(parameter))
        return network.eval()

    def as_travelling(self, change: Mapping[str, np.ndarray]) -> nn.Module:
        """The network after a change that travelled, as whoever lacks the key reads it."""
        network = copy.deepcopy(self.network)  # comes without the key
        state = self.locked({name: p.detach() for name, p in self.network.named_parameters()})
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(state[name])
                if name in change:
                    parameter.add_(torch.from_numpy(change[name]).to(parameter))
        return network.eval()

    def locked(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters as they travel."""
        return {name: value.detach() for name, value in self._target.lock(state).items()}

    def _copy(self) -> nn.Module:
        """Copies come without the key."""
        network = copy.deepcopy(self.network)
        if self._target.key is not None and keyed_layers(network):
            set_key(network, self._target.key.coordinates)
        return network

    def _sent(self, change: Mapping[str, Tensor]) -> Sent:
        before = {name: p.detach() for name, p in self.network.named_parameters() if name in self.shared}
        after = {name: value + change[name] for name, value in before.items()}
        opened = {name: change[name].numpy() for name in before}
        if not self._target.hides_updates:
            return Sent(opened, opened, {name: value.numpy() for name, value in after.items()})
        wide = [{name: value.double() for name, value in side.items()} for side in (before, after)]
        wide[1] = {name: wide[0][name] + change[name].double() for name in before}
        locked = [self.locked(side) for side in wide]
        travelling = {name: (locked[1][name] - locked[0][name]).numpy() for name in before}
        return Sent(travelling, opened, {name: value.float().numpy() for name, value in locked[1].items()})


def masked_change(sent: Sent, name: str, key: Key | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a layer as a server reads them off an upload under keyed sums, whose order is public."""
    sums = KeyedSum(key or Key.generate(), min_sites=2)
    sums.agree("training", {"site": 1.0, "other": 1.0})
    integers = sums.encode(Update("site", 1, dict(sent.state), 1, 1.0)).state["masked"]
    parts, start = {}, 0
    for part in sorted(sent.state):
        shape = sent.state[part].shape
        stop = start + math.prod(shape)
        parts[part] = (integers[start:stop].astype(np.float64) / 2.0**63 - 1).reshape(shape)
        start = stop
    return parts[f"{name}.weight"], parts[f"{name}.bias"]
