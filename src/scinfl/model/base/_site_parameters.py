"""What belongs to a site, put into a network for as long as it predicts that site's cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scinfl.federation import State
from scinfl.model.base._local_training import Batches


@contextmanager
def as_site(network: nn.Module, local: State | None, cells: Batches) -> Iterator[None]:
    """Use the running statistics and personal parameters of a site; forget them afterwards.

    Where statistics are needed and the site's are not known, those of the cells at hand are estimated.
    """
    norms = _norms(network)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    before = {name: tensors[name].detach().clone() for name in local or ()}
    try:
        with torch.no_grad():
            for name, array in (local or {}).items():
                tensors[name].copy_(torch.from_numpy(array))
        if norms and local is None:
            _estimate(network, norms, cells)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                tensors[name].copy_(tensor)
        for norm in norms:
            norm.reset_running_stats()


def _norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]


def _estimate(network: nn.Module, norms: list[nn.BatchNorm1d], cells: Batches) -> None:
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
