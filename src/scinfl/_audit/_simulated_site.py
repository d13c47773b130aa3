"""What a site sends when it trains a network, and what each adversary reads of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl._audit._attack_target import AttackTarget, with_key
from scinfl.federation import FedAvg, State, Update
from scinfl.model.base import Batches, LocalSite, LocalTraining, SharedNetwork
from scinfl.privacy import Key, KeyedSum

OPEN, MASKED, COLLUDING = "in the open", "keyed sums", "in the open or keyed sums"
"""How sites upload; the key of a colluding site opens keyed sums."""
_BATCH = 32  # rows per step, where the training leaves that to the sizes of sites


@dataclass(frozen=True)
class Sent:
    """One update: its change as it travels, as a holder of the key reads it, and the parameters that travel."""

    travelling: State
    opened: State
    state: State


class SimulatedSite:
    """A site that trains a network and sends what came of it."""

    def __init__(self, network: nn.Module, target: AttackTarget) -> None:
        self.network, self._attacked = network, target
        self.shared = target.view.shared_names(network)

    def gradient(self, loss: Callable[[Any], Tensor]) -> Sent:
        """Send one step of gradient descent with a rate of 1 on the loss of the network, in the mode that it is in."""
        network = self.copy()
        parameters = {name: p for name, p in network.named_parameters() if name in self.shared}
        gradients = torch.autograd.grad(loss(network), list(parameters.values()), allow_unused=True)
        return self._sent(
            {
                name: torch.zeros_like(p) if gradient is None else -gradient.detach()
                for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
            }
        )

    def local_round(
        self,
        train: Batches,
        *,
        number: int = 1,
        loss_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Sent:
        """Send what one real local round makes of the network."""
        given = self._attacked.training
        size, rates = given["batch_size"] or _BATCH, (given["lr"], given["weight_decay"])
        training = LocalTraining(given["local_epochs"], size, *rates, self._attacked.rng, **settings)
        nothing: Any = ()
        network = SharedNetwork(self.copy())
        site = LocalSite("site", network, self.shared, train, nothing, training, FedAvg(), loss_options=loss_options)
        before = {name: p.detach().clone() for name, p in self.network.named_parameters() if name in self.shared}
        after = site.fit(number, {name: p.numpy() for name, p in before.items()}).state
        return self._sent({name: torch.from_numpy(after[name]) - before[name] for name in before})

    def with_change(self, change: Mapping[str, np.ndarray]) -> nn.Module:
        """The network after a change, as a holder of the key reads it."""
        network = self.copy()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in change:
                    parameter.add_(torch.from_numpy(change[name]).to(parameter))
        return network.eval()

    def as_travelling(self, change: Mapping[str, np.ndarray]) -> nn.Module:
        """The network after a change that travelled, as anyone without the key reads it."""
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
        return {name: value.detach() for name, value in self._attacked.lock(state).items()}

    def copy(self) -> nn.Module:
        """A copy of the network, with the key inside where it has one."""
        return with_key(self.network, self._attacked.key)

    def _sent(self, change: Mapping[str, Tensor]) -> Sent:
        before = {name: p.detach() for name, p in self.network.named_parameters() if name in self.shared}
        after = {name: value + change[name] for name, value in before.items()}
        opened = {name: change[name].numpy() for name in before}
        if not self._attacked.hides_updates:
            return Sent(opened, opened, {name: value.numpy() for name, value in after.items()})
        wide = [{name: value.double() for name, value in side.items()} for side in (before, after)]
        wide[1] = {name: wide[0][name] + change[name].double() for name in before}
        locked = [self.locked(side) for side in wide]
        travelling = {name: (locked[1][name] - locked[0][name]).numpy() for name in before}
        return Sent(travelling, opened, {name: value.float().numpy() for name, value in locked[1].items()})


def readers(attacked: AttackTarget) -> Iterator[tuple[str, str, str]]:
    """Adversaries that read an update, by which uploads, and what of it, for :func:`read`."""
    yield "server", OPEN, "travelling"
    if attacked.keeps_order or attacked.hides_updates:
        yield "server + one site", COLLUDING, "opened"
    yield "server", MASKED, "masked"


def read(sent: Sent, what: str, attacked: AttackTarget) -> State:
    """Change of every parameter as an adversary reads it."""
    return masked_state(sent.state, attacked.key) if what == "masked" else getattr(sent, what)


def masked_state(state: State, key: Key | None) -> State:
    """Arrays as a server reads them off an upload under keyed sums, whose order is public."""
    sums = KeyedSum(key or Key.generate(), min_sites=2)
    sums.agree("training", {"site": 1.0, "other": 1.0})
    integers = sums.encode(Update("site", 1, dict(state), 1, 1.0)).state["masked"]
    return unpacked(integers, {name: array.shape for name, array in state.items()})


def unpacked(integers: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Masked integers as numbers between -1 and 1, in the order that is public."""
    parts, start = {}, 0
    for name in sorted(shapes):
        stop = start + math.prod(shapes[name])
        parts[name] = (integers[start:stop].astype(np.float64) / 2.0**63 - 1).reshape(shapes[name])
        start = stop
    return parts
