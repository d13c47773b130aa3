"""Key-derived offsets that hide parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Coordinates = Callable[..., np.ndarray]
"""Maps a label and a shape to secret numbers, uniform on [−1, 1): for example ``Key.coordinates``.

With a third argument, names, each row belongs to a name and is the same in whatever order and company."""

STRENGTH = 30.0
"""Standard deviation of an offset, in initial standard deviations of the parameter that it hides."""
_FARTHEST = 3.0  # standard deviations at which the normal distribution of offsets is cut off
_ROOM = 14.0  # initial standard deviations of a parameter that training may take it to


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

    The id is public, and copies have it. Offsets are secret plain attributes: neither states nor pickles nor copies
    hold them.
    """

    model_id: str | None
    _offsets: dict[str, Tensor] | None
    _offsets_like: dict[str, Tensor] | None

    def spreads(self) -> dict[str, float | Tensor]:
        """Initial standard deviation of the parameters to hide, by name."""
        return {}

    def draw_offsets(self, coordinates: Coordinates, name: str, model_id: str) -> dict[str, Tensor]:
        """Offsets of all parameters under an id, by name; of a module that has its key."""
        return {
            what: self._draw(coordinates, f"{name}/offsets of {what}/{model_id}", what, spread)
            for what, spread in self.spreads().items()
        }

    def _draw(self, coordinates: Coordinates, label: str, what: str, spread: float | Tensor) -> Tensor:
        return offset_of(coordinates, label, dict(self.named_parameters())[what].shape, spread)

    def _read_offsets(self, coordinates: Coordinates, name: str) -> None:
        self._offsets_like = None
        self._offsets = None if self.model_id is None else self.draw_offsets(coordinates, name, self.model_id)

    def _forget_offsets(self) -> None:
        self._offsets = self._offsets_like = None

    def offsets(self) -> dict[str, Tensor]:
        """What the key adds to every parameter, by name; nothing without the key or an id of the model."""
        if not self._offsets:
            return {}
        if self._offsets_like is None:
            like = next(self.parameters())
            with torch.inference_mode(mode=False):  # it is kept, and training may read it later
                self._offsets_like = {what: value.to(like) for what, value in self._offsets.items()}
        return self._offsets_like

    def shifted(self, what: str, value: Tensor, sign: int = 1) -> Tensor:
        """A value of a parameter behind its offset; with sign -1, in front of it.

        In single precision what is hidden is rounded to steps that offsets are multiples of. So it comes out to the
        last bit as it went in, however often, and under whatever id.
        """
        offset = self.offsets().get(what)
        if offset is None:
            return value
        if sign > 0 and value.dtype == torch.float32:
            step = step_of(self.spreads()[what]).to(value)
            value = torch.round(value / step) * step
        return torch.add(value, offset.to(value), alpha=sign)

    def _plain(self, what: str) -> Any:
        """A parameter of the module itself without its offset."""
        stored = self._parameters.get(what)
        return None if stored is None else self.shifted(what, stored, -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        self._offsets_like = None  # device or precision may change
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_offsets": None, "_offsets_like": None}


def offset_of(
    coordinates: Coordinates,
    label: str,
    shape: tuple[int, ...],
    spread: float | Tensor,
    row_names: Sequence[str] | None = None,
) -> Tensor:
    """Offset of one parameter: normal, in steps that single precision adds exactly to what it hides."""
    names = () if row_names is None else (row_names,)
    uniform = torch.from_numpy(coordinates(label, tuple(shape), *names))
    normal = math.sqrt(2) * torch.erfinv(uniform * math.erf(_FARTHEST / math.sqrt(2)))
    step = step_of(spread)
    return (torch.round(STRENGTH * torch.as_tensor(spread, dtype=torch.float64) * normal / step) * step).float()


def step_of(spread: float | Tensor) -> Tensor:
    """Power of two that offsets of parameters of this spread are multiples of: the least that 24 bits have room for."""
    farthest = (_FARTHEST * STRENGTH + _ROOM) * torch.as_tensor(spread, dtype=torch.float64)
    return torch.exp2(torch.ceil(torch.log2(farthest / 2**24)))


def parameter_name(module: str, what: str) -> str:
    """Name of a parameter in the state of a network; the network itself has no name."""
    return f"{module}.{what}" if module else what


def hidden(network: nn.Module) -> dict[str, Hidden]:
    """Modules of a network that a key can hide, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Hidden)}


def set_model_id(network: nn.Module, model_id: str | None) -> None:
    """Name the version of the model, which the offsets follow; the network forgets its key.

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
        module.model_id = model_id


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
                    result[full] = module.shifted(what, result[full], sign)
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
