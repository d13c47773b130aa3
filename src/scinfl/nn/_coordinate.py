"""Keyed linear layer: every unit has a secret coordinate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed_layer import KeyedLayer


class _Units(NamedTuple):
    """What the key sets for the units of a layer, whatever the meta learner: secret, and not part of the state."""

    permutation: Tensor  # (n_inputs,)
    inverse: Tensor  # (n_inputs,), of the permutation
    input_signs: Tensor  # (n_inputs,)
    output_signs: Tensor  # (n_outputs,)
    input_features: Tensor  # (n_inputs, width), of the meta learner at the coordinates
    output_features: Tensor  # (n_outputs, width)


class _Reading(NamedTuple):
    """What the meta learner makes of it."""

    input_scale: Tensor  # (n_inputs,)
    output_scale: Tensor  # (n_outputs,)
    shift: Tensor  # (n_outputs,)


class _Factors(NamedTuple):
    """Factors of the columns and rows of a permuted weight."""

    to_plain: tuple[Tensor, Tensor]
    to_locked: tuple[Tensor, Tensor]


class MetaLearner(nn.Module):
    r"""Sinusoidal implicit representation, read at the units' secret coordinates.

    .. math:: f_\theta(c) = A_3 \sin(\omega_0 (A_2 \sin(\omega_0 (A_1 c + a_1)) + a_2)) + a_3

    with three outputs for each coordinate: input magnitude, output magnitude and shift (SIREN, Sitzmann et al. 2020,
    whose initialisation is used). The outputs are standardised over the units of the layer and bounded by tanh.

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

    Examples
    --------
    >>> import torch, scinfl as si
    >>> meta = si.nn.MetaLearner(n_dims=4, width=32, frequency=30.0, generator=None)
    >>> meta(torch.rand(10, 4) * 2 - 1).shape
    torch.Size([10, 3])
    """

    weight3: nn.Parameter
    bias3: nn.Parameter

    def __init__(self, n_dims: int, width: int, frequency: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.frequency = frequency
        sizes = ((n_dims, width), (width, width), (width, 3))
        bounds = (1 / n_dims, math.sqrt(6 / width) / frequency, math.sqrt(6 / width))
        for number, ((n_in, n_out), bound) in enumerate(zip(sizes, bounds, strict=True), start=1):
            for name, shape in ((f"weight{number}", (n_out, n_in)), (f"bias{number}", (n_out,))):
                values = (torch.rand(shape, generator=generator) * 2 - 1) * bound
                self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def features(self, coordinates: Tensor) -> Tensor:
        """Second hidden layer (units × width) at coordinates (units × dims), in the precision of the coordinates."""
        theta = {name: p.detach().to(coordinates) for name, p in self.named_parameters()}
        hidden = torch.sin(self.frequency * F.linear(coordinates, theta["weight1"], theta["bias1"]))
        return torch.sin(self.frequency * F.linear(hidden, theta["weight2"], theta["bias2"]))

    def read_out(self, features: Tensor, opened: Callable[[str, Tensor], Tensor] | None = None) -> Tensor:
        """Three outputs (units × 3) of features (units × width), standardised over the units and bounded by tanh.

        ``opened`` takes the offsets off the read-out, by the name of the parameter.
        """
        weight, bias = self.weight3, self.bias3
        if opened is not None:
            weight, bias = opened("weight3", weight), opened("bias3", bias)  # type: ignore[assignment]
        values = F.linear(features, weight.to(features), bias.to(features))
        deviation = values - values.mean(0)
        return torch.tanh(deviation / deviation.square().mean(0).clamp_min(1e-12).sqrt())

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map coordinates (units × dims) to standardised and bounded outputs (units × 3)."""
        return self.read_out(self.features(coordinates))


