"""Cells of one site, as batches of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

Matrix: TypeAlias = Any
"""Dense array or compressed sparse rows."""


class Cells:
    """Rows of a matrix with their label codes; the matrix is shared, not copied.

    Parameters
    ----------
    matrix
        Cells × features, dense or compressed sparse rows.
    rows
        Which rows belong here.
    codes
        Label codes of these rows; ``None`` where there are none.
    device
        Where the batches go.
    """

    def __init__(self, matrix: Matrix, rows: np.ndarray, codes: np.ndarray | None, device: torch.device) -> None:
        self.matrix = matrix
        self.rows = rows
        self.codes = torch.as_tensor(np.zeros(len(rows)) if codes is None else codes, dtype=torch.long, device=device)
        self.device = device

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (float32) and label codes, shuffled where a generator is given.

        A last batch of a single cell joins the one before, since one cell has no batch statistics.
        """
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        starts = list(range(0, n, batch_size))
        if len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            chosen = order[start:stop]
            yield self._features(chosen), self.codes[chosen.to(self.device)]

    def _features(self, chosen: Tensor) -> Tensor:
        block = self.matrix[self.rows[chosen.numpy()]]
        if sparse.issparse(block):
            block = block.toarray()
        return torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32)).to(self.device)
