"""Spots of sections as tensors: neighbourhoods, propagated features, batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from sklearn.neighbors import kneighbors_graph
from torch import Tensor


def spatial_graph(coordinates: np.ndarray, section: np.ndarray, n_neighbours: int) -> sparse.csr_matrix:
    """Nearest spots of each spot within its section, both ways and itself included (spots × spots, ones)."""
    rows, columns = [], []
    for name in np.unique(section):
        own = np.flatnonzero(section == name)
        k = min(n_neighbours, len(own) - 1)
        if k > 0:
            near = kneighbors_graph(coordinates[own], k).tocoo()
            rows.append(own[near.row])
            columns.append(own[near.col])
        rows.append(own)
        columns.append(own)
    i, j = np.concatenate(rows), np.concatenate(columns)
    n = len(section)
    graph = sparse.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n))
    graph = graph.maximum(graph.T).tocsr()
    graph.data[:] = 1
    return graph


def propagated(x: np.ndarray, graph: sparse.csr_matrix, n_hops: int) -> list[np.ndarray]:
    """Features after 0, 1, … hops; each hop is the mean over the neighbours. No parameters, so once is enough."""
    mean = sparse.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph
    hops = [x]
    for _ in range(n_hops):
        hops.append(np.asarray(mean @ hops[-1], dtype=np.float32))
    return hops


def centred(x: np.ndarray, section: np.ndarray) -> np.ndarray:
    """Features around the mean of their section."""
    result = np.empty_like(x)
    for name in np.unique(section):
        own = section == name
        result[own] = x[own] - x[own].mean(0, dtype=np.float64)
    return result


class SpotBatches:
    """Spots of a site with what is reconstructed of them, each with a random neighbour in space.

    Parameters
    ----------
    x
        Propagated features (spots × inputs).
    target
        Features to reconstruct (spots × outputs).
    graph
        Neighbours of the spots.
    rows
        Which spots belong here.
    device
        Where the batches go.
    """

    def __init__(
        self, x: np.ndarray, target: np.ndarray, graph: sparse.csr_matrix, rows: np.ndarray, device: torch.device
    ) -> None:
        self._x, self._target, self._graph = torch.from_numpy(x), torch.from_numpy(target), graph
        self._rows = torch.from_numpy(rows)
        self._device = device

    def __len__(self) -> int:
        return len(self._rows)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, what to reconstruct, and features of a neighbour; shuffled where a generator is given."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        start = torch.from_numpy(self._graph.indptr.astype(np.int64))
        near = torch.from_numpy(self._graph.indices.astype(np.int64))
        for chosen in torch.tensor_split(order, max(1, round(n / batch_size))):
            rows = self._rows[chosen]
            drawn = torch.rand(len(rows), generator=generator)
            degree = start[rows + 1] - start[rows]
            neighbours = near[start[rows] + (drawn * degree).long()]
            yield (
                self._x[rows].to(self._device),
                self._target[rows].to(self._device),
                self._x[neighbours].to(self._device),
            )
