"""Values and sites of cells, and the cells of one site as batches of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from scinfl._checks import complete_column, owns_data, told_apart, unique
from scinfl._spelling import spelled
from scinfl.nn import SparseRows

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
    groups
        Group (patient, donor) of each of these rows, where there are groups.
    is_sparse
        Whether batches on the CPU are :class:`~scinfl.nn.SparseRows`, for a network that takes them.
    """

    def __init__(
        self,
        matrix: Matrix,
        rows: np.ndarray,
        codes: np.ndarray | None,
        device: torch.device,
        groups: np.ndarray | None = None,
        *,
        is_sparse: bool = False,
    ) -> None:
        self.matrix = matrix
        self.rows = rows
        self.groups = groups
        codes = np.zeros(len(rows)) if codes is None else np.array(codes)  # those of a table may be read-only
        self.codes = torch.as_tensor(codes, dtype=torch.long, device=device)
        self.device = device
        self._is_sparse = is_sparse and device.type == "cpu"

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Features (float32) and label codes, shuffled where a generator is given.

        A last batch of a single cell joins the one before, since one cell has no batch statistics.
        """
        n = len(self)
        if not n:
            return
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        starts = list(range(0, n, batch_size))
        if len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            chosen = order[start:stop]
            yield self._sparse(chosen) if self._is_sparse else self.take(chosen)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Features (float32) and label codes of some of the rows, by their place here."""
        return self._features(chosen), self.codes[chosen.to(self.device)]

    def _sparse(self, chosen: Tensor) -> tuple[SparseRows, Tensor]:
        rows = sparse.csr_matrix(self.matrix[self.rows[chosen.numpy()]], dtype=np.float32)
        rows.eliminate_zeros()  # dropout then draws the same numbers, however the matrix is stored
        return SparseRows(rows), self.codes[chosen]

    def _features(self, chosen: Tensor) -> Tensor:
        block = self.matrix[self.rows[chosen.numpy()]]
        if sparse.issparse(block):
            block = block.toarray()
        return torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32)).to(self.device)


def is_mostly_zero(matrix: Matrix, rows: np.ndarray) -> bool:
    """Whether some of the rows, evenly spread, are so wide and so empty that sparse batches save time."""
    if matrix.shape[1] < 1000 or not len(rows):
        return False
    some = matrix[rows[:: max(1, len(rows) // 1000)]]
    n = some.count_nonzero() if sparse.issparse(some) else np.count_nonzero(some)
    return n < 0.15 * some.shape[0] * some.shape[1]


def rows_per_step(n: int) -> int:
    """Rows of a site that a step takes by default: 32, and of more than 32,768 a power of two up to 256.

    An epoch then has 512 to 1,024 steps, until 256 rows take it beyond: what a step spends on parameters, whatever the
    number of its rows, no longer grows with the site.
    """
    return int(np.clip(2 ** (max(n, 1) // 512).bit_length() // 2, 32, 256))


def sites_of(adata: AnnData, site_key: str | None, *, at_least: int = 2) -> pd.Series:
    """Site of every row; all of one where no column is named."""
    if site_key is None:
        return pd.Series("all", index=adata.obs_names)
    sites = complete_column(adata, site_key, "site_key", "a site for every row")
    told_apart(sites, f"adata.obs['{site_key}']")
    if sites.nunique() < at_least:
        msg = (
            f"Expected adata.obs['{site_key}'] to name at least {at_least} sites, found {sites.nunique()}. Simulate "
            f"some with `scinfl.pp.split_sites`, or train one pooled site with {spelled('`site_key=None`')}."
        )
        raise ValueError(msg)
    return sites


def owned(adata: AnnData, *, of_mudata: bool = False) -> None:
    """Refuse views, data without rows or features, and feature names that occur twice."""
    owns_data(adata, of_mudata=of_mudata)
    if not min(adata.shape):
        msg = f"Expected rows and features, found {adata.n_obs} rows × {adata.n_vars} features. Check the filters."
        raise ValueError(msg)
    unique(adata.var_names, "feature names", "Merge them, or run `adata.var_names_make_unique()`.")
