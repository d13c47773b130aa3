"""What all keyed linear layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.nn._offsets import Coordinates, Hidden


class KeyedLayer(Hidden):
    """Linear layer with a module that is read at secret coordinates.

    The coordinates are plain attributes: neither states nor pickles nor copies hold them, or anything derived from
    them. Without coordinates the module is absent and the layer computes :math:`W x + b`.

    Parameters
    ----------
    linear
        Layer to key. Its parameters are taken over under the same names.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self._coordinates: dict[str, Tensor] | None = None

    @classmethod
    def build(
        cls, linears: Mapping[str, nn.Linear], generator: torch.Generator | None, **options: Any
    ) -> dict[str, Self]:
        """Key several layers of one network."""
        return {name: cls(linear, generator=generator, **options) for name, linear in linears.items()}  # type: ignore[call-arg]

    @property
    def at_boundary(self) -> bool:
        """Whether training the plain layer and locking what is sent equals training with the key inside."""
        return False

    def folded(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the plain layer that computes the same, with gradients; ``None`` where there is none."""
        return None

    def lock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What this layer holds where the plain one holds these parameters; the same where the key cannot be folded."""
        return weight, bias

    def unlock(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inverse of :meth:`lock`."""
        return weight, bias

    def labels(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Label and shape of the secret numbers that the layer of this name needs."""
        raise NotImplementedError

    def set_coordinates(self, coordinates: Coordinates, name: str = "") -> None:
        """Read the layer's secret coordinates."""
        self.clear_coordinates()
        self._coordinates = {
            what: torch.from_numpy(np.array(coordinates(label, shape), dtype=np.float64))
            for what, (label, shape) in self.labels(name).items()
        }
        self._read_offsets(coordinates, name)

    def clear_coordinates(self) -> None:
        """Forget the coordinates and all that was derived from them."""
        self._coordinates = None
        self._forget_offsets()

    @property
    def is_set(self) -> bool:
        """Whether the layer has coordinates."""
        return self._coordinates is not None

    def _secret(self) -> dict[str, Tensor]:
        """Coordinates on the layer's device, in float64."""
        if self._coordinates is None:
            msg = "Expected the layer to have its secret coordinates, found none. Call `set_key` first."
            raise RuntimeError(msg)
        return {what: values.to(self.weight.device) for what, values in self._coordinates.items()}

    def extra_repr(self) -> str:
        """Shapes and whether the layer has coordinates; never a value."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, is_set={self.is_set}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        self._forget_derived()  # device or precision may change
        return super()._apply(fn, recurse)

    def _forget_derived(self) -> None:
        """Drop what was derived from the coordinates; it is derived again when needed."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_coordinates": None}
