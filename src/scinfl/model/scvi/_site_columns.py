"""Parameters of scvi-tools, stored as rows of names that a key can lock and columns that sites can own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scinfl.nn import Table

_LEAST_STD = 0.3


@dataclass(frozen=True)
class Layout:
    """How an array becomes rows that belong to names, and back.

    Parameters
    ----------
    shape
        Shape of the array.
    names
        Names of the rows.
    axis
        Axis of the names; ``None`` for an array that is one row.
    """

    shape: tuple[int, ...]
    names: Sequence[str]
    axis: int | None

    @classmethod
    def of(cls, shape: tuple[int, ...], known: Sequence[Sequence[str]], otherwise: str) -> Layout:
        """Rows by the first of the known lists of names that is as long as an axis, or else one row."""
        for names in known:
            if len(names) > 1 and len(names) in shape:
                return cls(shape, names, shape.index(len(names)))
        return cls(shape, [otherwise], None)

    def rows(self, array: Tensor) -> Tensor:
        """Rows × values."""
        return (array if self.axis is None else array.movedim(self.axis, 0)).reshape(len(self.names), -1)

    def array(self, rows: Tensor) -> Tensor:
        """The array of these rows."""
        if self.axis is None:
            return rows.reshape(self.shape)
        others = [size for axis, size in enumerate(self.shape) if axis != self.axis]
        return rows.reshape(len(self.names), *others).movedim(0, self.axis)

    def table(self, array: Tensor) -> Table:
        """A table of the rows, which starts around the initial values with a key too."""
        rows = self.rows(array.detach())
        size = float(rows.square().mean().sqrt())
        start = (round(float(rows.mean()), 1), round(float(rows.std(correction=0)), 1))  # the same on all machines
        return _filled(Table(self.names, rows.shape[1], std=max(_LEAST_STD, float(round(size))), start=start), rows)


class SiteColumns(nn.Module):
    """Linear layer whose last columns belong to one site each.

    Parameters
    ----------
    linear
        Layer that reads features first, then a one-hot code of the site.
    sites
        Names of the sites.
    """

    def __init__(self, linear: nn.Linear, sites: Sequence[Any]) -> None:
        super().__init__()
        n_inputs, has_bias = linear.in_features - len(sites), linear.bias is not None
        self.linear = nn.Linear(n_inputs, linear.out_features, bias=has_bias)
        std = 1 / math.sqrt(3 * linear.in_features)
        self.columns = nn.ModuleList(
            _filled(Table([str(site)], linear.out_features, std=std), column)
            for site, column in zip(sites, linear.weight.detach()[:, n_inputs:].T, strict=True)
        )
        with torch.no_grad():
            self.linear.weight.copy_(linear.weight[:, :n_inputs])
            if has_bias:
                self.linear.bias.copy_(linear.bias)

    def forward(self) -> Tensor:
        """Weight of the whole layer."""
        return torch.cat([self.linear.weight, torch.cat([own() for own in self.columns]).T], dim=1)


class SiteSlices(nn.Module):
    """Array of which every site owns a slice: dispersions by site, backgrounds of proteins, an embedding of sites.

    Parameters
    ----------
    array
        Array of scvi-tools.
    axis
        Axis of the sites.
    sites
        Names of the sites.
    known
        Lists of names that rows can belong to.
    """

    def __init__(self, array: Tensor, axis: int, sites: Sequence[Any], known: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.axis = axis
        slices = array.detach().unbind(axis)
        self.layouts = [Layout.of(tuple(own.shape), known, str(site)) for own, site in zip(slices, sites, strict=True)]
        self.columns = nn.ModuleList(layout.table(own) for layout, own in zip(self.layouts, slices, strict=True))

    def forward(self) -> Tensor:
        """The whole array."""
        own = [layout.array(rows()) for layout, rows in zip(self.layouts, self.columns, strict=True)]
        return torch.stack(own, dim=self.axis)


def _filled(table: Table, values: Tensor) -> Table:
    with torch.no_grad():
        table.weight.copy_(values)
    return table
