"""What a site sends when it trains a classifier on its cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from scinfl._audit._attack_target import CPU, draw_again
from scinfl._audit._simulated_site import Sent, SimulatedSite
from scinfl._audit.classifier._target import Rows, Target
from scinfl.model.base import Cells
from scinfl.privacy import attacks


class Sender(SimulatedSite):
    """A site that trains a classifier on cells."""

    def __init__(self, network: nn.Module, target: Target) -> None:
        super().__init__(network, target)
        self._target = target

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
        x, y = rows.x.numpy(), rows.y.numpy()
        return self.local_round(Cells(x, np.arange(len(x)), y, CPU), number=number)


def sender_of(target: Target, *, fresh: bool) -> Sender:
    """A site that holds the network, trained or as it was before the first round."""
    network = target.site_network()
    if fresh:
        draw_again(network, target.rng)
    return Sender(network.eval(), target)
