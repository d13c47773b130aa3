"""What any model under attack has."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from scinfl.model.base import Lock, ModelView
from scinfl.nn import (
    CoordinateLinear,
    CoordinateTable,
    KeyedLayer,
    SecretProjection,
    at_boundary,
    keyed_layers,
    set_key,
    unkeyed,
)
from scinfl.privacy import Key

CPU = torch.device("cpu")


class AttackTarget:
    """A trained model that has its key, as all parties see it."""

    model: Any
    key: Key | None
    training: Mapping[str, Any]
    rng: int

    @cached_property
    def view(self) -> ModelView:
        """What may be seen of the model."""
        return ModelView(self.model)

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
        """Whether features keep their order for attackers without the key: without a key, and in published forms."""
        layers = keyed_layers(self.network).values()
        return not any(isinstance(layer, CoordinateLinear | SecretProjection) for layer in layers)

    def true_order(self, name: str) -> np.ndarray:
        """Input that each column of a layer reads, or name that each row of a table belongs to, as the key has it."""
        assert self.key is not None  # noqa: S101
        layer: Any = self.network.get_submodule(name)
        if isinstance(layer, CoordinateTable):
            shape = (layer.out_features, 1 + layer.in_features + layer.n_dims)
            place = self.key.coordinates(f"{name}/rows", shape, layer.row_names)[:, 0]
        else:
            place = self.key.coordinates(f"{name}/permutation", (layer.in_features,))
        return np.argsort(place, kind="stable")

    @cached_property
    def lock(self) -> Lock:
        """How plain parameters become what is sent."""
        return self.view.for_training(self.key).lock

    @cached_property
    def stripped(self) -> nn.Module:
        """What an attacker without the key computes with."""
        return unkeyed(copy.deepcopy(self.network)).eval() if self.is_keyed else self.network

    def site_network(self) -> nn.Module:
        """The trained network as sites train it."""
        network, _, open_state = self.view.for_training(self.key)
        network = network.to(CPU)
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name, value in open_state({name: p.detach().numpy() for name, p in own.items()}).items():
                if name in own:
                    own[name].copy_(value)
        return network


def with_key(network: nn.Module, key: Key | None) -> nn.Module:
    """A copy of a network, with a key inside where it has keyed layers; plain copies come without."""
    network = copy.deepcopy(network)
    if key is not None and keyed_layers(network):
        set_key(network, key.coordinates)
    return network


def draw_again(network: nn.Module, rng: int) -> None:
    """Draw the initial parameters again; of layers with a key inside as torch draws those of linear layers."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(rng)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        for layer in keyed_layers(network).values():
            _draw_layer(layer)


def _draw_layer(layer: KeyedLayer) -> None:
    bound = 1 / math.sqrt(layer.in_features)
    for parameter in layer.parameters(recurse=False):
        parameter.uniform_(-bound, bound)
