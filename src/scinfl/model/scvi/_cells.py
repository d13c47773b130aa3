"""Cells of one site, as models of scvi-tools read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from scinfl._checks import finite, values_of
from scinfl._spelling import argument
from scinfl.model.base._cells import Cells, Matrix
from scinfl.model.base._registry import is_minified


class CountCells(Cells):
    """Rows of counts with codes of labels and of sites.

    Parameters
    ----------
    matrix, rows, codes, device, groups
        See :class:`~scinfl.model.base.Cells`.
    sites
        Code of the site of each of these rows.
    """

    def __init__(
        self,
        matrix: Matrix,
        rows: np.ndarray,
        codes: np.ndarray,
        device: torch.device,
        sites: np.ndarray,
        groups: np.ndarray | None = None,
    ) -> None:
        super().__init__(matrix, rows, codes, device, groups)
        self.sites = torch.as_tensor(np.array(sites), dtype=torch.long, device=device)

    def take(self, chosen: Tensor) -> Any:
        """Counts (float32), codes of labels and codes of sites of some of the rows, by their place here."""
        return *super().take(chosen), self.sites[chosen.to(self.device)]

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Any]:
        """Batches of :meth:`take`, shuffled where a generator is given."""
        return super().batches(batch_size, generator)

    def part(self, chosen: np.ndarray) -> CountCells:
        """Some of the rows, by their place here."""
        return CountCells(
            self.matrix,
            self.rows[chosen],
            self.codes[chosen].cpu().numpy(),
            self.device,
            self.sites[chosen].cpu().numpy(),
            None if self.groups is None else self.groups[chosen],
        )


def counts_of(adata: AnnData, layer: str | None) -> Matrix:
    """Counts of a layer.

    Raises
    ------
    ValueError
        If values are not finite whole numbers from 0 on, or scvi-tools has minified the data.
    """
    if is_minified(adata):
        msg = (
            "Expected counts, found data that scvi-tools minified: it put latent codes in their place. Use the data as "
            "they were before that."
        )
        raise ValueError(msg)
    matrix = values_of(adata, layer)
    finite(matrix, adata.var_names)
    values = matrix.data if sparse.issparse(matrix) else matrix
    for start in range(0, len(values), 4096):
        block = np.asarray(values[start : start + 4096])
        if block.size and (block.min() < 0 or (block != np.floor(block)).any()):
            where = "adata.X" if layer is None else f"adata.layers['{layer}']"
            msg = (
                f"Expected counts in {where}, found values that are negative or no whole numbers. Models of scvi-tools "
                f"read raw counts: name their layer with {argument('layer')}."
            )
            raise ValueError(msg)
    return matrix
