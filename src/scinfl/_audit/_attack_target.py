"""What any model under attack has."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import nn

from scinfl.model.base._local_training import Lock
from scinfl.nn import CoordinateLinear, SecretProjection, at_boundary, keyed_layers, unkeyed, unlock
from scinfl.privacy import Key

CPU = torch.device("cpu")


class AttackTarget:
    """A trained model that has its key, as all parties see it."""

    model: Any
    key: Key | None
    rng: int

    @property
    def network(self) -> nn.Module:
        """The network with its key."""
        return self.model.module

    @property
    def is_keyed(self) -> bool:
        """Whether the model was trained with a key."""
        return self.key is not None

    @property
    def hides_updates(self) -> bool:
        """Whether what a site sends differs from what it trained, because the key is applied to it."""
        return self.is_keyed and at_boundary(self.network)

    @property
    def keeps_order(self) -> bool:
        """Whether whoever lacks the key still reads features in their order: without a key, and in published forms."""
        layers = keyed_layers(self.network).values()
        return not any(isinstance(layer, CoordinateLinear | SecretProjection) for layer in layers)

    @cached_property
    def lock(self) -> Lock:
        """How plain parameters become what is sent."""
        return self.model._training_network(self.key)[1]

    @cached_property
    def stripped(self) -> nn.Module:
        """What a thief computes with: no key."""
        return unkeyed(copy.deepcopy(self.network)).eval() if self.is_keyed else self.network

    def site_network(self) -> nn.Module:
        """The trained network as sites train it."""
        network = self.model._training_network(self.key)[0].to(CPU)
        if self.hides_updates:
            own = dict(network.named_parameters())
            with torch.no_grad():
                for name, value in unlock(self.network, dict(network.named_parameters())).items():
                    if name in own:
                        own[name].copy_(value)
        return network
