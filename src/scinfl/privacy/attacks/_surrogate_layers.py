"""Layers that a model-stealing attacker puts in place of keyed ones, with free parameters where the key was."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn import CoordinateLinear, CoordinateTable, KeyedLayer, PooledLinear, Table


class _FreeScales(nn.Module):
    """A fixed linear layer between free scales."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.input_scale = nn.Parameter(torch.ones(linear.in_features))
        self.output_scale = nn.Parameter(torch.ones(linear.out_features))
        self.shift = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.input_scale) * self.output_scale + self.shift


class _FreeRows(nn.Module):
    """A fixed table with free scales of its rows and columns."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        self.row_scale = nn.Parameter(torch.ones(len(table.weight), 1))
        self.column_scale = nn.Parameter(torch.ones(table.weight.shape[1]))

    @property
    def weight(self) -> Tensor:
        """What is stored, for networks that look up its shape."""
        return self.table.weight

    def forward(self) -> Tensor:
        return self.table.weight * self.row_scale * self.column_scale


class _SurrogateCoordinates(nn.Module):
    """The coordinate scheme with learned coordinates, relaxed signs and no permutation."""

    def __init__(self, layer: CoordinateLinear, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        self.inputs = nn.Parameter(torch.rand(layer.in_features, layer.n_dims, generator=generator) * 2 - 1)
        self.outputs = nn.Parameter(torch.rand(layer.out_features, layer.n_dims, generator=generator) * 2 - 1)
        self.input_signs = nn.Parameter(torch.ones(layer.in_features))
        self.output_signs = nn.Parameter(torch.ones(layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        meta = layer.meta
        at_inputs, at_outputs = (meta.features(c) for c in (self.inputs, self.outputs))
        scale_in = torch.tanh(self.input_signs) * torch.exp(layer.magnitude * meta.read_out(at_inputs)[:, 0])
        out = meta.read_out(at_outputs)
        scale_out = torch.tanh(self.output_signs) * torch.exp(layer.magnitude * out[:, 1])
        y = F.linear(x * scale_in, layer.weight) * scale_out
        return y if layer.bias is None else y + layer.bias + layer.shift * out[:, 2]


class _SurrogateRows(nn.Module):
    """The coordinate scheme of a table with learned coordinates, relaxed signs and no order."""

    def __init__(self, table: CoordinateTable, generator: torch.Generator) -> None:
        super().__init__()
        self.table = table
        n_rows, n_columns = table.weight.shape
        self.rows = nn.Parameter(torch.rand(n_rows, table.n_dims, generator=generator) * 2 - 1)
        self.columns = nn.Parameter(torch.rand(n_columns, table.n_dims, generator=generator) * 2 - 1)
        self.signs = nn.Parameter(torch.ones(n_rows, n_columns))

    @property
    def weight(self) -> Tensor:
        """What is stored, for networks that look up its shape."""
        return self.table.weight

    def forward(self) -> Tensor:
        meta = self.table.meta
        at_rows, at_columns = (meta.read_out(meta.features(c)) for c in (self.rows, self.columns))
        exponent = at_rows[:, 0, None] + at_columns[:, 1]
        return self.table.weight * torch.tanh(self.signs) * torch.exp(self.table.magnitude * exponent)


class _SurrogateVector(nn.Module):
    """The pooled scheme with a learned pooled vector, one for the network."""

    def __init__(self, layer: PooledLinear, vector: nn.Parameter) -> None:
        super().__init__()
        self.layer, self.vector = layer, vector

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.modulated(x, self.vector)


class _SurrogateShift(nn.Module):
    """The permuted scheme: whatever its module adds is a bias."""

    def __init__(self, layer: KeyedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.shift = nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias) + self.shift
