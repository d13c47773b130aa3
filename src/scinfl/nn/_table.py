"""Learned rows that belong to names, plain and keyed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scinfl.nn._coordinate import MetaLearner, meta_spreads
from scinfl.nn._keyed_layer import KeyedLayer
from scinfl.nn._offsets import Coordinates, offset_of


class Table(nn.Module):
    """One learned row per name: an embedding, or the read-out of each gene.

    Parameters
    ----------
    names
        Names of the rows, for example genes.
    n_columns
        Values per row.
    max_norm
        Rows that are longer are shortened, in training for good.
    std
        Standard deviation of the values that a key hides, and of the initial ones (normal), one for all or one per
        column.
    start
        Mean and standard deviation of the initial values, where these are others.

    Examples
    --------
    >>> import scinfl as si
    >>> si.nn.Table(["KLF1", "BAK1"], 8)().shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        names: Sequence[str],
        n_columns: int,
        *,
        max_norm: float | None = None,
        std: float | Sequence[float] = 1.0,
        start: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.row_names = list(names)
        self.max_norm, self.std = max_norm, torch.as_tensor(std)
        self.start: tuple[float, Any] = (0.0, self.std) if start is None else start
        mean, deviation = self.start
        self.weight = nn.Parameter(torch.randn(len(self.row_names), n_columns) * deviation + mean)

    def forward(self) -> Tensor:
        """The whole table (rows × columns), in the order of its names."""
        if self.max_norm is None:
            return self.weight
        factor = _shortening(self.weight.detach(), self.max_norm)
        if not _stores(self):
            return self.weight * factor
        with torch.no_grad():
            self.weight.mul_(factor)
        return self.weight

    def extra_repr(self) -> str:
        """Shape."""
        return f"{len(self.row_names)}, {self.weight.shape[1]}"


class _Reading(NamedTuple):
    """How the stored rows become the plain ones: secret, and not part of the state."""

    position: Tensor  # (n_rows,): where the row of a name is stored
    name: Tensor  # (n_rows,): inverse of position
    scale: Tensor  # (n_rows, n_columns), in the order of the names


