"""Normalisations that are stored behind offsets."""

from __future__ import annotations

from typing import Any

from torch import nn

from scinfl.nn._offsets import Coordinates, Hidden
from scinfl.nn._weighted_norm import WeightedBatchNorm

_SPREAD = 0.1  # scales start at 1 and shifts at 0; this is about how far training takes them
_OWN = ("model_id", "_computes_in", "_offsets", "_offsets_like", "_kept")


class KeyedNorm(Hidden):
    r"""A normalisation whose scale and shift are stored behind offsets.

    .. math:: \gamma' = (\gamma + u) \bmod [-R, R), \qquad \beta' = (\beta + v) \bmod [-R, R)

    States hold :math:`\gamma', \beta'`; ``weight`` and ``bias`` are :math:`\gamma, \beta` where the key is set and the
    model has an id, else what is stored. :meth:`of` makes one of a normalisation that is there.
    """

    @classmethod
    def of(cls, norm: nn.Module) -> KeyedNorm:
        """Take over a normalisation with its parameters, statistics and settings."""
        twin: KeyedNorm = object.__new__(_KEYED[type(norm)])
        twin.__dict__.update(norm.__dict__, **dict.fromkeys(_OWN))
        return twin

    def plain_norm(self) -> nn.Module:
        """The normalisation that the key is put on, with the same parameters."""
        self.rename(None)
        norm = object.__new__(next(plain for plain, own in _KEYED.items() if own is type(self)))
        norm.__dict__.update({name: value for name, value in vars(self).items() if name not in _OWN})
        return norm

    def spreads(self) -> dict[str, Any]:
        return {what: _SPREAD for what, parameter in self._parameters.items() if parameter is not None}

    def set_coordinates(self, coordinates: Coordinates, name: str = "") -> None:
        """Derive the offsets."""
        self.clear_coordinates()
        self._read_offsets(coordinates, name)

    def clear_coordinates(self) -> None:
        """Forget the offsets."""
        self._forget_offsets()

    @property
    def weight(self) -> Any:
        """Scale."""
        return self._pair()[0]

    @property
    def bias(self) -> Any:
        """Shift."""
        return self._pair()[1]

    def _pair(self) -> tuple[Any, Any]:
        return self._derived(lambda: (self._plain("weight"), self._plain("bias")))


class KeyedLayerNorm(KeyedNorm, nn.LayerNorm):  # type: ignore[override]
    """:class:`torch.nn.LayerNorm` behind offsets."""


class KeyedBatchNorm1d(KeyedNorm, nn.BatchNorm1d):  # type: ignore[override]
    """:class:`torch.nn.BatchNorm1d` behind offsets."""


class KeyedWeightedBatchNorm(KeyedNorm, WeightedBatchNorm):  # type: ignore[override]
    """Batch normalisation with weights of rows, behind offsets."""


_KEYED: dict[type[nn.Module], type[KeyedNorm]] = {
    nn.LayerNorm: KeyedLayerNorm,
    nn.BatchNorm1d: KeyedBatchNorm1d,
    WeightedBatchNorm: KeyedWeightedBatchNorm,
}


def keyable_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Normalisations with parameters, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) in _KEYED and any(True for _ in module.parameters(recurse=False))
    }
