"""What a network with a key must never let out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl import nn as keyed_nn


def secret_arrays(network: nn.Module) -> dict[str, np.ndarray]:
    """Coordinates of all keyed layers of a network that has its key, and what was derived from them, by name.

    Secret is what a layer forgets when it is pickled. Scales of a trained meta learner change with every step and are
    not among them; its signs, permutations and features are.
    """
    keyed_nn.unlock(network, network.state_dict())  # lets layers derive what they keep
    found: dict[str, np.ndarray] = {}
    for name, layer in keyed_nn.keyed_layers(network).items():
        if isinstance(layer, keyed_nn.SecretProjection):
            layer(torch.zeros(layer.in_features, device=next(network.parameters()).device))
        pickled = layer.__getstate__()
        for what, value in vars(layer).items():
            if value is not None and pickled[what] is None:
                found |= {f"{name}, {part}": array for part, array in _arrays(what.strip("_"), value)}
    return found


def _arrays(what: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors in nested tuples and mappings, by where they are."""
    if isinstance(value, Tensor):
        yield what, value.detach().cpu().numpy()
    elif isinstance(value, Mapping):
        for part, own in value.items():
            yield from _arrays(f"{what} of {part}", own)
    elif isinstance(value, tuple):
        parts = getattr(value, "_fields", [f"{what} {number}" for number in range(1, len(value) + 1)])
        for part, own in zip(parts, value, strict=True):
            yield from _arrays(part.replace("_", " "), own)
