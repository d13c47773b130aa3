"""Key-derived offsets that hide parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Coordinates = Callable[..., np.ndarray]
"""Maps a label and a shape to secret numbers, uniform on [−1, 1): for example ``Key.coordinates``.

With a third argument, names, each row belongs to a name and is the same in whatever order and company."""

STRENGTH = 30.0
"""Standard deviation of an offset, in initial standard deviations of the parameter that it hides."""
_FARTHEST = 3.0  # standard deviations at which the normal distribution of offsets is cut off
_T = TypeVar("_T")


def new_model_id() -> str:
    """Draw a public name for one version of a model: 128 bits from the operating system.

    Examples
    --------
    >>> import scinfl as si
    >>> len(si.nn.new_model_id())
    32
    """
    return os.urandom(16).hex()


class Hidden(nn.Module):
    """Module whose parameters are stored behind offsets, where it has a key and the model an id.

    Behind offsets 30 times as large, single precision would keep five digits of a parameter. So what is hidden is
    stored in double precision, and computed with in the precision that it had; a device that has no double precision
    keeps the five digits.

    The id is public, and copies have it. Offsets, and parameters without them, are secret plain attributes: neither
    states nor pickles nor copies hold them.
    """

    model_id: str | None = None
    _computes_in: torch.dtype | None = None
    _offsets: dict[str, Tensor] | None = None
    _offsets_like: dict[str, Tensor] | None = None
    _kept: tuple[object, Any] | None = None

    def spreads(self) -> dict[str, float | Tensor]:
        """Initial standard deviation of the parameters to hide, by name."""
        return {}

    def rename(self, model_id: str | None) -> None:
        """Take another id, and the precision of what is stored under it."""
        self._forget_offsets()
        self.model_id = model_id
        for what, parameter in self.named_parameters():
            if what not in self.spreads():
                continue
            self._computes_in = self._computes_in or parameter.dtype
            parameter.data = parameter.data.to(self._computes_in if model_id is None else _double(parameter))
        if model_id is None:
            self._computes_in = None

    def draw_offsets(self, coordinates: Coordinates, name: str, model_id: str) -> dict[str, Tensor]:
        """Offsets of all parameters under an id, by name; of a module that has its key."""
        return {
            what: self._draw(coordinates, f"{name}/offsets of {what}/{model_id}", what, spread)
            for what, spread in self.spreads().items()
        }

    def _draw(self, coordinates: Coordinates, label: str, what: str, spread: float | Tensor) -> Tensor:
        return offset_of(coordinates, label, dict(self.named_parameters())[what].shape, spread)

    def _read_offsets(self, coordinates: Coordinates, name: str) -> None:
        self._forget_offsets()
        if self.model_id is not None:
            self._offsets = self.draw_offsets(coordinates, name, self.model_id)

    def _forget_offsets(self) -> None:
        self._offsets = self._offsets_like = self._kept = None

    def offsets(self) -> dict[str, Tensor]:
        """What the key adds to every parameter, by name; nothing without the key or an id of the model."""
        if not self._offsets:
            return {}
        if self._offsets_like is None:
            like = dict(self.named_parameters())
            with torch.inference_mode(mode=False):  # it is kept, and training may read it later
                self._offsets_like = {what: value.to(like[what]) for what, value in self._offsets.items()}
        return self._offsets_like

    def shifted(self, what: str, value: Tensor, sign: int = 1) -> Tensor:
        """A value of a parameter behind its offset, in the precision of that; with sign -1, in front of it."""
        offset = self.offsets().get(what)
        return value if offset is None else torch.add(value.to(offset), offset, alpha=sign)

    def computed(self, value: Tensor) -> Tensor:
        """A value in the precision that the module computes in."""
        return value if self._computes_in is None else value.to(self._computes_in)

    def _plain(self, what: str) -> Any:
        """A parameter of the module itself without its offset."""
        stored = self._parameters.get(what)
        return None if stored is None else self.computed(self.shifted(what, stored, -1))

    def _derived(self, compute: Callable[[], _T]) -> _T:
        """What follows from parameters and key: kept until either changes, unless a gradient is asked for."""
        parameters = list(self.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return compute()
        state = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._kept = (state, compute())
        return self._kept[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        self._offsets_like = self._kept = None  # device or precision may change
        if self._computes_in is None:
            return super()._apply(fn, recurse)
        self._computes_in = fn(torch.empty(0, dtype=self._computes_in)).dtype
        try:
            return super()._apply(fn, recurse)
        except TypeError:  # a device without double precision
            for what, parameter in self.named_parameters():
                if what in self.spreads():
                    parameter.data = parameter.data.to(self._computes_in)
            return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_offsets": None, "_offsets_like": None, "_kept": None}


def _double(parameter: Tensor) -> torch.dtype:
    return parameter.dtype if parameter.device.type == "mps" else torch.float64


def offset_of(
    coordinates: Coordinates,
    label: str,
    shape: tuple[int, ...],
    spread: float | Tensor,
    row_names: Sequence[str] | None = None,
) -> Tensor:
    """Offset of one parameter: normal, cut off at three standard deviations."""
    names = () if row_names is None else (row_names,)
    uniform = torch.from_numpy(coordinates(label, tuple(shape), *names))
    normal = math.sqrt(2) * torch.erfinv(uniform * math.erf(_FARTHEST / math.sqrt(2)))
    return STRENGTH * torch.as_tensor(spread, dtype=torch.float64) * normal


def parameter_name(module: str, what: str) -> str:
    """Name of a parameter in the state of a network; the network itself has no name."""
    return f"{module}.{what}" if module else what


def hidden(network: nn.Module) -> dict[str, Hidden]:
    """Modules of a network that a key can hide, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Hidden)}