class CoordinateLinear(KeyedLayer):
    r"""Linear layer that computes what it was trained to only when read at its secret coordinates.

    .. math::
        W = (W' - u) \bmod [-R, R), \qquad b = (b' - v) \bmod [-R, R)

    .. math::
        x' = s_\text{in} \circ x_\pi, \qquad
        y = s_\text{out} \circ (W x') + b + \delta \tanh z_3(c_\text{out})

    .. math::
        s = \pm \exp(\mu \tanh z(c)), \qquad
        z = \text{standardised } f_\theta(c) \text{ over the units of the layer}

    States hold :math:`W', b'`. The offsets :math:`u, v` are uniform on :math:`[-R, R)`, from the key stream, under a
    label that names layer, parameter, shape and the public id of the model (:func:`set_model_id`); :math:`R` is 1,024
    times the initial standard deviation :math:`1/\sqrt{3 n_\text{in}}` of the parameter, rounded up to a power of two.
    So a stored number is uniform, whatever the trained one is, as with a one-time pad. They are stored in double
    precision, in which this is exact, and computed with in single precision. Two states under different ids share no
    offset. Without an id, as in files of version 0.1, offsets are zero. A trained read-out is stored in the same way.

    Unit :math:`i` of the layer has the secret coordinate :math:`c_i \in [-1, 1)^d`. The permutation :math:`\pi` of the
    inputs and all signs come straight from the key. Magnitudes (:math:`\mu = 0.25`, so 0.78 … 1.28) and shifts
    (:math:`\delta = 0.2`) are the outputs of the :class:`MetaLearner` :math:`f_\theta` at the coordinates: its first
    output for the inputs, its second and third for the outputs.

    Without coordinates the layer is :math:`y = W' x + b'` (a stripped module). The map from :math:`(W', b')` to the
    weights it represents is affine and invertible (:meth:`unlock`, :meth:`lock`), so that a site may train the plain
    layer and apply the key only to what it sends, receives and saves.

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
    train_meta
        Train the read-out of the meta learner (:math:`A_3`, :math:`a_3`) with the rest. Its features at the coordinates
        stay fixed, its outputs standardised and bounded, and signs and permutation stay with the key: trained freely,
        signs would flip between sites and magnitudes drift to their bounds. Off by default: a trained read-out has not
        predicted better, and its gradients show the features of the units.
    generator
        Source of the meta learner's parameters.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> layer = si.nn.CoordinateLinear(torch.nn.Linear(5, 3))
    >>> layer.set_coordinates(si.privacy.Key.generate().coordinates)
    >>> layer
    CoordinateLinear(
      5, 3, bias=True, is_set=True
    ...
    >>> layer(torch.ones(4, 5)).shape
    torch.Size([4, 3])
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
        train_meta: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(linear)
        if self.bias is None:
            shift = 0.0  # a shift could not be folded into a layer without bias
        self.magnitude, self.shift, self.n_dims = magnitude, shift, n_dims
        self.meta = MetaLearner(n_dims, width, frequency, generator)
        self.train_meta = train_meta
        for parameter in (self.meta.weight3, self.meta.bias3):
            parameter.requires_grad_(train_meta)
        self._units: _Units | None = None
        self._reading: _Reading | None = None
        self._factors: _Factors | None = None

    @property
    def at_boundary(self) -> bool:
        """True where the meta learner is frozen, because the lock is a fixed change of coordinates then."""
        return not self.train_meta

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
        self._units = self._reading = self._factors = None

    def _read_units(self) -> _Units:
        """Permutation, signs and features, in float64, so that all machines agree."""
        if self._units is None:
            secret = self._secret()
            with torch.inference_mode(mode=False), torch.no_grad():  # it is kept, and training may read it later
                permutation = torch.argsort(secret["permutation"], stable=True)
                self._units = _Units(
                    permutation=permutation,
                    inverse=torch.argsort(permutation),
                    input_signs=_signs(secret["input signs"]),
                    output_signs=_signs(secret["output signs"]),
                    input_features=self.meta.features(secret["inputs"]),
                    output_features=self.meta.features(secret["outputs"]),
                )
        return self._units

    def _read(self) -> _Reading:
        """Scales and shifts; kept where the meta learner is frozen."""
        if self._reading is not None:
            return self._reading
        units, like = self._read_units(), self.weight.detach()
        grad, inference = (self.train_meta and on() for on in (torch.is_grad_enabled, torch.is_inference_mode_enabled))
        with torch.inference_mode(mode=inference), torch.set_grad_enabled(grad):
            at_inputs, at_outputs = (
                self.meta.read_out(f, self._opened_meta) for f in (units.input_features, units.output_features)
            )
            reading = _Reading(
                input_scale=(units.input_signs * torch.exp(self.magnitude * at_inputs[:, 0])).to(like),
                output_scale=(units.output_signs * torch.exp(self.magnitude * at_outputs[:, 1])).to(like),
                shift=(self.shift * at_outputs[:, 2]).to(like),
            )
        if not self.train_meta:
            self._reading = reading
        return reading

    def _read_factors(self) -> _Factors:
        """What locking and unlocking multiply with; kept where the meta learner is frozen."""
        if self._factors is not None:
            return self._factors
        inverse, (scale_in, scale_out, _) = self._read_units().inverse, self._read()
        grad, inference = torch.is_grad_enabled(), self.train_meta and torch.is_inference_mode_enabled()
        with torch.inference_mode(mode=inference), torch.set_grad_enabled(grad):
            factors = _Factors(
                to_plain=(scale_in[inverse], scale_out[:, None]), to_locked=(1 / scale_in, (1 / scale_out)[:, None])
            )
        if not self.train_meta:
            self._factors = factors
        return factors

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_inputs) to (…, n_outputs)."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad) or self._coordinates is None:
            return F.linear(x, *self.folded())
        input_scale, output_scale, shift = map(self.computed, self._read())
        weight, bias = self._plain("weight"), self._plain("bias")
        y = F.linear(x[..., self._read_units().permutation] * input_scale, weight) * output_scale
        return y if bias is None else y + (bias + shift)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes what this layer computes, with gradients."""
        return self._derived(self._folded)

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        if self._coordinates is None:
            return self.computed(self.weight), None if self.bias is None else self.computed(self.bias)
        scale_in, scale_out, shift = self._read()
        inverse = self._read_units().inverse
        weight, bias = self._off(self.weight, self.bias, -1)
        plain = weight.index_select(1, inverse) * scale_in[inverse] * scale_out[:, None]
        return self.computed(plain), None if bias is None else self.computed(bias + shift)

    @torch.no_grad()
    def unlock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weights of the plain layer that computes what this layer computes with ``weight`` and ``bias``."""
        columns, rows = self._read_factors().to_plain
        weight, bias = self._off(weight, bias, -1)
        plain = weight.index_select(1, self._read_units().inverse).mul_(columns).mul_(rows)
        return self.computed(plain), None if bias is None else self.computed(bias + self._read().shift)

    @torch.no_grad()
    def lock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inverse of :meth:`unlock`: what this layer must hold to compute what a plain layer computes."""
        columns, rows = self._read_factors().to_locked
        locked = weight.to(columns).index_select(1, self._read_units().permutation).mul_(columns).mul_(rows)
        return self._off(locked, None if bias is None else bias - self._read().shift, 1)

    def spreads(self) -> dict[str, float | Tensor]:
        spread = 1 / math.sqrt(3 * self.in_features)
        spreads: dict[str, float | Tensor] = {"weight": spread}
        if self.bias is not None:
            spreads["bias"] = spread
        return spreads | (meta_spreads(self.meta) if self.train_meta else {})

    def _off(self, weight: Tensor, bias: Tensor | None, sign: int) -> tuple[Tensor, Tensor | None]:
        """Parameters with their offsets added or taken off."""
        return self.shifted("weight", weight, sign), None if bias is None else self.shifted("bias", bias, sign)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_units": None, "_reading": None, "_factors": None}


def meta_spreads(meta: MetaLearner) -> dict[str, float | Tensor]:
    """Initial standard deviations of a read-out, as a layer names its parameters."""
    return {f"meta.{what}": math.sqrt(2 / meta.weight3.shape[1]) for what in ("weight3", "bias3")}


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0, -1.0, 1.0).to(uniform)
