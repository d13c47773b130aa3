"""Running statistics that belong to a site, put into a network for as long as it predicts that site's cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scinfl.federation import State
from scinfl.model._cells import Cells


def has_statistics(network: nn.Module) -> bool:
    """Whether a network has batch normalisation."""
    return any(isinstance(module, nn.BatchNorm1d) for module in network.modules())


@contextmanager
def local_statistics(network: nn.Module, state: State | None, cells: Cells) -> Iterator[None]:
    """Use the statistics of a site, or where there are none those of the cells at hand; forget them afterwards."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        yield
        return
    buffers = dict(network.named_buffers())
    try:
        if state is not None:
            for name, array in state.items():
                buffers[name].copy_(torch.from_numpy(array))
        else:
            _estimate(network, norms, cells)
        yield
    finally:
        for norm in norms:
            norm.reset_running_stats()


def _estimate(network: nn.Module, norms: list[nn.BatchNorm1d], cells: Cells) -> None:
    """Mean and variance over the cells, in one pass without dropout."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average over batches
        norm.train()
    for x, _ in cells.batches(4096):
        network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