def set_model_id(network: nn.Module, model_id: str | None) -> None:
    """Name the version of the model, which the offsets follow; the network forgets its key.

    Parameters that are stored behind offsets are kept in double precision.

    Parameters
    ----------
    network
        Network with keyed layers.
    model_id
        What :func:`new_model_id` drew; ``None`` for no offsets.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Linear(5, 3))
    >>> si.nn.set_model_id(network, si.nn.new_model_id())
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    """
    for module in hidden(network).values():
        module.clear_coordinates()  # type: ignore[operator]
        module.rename(model_id)


def add_offsets(
    network: nn.Module, state: Mapping[str, Tensor], *, sign: int = 1, but: Collection[str] = ()
) -> dict[str, Tensor]:
    """State behind the offsets of a network that has its key; with sign -1, the state in front of them.

    Parameters
    ----------
    network
        Network with its key.
    state
        Parameters by name; others pass unchanged.
    sign
        1 to add, -1 to take off.
    but
        Names to leave alone.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> from scinfl.nn import add_offsets
    >>> network = si.nn.keyed(torch.nn.Linear(5, 3))
    >>> si.nn.set_model_id(network, si.nn.new_model_id())
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> state = add_offsets(network, network.state_dict())
    >>> bool(state["weight"].std() > 10 * network.weight.std())
    True
    """
    result = dict(state)
    with torch.no_grad():
        for name, module in hidden(network).items():
            for what in module.offsets():
                full = parameter_name(name, what)
                if full in result and full not in but:
                    value = module.shifted(what, result[full], sign)
                    result[full] = value if sign > 0 else module.computed(value)
    return result


def offsets_under(network: nn.Module, coordinates: Coordinates, model_id: str) -> dict[str, np.ndarray]:
    """Offsets of all parameters of a network that has its key, under any id, by name.

    Parameters
    ----------
    network
        Network with its key.
    coordinates
        Those of the key.
    model_id
        What the offsets follow; that of the network does not matter.
    """
    return {
        parameter_name(name, what): offset.numpy()
        for name, module in hidden(network).items()
        for what, offset in module.draw_offsets(coordinates, name, model_id).items()
    }


def has_offsets(network: nn.Module) -> bool:
    """Whether a key can store parameters of the network behind offsets."""
    return any(module.spreads() for module in hidden(network).values())