class CoordinateTable(KeyedLayer):
    r"""Table whose rows are read at secret coordinates of their names.

    .. math::
        T_{gj} = \pm_{gj} \exp\big(\mu \tanh z(c_g) + \mu \tanh z(c_j)\big) \, W_{\pi(g) j}, \qquad
        W = (W' - u) \bmod [-R, R)

    Where the row of name :math:`g` is stored, its signs and its coordinate :math:`c_g` follow from the key and the name
    alone, so that sites whose genes are in another order agree. Magnitudes are the output of a :class:`MetaLearner` at
    the coordinates of the row and of the column, as in :class:`CoordinateLinear`; offsets :math:`u` are as there, with
    a stream for every name. Without coordinates the stored table is read as it is: rows of other names, with wrong
    signs, behind offsets.

    Parameters
    ----------
    table
        Table to key. Its parameter is taken over under the same name.
    n_dims
        Dimensions of a coordinate.
    width, frequency
        Hidden units and :math:`\omega_0` of the meta learner.
    magnitude
        Bound :math:`\mu`.
    train_meta
        Train the read-out of the meta learner.
    generator
        Source of the meta learner's parameters.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> table = si.nn.CoordinateTable(si.nn.Table(["KLF1", "BAK1"], 8))
    >>> stored = table()
    >>> table.set_coordinates(si.privacy.Key.generate().coordinates)
    >>> torch.allclose(table(), stored)
    False
    """

    def __init__(
        self,
        table: Table,
        *,
        n_dims: int = 4,
        width: int = 32,
        frequency: float = 30.0,
        magnitude: float = 0.25,
        train_meta: bool = False,
        generator: torch.Generator | None = None,
        **_: float,
    ) -> None:
        nn.Module.__init__(self)
        self.row_names, self.max_norm, self.std, self.start = table.row_names, table.max_norm, table.std, table.start
        self.out_features, self.in_features = table.weight.shape
        self.weight, self.bias = table.weight, None  # type: ignore[assignment]
        self.n_dims, self.magnitude, self.train_meta = n_dims, magnitude, train_meta
        self.meta = MetaLearner(n_dims, width, frequency, generator)
        for parameter in (self.meta.weight3, self.meta.bias3):
            parameter.requires_grad_(train_meta)
        self._coordinates: dict[str, Tensor] | None = None
        self._reading: _Reading | None = None

    @property
    def at_boundary(self) -> bool:
        """True where the meta learner is frozen."""
        return not self.train_meta

    def set_coordinates(self, coordinates: Coordinates, name: str = "") -> None:
        """Read the secret coordinates of rows and columns."""
        self.clear_coordinates()
        n_secrets = 1 + self.in_features + self.n_dims
        rows = coordinates(f"{name}/rows", (self.out_features, n_secrets), self.row_names)
        columns = coordinates(f"{name}/columns", (self.in_features, self.n_dims))
        self._coordinates = {"rows": torch.from_numpy(rows), "columns": torch.from_numpy(columns)}
        self._read_offsets(coordinates, name)

    def _draw(self, coordinates: Coordinates, label: str, what: str, spread: float | Tensor) -> Tensor:
        """Offsets of the rows, with a stream for every name, lie where these rows are stored."""
        if what != "weight":
            return super()._draw(coordinates, label, what, spread)
        rows = offset_of(coordinates, label, self.weight.shape, spread, self.row_names)
        return rows[torch.argsort(self._secret()["rows"][:, 0], stable=True).cpu()]

    def spreads(self) -> dict[str, float | Tensor]:
        spread = self.std if self.max_norm is None else self.max_norm / math.sqrt(self.in_features)
        return {"weight": spread, **(meta_spreads(self.meta) if self.train_meta else {})}

    def clear_coordinates(self) -> None:
        """Forget the coordinates and all that was derived from them."""
        super().clear_coordinates()
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._reading = None

    def _read(self) -> _Reading:
        if self._reading is not None:
            return self._reading
        secret = self._secret()
        position, signs, at_rows = secret["rows"].split([1, self.in_features, self.n_dims], dim=1)
        grad, inference = (self.train_meta and on() for on in (torch.is_grad_enabled, torch.is_inference_mode_enabled))
        with torch.inference_mode(mode=inference), torch.set_grad_enabled(grad):  # it is kept; training may read it
            name = torch.argsort(position[:, 0], stable=True)
            at = (self.meta.read_out(self.meta.features(c), self._opened_meta) for c in (at_rows, secret["columns"]))
            exponent = next(at)[:, 0, None] + next(at)[:, 1]
            scale = torch.where(signs < 0, -1.0, 1.0) * torch.exp(self.magnitude * exponent)
            reading = _Reading(torch.argsort(name), name, scale.to(self.weight))
        if not self.train_meta:
            self._reading = reading
        return reading

    def forward(self) -> Tensor:
        """The whole table (rows × columns), in the order of its names."""
        if self.max_norm is None:
            return self._rows()
        factor = _shortening(self._rows().detach(), self.max_norm)
        if self._coordinates is None or not _stores(self):
            return self._rows() * factor
        with torch.no_grad():
            if self.offsets():
                self.weight.copy_(self.lock(self._rows() * factor)[0])
            else:
                self.weight.mul_(factor[self._read().name])
        return self._rows()

    def _rows(self) -> Tensor:
        return self.computed(self.weight) if self._coordinates is None else self._derived(self._opened)

    def _opened(self) -> Tensor:
        reading = self._read()
        return self.computed(self.shifted("weight", self.weight, -1)[reading.position] * reading.scale)

    def plain_table(self) -> Table:
        """Table without module that holds the same parameter."""
        self.rename(None)
        table = Table([], 1, max_norm=self.max_norm)
        table.row_names, table.std, table.weight = self.row_names, self.std, self.weight  # type: ignore[assignment]
        table.start = self.start
        return table

    @torch.no_grad()
    def unlock(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, None]:
        """Rows of the plain table that this one represents."""
        del bias
        reading = self._read()
        weight = self.shifted("weight", weight, -1)
        return self.computed(weight[reading.position] * reading.scale), None

    @torch.no_grad()
    def lock(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, None]:
        """Inverse of :meth:`unlock`."""
        del bias
        reading = self._read()
        return self.shifted("weight", (weight.to(reading.scale) / reading.scale)[reading.name]), None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_reading": None}


def _stores(table: nn.Module) -> bool:
    """Whether shortened rows are kept: in training. A prediction changes nothing, least of all under a wrong key."""
    return table.training and torch.is_grad_enabled()


def _shortening(rows: Tensor, max_norm: float) -> Tensor:
    """Factor (rows × 1) that brings rows to the greatest norm allowed, 1 where they are shorter."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    longer = norm > max_norm * (1 + 1e-6)  # what was shortened before is left alone to the last bit
    return torch.where(longer, max_norm / (norm + 1e-7), torch.ones_like(norm))
