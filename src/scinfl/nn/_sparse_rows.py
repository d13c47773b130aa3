"""A batch of rows of which most entries are zero, and the first layer of a network over them."""

from __future__ import annotations

from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F


class SparseRows:
    """Rows of features (float32, on the CPU) that keep their non-zero entries alone.

    Parameters
    ----------
    matrix
        Rows × features, compressed sparse rows.
    """

    def __init__(self, matrix: sparse.csr_matrix) -> None:
        self.matrix = matrix

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def dropout(self, p: float, *, training: bool) -> SparseRows:
        """Entries dropped as :class:`torch.nn.Dropout` does; those that are zero stay so and need no draw."""
        if not training or not p:
            return self
        kept = F.dropout(torch.from_numpy(self.matrix.data), p).numpy()
        return SparseRows(type(self.matrix)((kept, self.matrix.indices, self.matrix.indptr), self.matrix.shape))

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map to (rows × outputs) with the weight (outputs × features) of a linear layer."""
        product = _Product.apply(self.matrix, weight)
        return product if bias is None else product + bias

    def to_dense(self) -> Tensor:
        """All entries (rows × features)."""
        return torch.from_numpy(self.matrix.toarray())


class _Product(torch.autograd.Function):
    r""":math:`X W^T`, whose gradient is :math:`G^T X`, at the cost of the non-zero entries of :math:`X`."""

    @staticmethod
    def forward(ctx: Any, matrix: sparse.csr_matrix, weight: Tensor) -> Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ weight.detach().t().contiguous().numpy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.from_numpy(ctx.matrix.T @ gradient.contiguous().numpy()).t().contiguous()
