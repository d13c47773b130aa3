"""Keyed linear layer: every unit has a secret coordinate of its own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed_layer import KeyedLayer


class _Reading(NamedTuple):
    """What a layer does with its key: all of it secret, none of it in the state."""

    permutation: Tensor  # (n_inputs,)
    inverse: Tensor  # (n_inputs,), of the permutation
    input_scale: Tensor  # (n_inputs,)
    output_scale: Tensor  # (n_outputs,)
    shift: Tensor  # (n_outputs,)
    to_plain: tuple[Tensor, Tensor]  # factors of the columns and rows of a permuted weight
    to_locked: tuple[Tensor, Tensor]


class MetaLearner(nn.Module):
    r"""Sinusoidal implicit representation, read at the units' secret coordinates.

    .. math:: f_\theta(c) = A_3 \sin(\omega_0 (A_2 \sin(\omega_0 (A_1 c + a_1)) + a_2)) + a_3

    with three outputs for each coordinate: input magnitude, output magnitude and shift (SIREN, Sitzmann et al. 2020,
    whose initialisation is used).

    Parameters
    ----------
    n_dims
        Dimensions of a coordinate.
    width
        Units of the two hidden layers.
    frequency
        :math:`\omega_0`.
    generator
        Source of the initial parameters.
    """

    def __init__(self, n_dims: int, width: int, frequency: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.frequency = frequency
        sizes = ((n_dims, width), (width, width), (width, 3))
        bounds = (1 / n_dims, math.sqrt(6 / width) / frequency, math.sqrt(6 / width))
        for number, ((n_in, n_out), bound) in enumerate(zip(sizes, bounds, strict=True), start=1):
            for name, shape in ((f"weight{number}", (n_out, n_in)), (f"bias{number}", (n_out,))):
                values = (torch.rand(shape, generator=generator) * 2 - 1) * bound
                self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map coordinates (units × dims) to (units × 3), in the precision of the coordinates."""
        theta = [p.to(coordinates) for p in self.parameters()]
        hidden = torch.sin(self.frequency * F.linear(coordinates, theta[0], theta[1]))
        hidden = torch.sin(self.frequency * F.linear(hidden, theta[2], theta[3]))
        return F.linear(hidden, theta[4], theta[5])


class CoordinateLinear(KeyedLayer):
    r"""Linear layer that computes what it was trained to only when read at its secret coordinates.

    .. math::
        x' = s_\text{in} \circ x_\pi, \qquad
        y = s_\text{out} \circ (W x') + b + \delta \tanh z_3(c_\text{out})

    .. math::
        s = \pm \exp(\mu \tanh z(c)), \qquad
        z = \text{standardised } f_\theta(c) \text{ over the units of the layer}

    Unit :math:`i` of the layer has the secret coordinate :math:`c_i \in [-1, 1)^d`. The permutation :math:`\pi` of the
    inputs and all signs come straight from the key. Magnitudes (:math:`\mu = 0.25`, so 0.78 … 1.28) and shifts
    (:math:`\delta = 0.2`) are what the :class:`MetaLearner` :math:`f_\theta` says at the coordinates: its first output
    for the inputs, its second and third for the outputs.

    Without coordinates the layer is the plain :math:`y = W x + b` (a stripped module). The map from
    :math:`(W, b)` to the weights it stands for is invertible (:meth:`unlock`, :meth:`lock`), so that a site may train
    the plain layer and apply the key only to what it sends, receives and saves.

    Nothing derived from the coordinates is a parameter or a buffer; pickles and copies come without it.

    Parameters
    ----------
    linear
        Layer to key. Its parameters are taken over under the same names.
    n_dims
        Dimensions of a coordinate, :math:`d`.
    width, frequency
        Hidden units and :math:`\omega_0` of the meta learner.
    magnitude, shift
        Bounds :math:`\mu` and :math:`\delta`; 0 leaves signs and permutation alone.
    generator
        Source of the meta learner's parameters.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        n_dims: int = 4,
        width: int = 32,
        frequency: float = 30.0,
        magnitude: float = 0.25,
        shift: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(linear)
        if self.bias is None:
            shift = 0.0  # a shift could not be folded into a layer without bias
        self.magnitude, self.shift, self.n_dims = magnitude, shift, n_dims
        self.meta = MetaLearner(n_dims, width, frequency, generator)
        self._reading: _Reading | None = None

    @property
    def at_boundary(self) -> bool:
        """True: the meta learner is frozen, so the lock is a fixed change of coordinates."""
        return True

    def labels(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Permutation, signs and coordinates of the units."""
        n_in, n_out = self.in_features, self.out_features
        shapes: dict[str, tuple[int, ...]] = {
            "permutation": (n_in,),
            "input signs": (n_in,),
            "output signs": (n_out,),
            "inputs": (n_in, self.n_dims),
            "outputs": (n_out, self.n_dims),
        }
        return {what: (f"{name}/{what}", shape) for what, shape in shapes.items()}

    def clear_coordinates(self) -> None:
        """Forget the coordinates and all that was derived from them."""
        super().clear_coordinates()
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._reading = None

    def _read(self) -> _Reading:
        """Signs, permutation, magnitudes and shifts, in float64 first, so that all machines agree."""
        if self._reading is None:
            secret = self._secret()
            at_inputs, at_outputs = self._field(secret["inputs"]), self._field(secret["outputs"])
            permutation = torch.argsort(secret["permutation"], stable=True)
            inverse = torch.argsort(permutation)
            scale_in = _signs(secret["input signs"]) * torch.exp(self.magnitude * at_inputs[:, 0])
            scale_out = _signs(secret["output signs"]) * torch.exp(self.magnitude * at_outputs[:, 1])
            like = self.weight.detach()
            self._reading = _Reading(
                permutation=permutation,
                inverse=inverse,
                input_scale=scale_in.to(like),
                output_scale=scale_out.to(like),
                shift=(self.shift * at_outputs[:, 2]).to(like),
                to_plain=(scale_in[inverse].to(like), scale_out[:, None].to(like)),
                to_locked=((1 / scale_in).to(like), (1 / scale_out)[:, None].to(like)),
            )
        return self._reading

    def _field(self, coordinates: Tensor) -> Tensor:
        """Bounded read-out of the meta learner, standardised over the units of the layer."""
        with torch.no_grad():
            values = self.meta(coordinates)
            deviation = values - values.mean(0)
            return torch.tanh(deviation / deviation.square().mean(0).sqrt().clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_inputs) to (…, n_outputs)."""
        if self._coordinates is None:
            return F.linear(x, self.weight, self.bias)
        secret = self._read()
        y = F.linear(x[..., secret.permutation] * secret.input_scale, self.weight) * secret.output_scale
        return y if self.bias is None else y + (self.bias + secret.shift)

    @torch.no_grad()
    def unlock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weights of the plain layer that computes what this layer computes with ``weight`` and ``bias``."""
        secret = self._read()
        plain = weight.index_select(1, secret.inverse)
        plain.mul_(secret.to_plain[0]).mul_(secret.to_plain[1])
        return plain, None if bias is None else bias + secret.shift

    @torch.no_grad()
    def lock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inverse of :meth:`unlock`: what this layer must hold to compute what a plain layer computes."""
        secret = self._read()
        locked = weight.index_select(1, secret.permutation)
        locked.mul_(secret.to_locked[0]).mul_(secret.to_locked[1])
        return locked, None if bias is None else bias - secret.shift

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_reading": None}


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0, -1.0, 1.0).to(uniform)
