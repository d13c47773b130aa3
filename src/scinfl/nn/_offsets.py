"""Key-derived offsets that hide parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scinfl._checks import warn

Coordinates = Callable[..., np.ndarray]
"""Maps a label and a shape to secret numbers, uniform on [−1, 1): for example ``Key.coordinates``.

With a third argument, names, each row belongs to a name and is the same in whatever order and company."""

REACH = 2.0**10
"""How far from zero stored parameters lie at most, in initial standard deviations rounded up to a power of two."""
_STEPS = 2.0**51  # of the grid of stored values, from zero to there: sums of two are exact in double precision
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
    r"""Module whose parameters are stored behind offsets, where it has a key and the model an id.

    .. math:: \vartheta' = (\vartheta + u) \bmod [-R, R)

    on a grid of :math:`2^{52}` values, :math:`R` being 1,024 initial standard deviations rounded up to a power of two,
    and :math:`u` uniform on the grid, from the key stream under a label that names layer, parameter, shape and id. So a
    stored number is uniform whatever the parameter is: a one-time pad (Shannon 1949), as long as no id comes twice.

    What is hidden is stored in double precision, in which all of this is exact, and computed with in the precision that
    it had. A device without double precision cannot hold it.

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
        for parameter in self._hidden_parameters():
            self._computes_in = self._computes_in or parameter.dtype
            parameter.data = parameter.data.to(self._computes_in if model_id is None else torch.float64)
        if model_id is None:
            self._computes_in = None

    def _hidden_parameters(self) -> list[nn.Parameter]:
        spreads = self.spreads()
        return [parameter for what, parameter in self.named_parameters() if what in spreads]

    def draw_offsets(self, coordinates: Coordinates, name: str, model_id: str) -> dict[str, Tensor]:
        """Offsets of all parameters under an id, by name; of a module that has its key."""
        return {
            what: self._draw(coordinates, f"{name}/offset of {what}/{model_id}", what, spread)
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
        if offset is None:
            return value
        value, reach = value.to(offset), reach_of(self.spreads()[what]).to(offset)
        if sign > 0:
            value = _on_grid(value, reach, what)
        shifted = torch.add(value, offset, alpha=sign)
        return shifted - 2 * reach * torch.floor((shifted + reach) / (2 * reach))

    def computed(self, value: Tensor) -> Tensor:
        """A value in the precision that the module computes in."""
        return value if self._computes_in is None else value.to(self._computes_in)

    def _opened_meta(self, what: str, value: Tensor) -> Tensor:
        """A parameter of the meta learner without its offset."""
        return self.shifted(f"meta.{what}", value, -1)

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
        stored = {id(tensor) for p in self._hidden_parameters() for tensor in (p, p.grad) if tensor is not None}

        def move(tensor: Tensor) -> Tensor:
            """To another device, never to another precision."""
            return tensor.to(fn(tensor.new_empty(0)).device) if id(tensor) in stored else fn(tensor)

        return super()._apply(move, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_offsets": None, "_offsets_like": None, "_kept": None}


def reach_of(spread: float | Tensor) -> Tensor:
    """Greatest absolute value of what is stored, of a parameter with an initial standard deviation."""
    return REACH * torch.exp2(torch.as_tensor(spread, dtype=torch.float64).log2().ceil())


def _on_grid(value: Tensor, reach: Tensor, what: str) -> Tensor:
    """The nearest values that can be stored."""
    step = reach / _STEPS
    if bool((value.abs() >= reach).any()):
        warn(
            f"Expected the parameter '{what}' to stay below {REACH:,.0f} times its initial spread, found values beyond "
            "it: the training has diverged. They are cut off there. Train with a lower learning rate."
        )
    return (torch.round(value / step) * step).clamp(-reach, reach - step)


def offset_of(
    coordinates: Coordinates,
    label: str,
    shape: tuple[int, ...],
    spread: float | Tensor,
    row_names: Sequence[str] | None = None,
) -> Tensor:
    """Offset of one parameter, uniform on the grid of what can be stored."""
    if row_names is None:
        uniform = coordinates(f"{label}/{tuple(shape)}", tuple(shape))
    else:
        uniform = coordinates(f"{label}/{tuple(shape[1:])}", tuple(shape), row_names)
    return reach_of(spread) * torch.floor(torch.from_numpy(uniform) * _STEPS) / _STEPS


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
    >>> bool(state["weight"].std() > 100 * network.weight.std())
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
