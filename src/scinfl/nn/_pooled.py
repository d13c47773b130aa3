"""The second published key scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed_layer import KeyedLayer
from scinfl.nn._permuted import _linear

_N_POINTS = 128
_N_KEY = 16


class PooledLinear(KeyedLayer):
    r"""Linear layer that is modulated by one vector, pooled from secret points (second form of arXiv 2603.28334).

    .. math::
        k = \tfrac{1}{128} \sum_p e(p), \qquad (a, \beta) = g(k), \qquad
        h = \big(W \circ (1 + s \tanh a)\big) x + b + s \tanh \beta

    .. math::
        (\gamma', \beta') = u([P h, k, P h \circ k]), \qquad y = h \circ (1 + s \tanh \gamma') + s \tanh \beta'

    The key is 128 secret points in :math:`[-1, 1]^2`. The encoder :math:`e` (2–16–16) is one for the whole network;
    each layer has its modulator :math:`g` (16–8–2n) and its activation-dependent modulation :math:`u`; SiLU and
    LayerNorm in between. All are trained with the rest.

    Built for comparison. A mean of 128 random points is nearly the same for every key, so a wrong key predicts nearly
    as well as the right one.

    Parameters
    ----------
    linear
        Layer to key.
    encoder
        :math:`e`; one of its own by default.
    strength
        :math:`s`.
    generator
        Source of the modules' parameters.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> layer = si.nn.PooledLinear(torch.nn.Linear(5, 3))
    >>> layer.set_coordinates(si.privacy.Key.generate().coordinates)
    >>> layer
    PooledLinear(
      5, 3, bias=True, is_set=True
    ...
    >>> layer(torch.ones(4, 5)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        encoder: nn.Module | None = None,
        strength: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(linear)
        self.strength = strength
        n = self.out_features
        self.meta = nn.ModuleDict(
            {
                "encoder": _perceptron(2, _N_KEY, _N_KEY, generator) if encoder is None else encoder,
                "modulator": _perceptron(_N_KEY, 8, 2 * n, generator),
                "projection": _linear(n, _N_KEY, generator),
                "film": _linear(3 * _N_KEY, 2 * n, generator),
            }
        )

    @classmethod
    def build(
        cls, linears: Mapping[str, nn.Linear], generator: torch.Generator | None, **options: Any
    ) -> dict[str, Self]:
        """Key several layers of one network, which share the encoder."""
        options.setdefault("encoder", _perceptron(2, _N_KEY, _N_KEY, generator))
        return super().build(linears, generator, **options)

    def labels(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The same points for all layers."""
        del name
        return {"points": ("points", (_N_POINTS, 2))}

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_inputs) to (…, n_outputs)."""
        if self._coordinates is None:
            return F.linear(x, self.weight, self.bias)
        return self.modulated(x, self.meta["encoder"](self._secret()["points"].to(self.weight)).mean(0))

    def modulated(self, x: Tensor, k: Tensor) -> Tensor:
        """What the layer computes with a pooled vector (16)."""
        s = self.strength
        scale, shift = self.meta["modulator"](k).chunk(2)
        bias = 0.0 if self.bias is None else self.bias
        h = F.linear(x, self.weight * (1 + s * torch.tanh(scale))[:, None]) + bias + s * torch.tanh(shift)
        projected = self.meta["projection"](h)
        film = self.meta["film"](torch.cat([projected, k.expand_as(projected), projected * k], dim=-1))
        gamma, beta = film.chunk(2, dim=-1)
        return h * (1 + s * torch.tanh(gamma)) + s * torch.tanh(beta)


def _perceptron(n_in: int, n_hidden: int, n_out: int, generator: torch.Generator | None) -> nn.Sequential:
    return nn.Sequential(
        _linear(n_in, n_hidden, generator), nn.SiLU(), nn.LayerNorm(n_hidden), _linear(n_hidden, n_out, generator)
    )
