"""The first published key scheme."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed_layer import KeyedLayer

_N_FREQUENCIES = 8


class PermutedLinear(KeyedLayer):
    r"""Linear layer with a bias that is read at permuted public coordinates (first form of arXiv 2603.28334).

    .. math::
        y_i = W_i x + b_i + f_\theta(\gamma(c_{\pi(i)})), \qquad c_i = \frac{2i}{n - 1} - 1, \qquad
        \gamma(c) = (\sin 2^l \pi c, \cos 2^l \pi c)_{l < 8}

    The key is the permutation :math:`\pi` of the units; :math:`f_\theta` is a perceptron 16–h–h–1 with ReLU, trained
    with the rest. With ``mix`` the layer computes :math:`\alpha (W x + b) + (1 - \alpha) f_\theta` instead.

    Built for comparison. What the module adds does not depend on the input, so the layer is a plain one with another
    bias: a wrong key predicts nearly as well as the right one, and a normalisation that follows cancels the module.

    Parameters
    ----------
    linear
        Layer to key.
    width
        Hidden units :math:`h` of the module.
    mix
        :math:`\alpha`.
    generator
        Source of the module's parameters.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> layer = si.nn.PermutedLinear(torch.nn.Linear(5, 3))
    >>> layer.set_coordinates(si.privacy.Key.generate().coordinates)
    >>> layer
    PermutedLinear(
      5, 3, bias=True, is_set=True
    ...
    >>> layer(torch.ones(4, 5)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        width: int = 4,
        mix: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(linear)
        self.mix = mix
        self.meta = nn.Sequential(
            *(_linear(2 * _N_FREQUENCIES, width, generator), nn.ReLU()),
            *(_linear(width, width, generator), nn.ReLU()),
            _linear(width, 1, generator),
        )

    def labels(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """One number per unit, whose ranks are the permutation."""
        return {"order": (f"{name}/unit order", (self.out_features,))}

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_inputs) to (…, n_outputs)."""
        y = F.linear(x, self.weight, self.bias)
        if self._coordinates is None:
            return y
        n = self.out_features
        permutation = torch.argsort(self._secret()["order"], stable=True)
        c = (2 * permutation.to(y) / max(n - 1, 1) - 1)[:, None]
        angles = math.pi * c * 2.0 ** torch.arange(_N_FREQUENCIES, dtype=y.dtype, device=y.device)
        added = self.meta(torch.cat([angles.sin(), angles.cos()], dim=1))[:, 0]
        return y + added if self.mix is None else self.mix * y + (1 - self.mix) * added


def _linear(n_in: int, n_out: int, generator: torch.Generator | None) -> nn.Linear:
    """Linear layer with torch's usual initial values, from a generator."""
    layer = nn.Linear(n_in, n_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator)
    return layer
