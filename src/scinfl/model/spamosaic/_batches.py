"""Spots of sections as tensors: neighbourhoods, propagated features, batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scinfl.model.spamosaic._spatial_graph import original_propagation
from scinfl.module import SpotBatch


def hop_matrix(graph: sparse.csr_matrix, *, compat: bool = False) -> sparse.csr_matrix:
    """Means over the neighbours of each spot, or the published weights of a hop."""
    if not graph.shape[0]:
        return graph
    if compat:
        return original_propagation(graph)
    return (sparse.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph).tocsr().astype(np.float32)


def propagated(x: np.ndarray, hop: sparse.csr_matrix, n_hops: int) -> list[np.ndarray]:
    """Features after 0, 1, … hops.

    No parameters, so once before training is enough, and scipy's product needs no edges as tensors, as message passing
    in torch_geometric would.
    """
    hops = [x]
    for _ in range(n_hops):
        hops.append(np.asarray(hop @ hops[-1], dtype=np.float32))
    return hops


def centred(x: np.ndarray, section: np.ndarray) -> np.ndarray:
    """Features around the mean of their section."""
    result = np.empty_like(x)
    for name in np.unique(section):
        own = section == name
        result[own] = x[own] - x[own].mean(0, dtype=np.float64)
    return result


@dataclass(frozen=True)
class SpotTensors:
    """What the network reads of all spots of one modality, and what it has to predict where the loss needs it."""

    place: Tensor  # row of each spot of the data below; −1 where the modality did not measure it
    inputs: Tensor  # spots × features
    target: Tensor | None = None  # spots × directions
    values: Tensor | None = None  # spots × components
    graph: sparse.csr_matrix | None = None  # neighbours of the spots


class MosaicBatches:
    """Spots of a site, batch by batch, each of spots that were measured in the same modalities."""

    def __init__(self, tensors: Mapping[str, SpotTensors], rows: np.ndarray, device: torch.device) -> None:
        self._tensors, self._device, self.rows = tensors, device, rows
        chosen = torch.from_numpy(np.asarray(rows, np.int64))
        pattern = torch.zeros(len(chosen), dtype=torch.int64)
        for bit, part in enumerate(tensors.values()):
            pattern += (part.place[chosen] >= 0).long() << bit
        self._groups = [
            ([name for bit, name in enumerate(tensors) if code >> bit & 1], chosen[pattern == code])
            for code in torch.unique(pattern).tolist()
            if code
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[SpotBatch]:
        """Batches of all groups of modalities; shuffled where a generator is given."""
        parts = []
        for names, rows in self._groups:
            order = torch.arange(len(rows)) if generator is None else torch.randperm(len(rows), generator=generator)
            parts += [(names, rows[own]) for own in torch.tensor_split(order, max(1, round(len(rows) / batch_size)))]
        turns = range(len(parts)) if generator is None else torch.randperm(len(parts), generator=generator).tolist()
        for turn in turns:
            names, rows = parts[turn]
            yield self._batch(names, rows, generator)

    def _batch(self, names: list[str], rows: Tensor, generator: torch.Generator | None) -> SpotBatch:
        inputs, targets, values, neighbours = {}, {}, {}, {}
        for name in names:
            own = self._tensors[name]
            place = own.place[rows]
            inputs[name] = self._take(own.inputs, place)
            if own.target is not None:
                targets[name] = self._take(own.target, place)
            if own.values is not None:
                values[name] = self._take(own.values, place)
            if own.graph is not None:
                neighbours[name] = self._take(own.inputs, _neighbour(own.graph, place, generator))
        return SpotBatch(rows, inputs, targets, values, neighbours)

    def _take(self, x: Tensor, place: Tensor) -> Tensor:
        return torch.index_select(x, 0, place).to(self._device)


def _neighbour(graph: sparse.csr_matrix, place: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random neighbour in space of each spot."""
    places = place.numpy()
    start, stop = graph.indptr[places], graph.indptr[places + 1]
    drawn = torch.rand(len(places), generator=generator).numpy()
    return torch.from_numpy(graph.indices[start + (drawn * (stop - start)).astype(np.int64)].astype(np.int64))
