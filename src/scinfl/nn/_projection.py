"""A first layer that nobody but the sites knows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed_layer import KeyedLayer


class SecretProjection(KeyedLayer):
    r"""Fixed random projection that the key gives.

    .. math:: y = P x, \qquad P_{ij} = \sqrt{3 / n_\text{in}} \; u_{ij}, \qquad u_{ij} \in [-1, 1) \text{ secret}

    It has no parameters: nothing of it is trained, sent or saved, so no gradient of a first layer, which would span the
    cells of a batch, ever leaves a site. Without the key the layer gives zeros.

    Parameters
    ----------
    linear
        Layer to put it in place of; its parameters are dropped.
    generator
        Not used; here so that all keyed layers are made in the same way.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> layer = si.nn.SecretProjection(torch.nn.Linear(5, 3))
    >>> layer.set_coordinates(si.privacy.Key.generate().coordinates)
    >>> layer(torch.ones(4, 5)).shape, list(layer.parameters())
    (torch.Size([4, 3]), [])
    """

    def __init__(self, linear: nn.Linear, *, generator: torch.Generator | None = None) -> None:
        del generator
        super().__init__(linear)
        del self.weight, self.bias
        self._projection: Tensor | None = None
        self._like: Tensor
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows device and precision

    @property
    def at_boundary(self) -> bool:
        """True, since there is nothing to send."""
        return True

    def labels(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The projection."""
        return {"projection": (f"{name}/projection", (self.out_features, self.in_features))}

    def clear_coordinates(self) -> None:
        """Forget the projection."""
        super().clear_coordinates()
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._projection = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_inputs) to (…, n_outputs)."""
        if self._projection is None:
            if self._coordinates is None:
                return x.new_zeros((*x.shape[:-1], self.out_features))  # what is left without the module
            scale = math.sqrt(3 / self.in_features)
            with torch.inference_mode(mode=False):  # it is kept, and training may read it later
                self._projection = (self._coordinates["projection"] * scale).to(self._like)
        return F.linear(x, self._projection)

    def extra_repr(self) -> str:
        """Shapes and whether the layer has its projection; never a value."""
        return f"{self.in_features}, {self.out_features}, is_set={self.is_set}"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_projection": None}
