"""Propagation over a fixed graph."""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_adjacency(sources: Tensor, targets: Tensor, weights: Tensor, n: int) -> Tensor:
    r"""Symmetrically normalised adjacency :math:`D^{-1/2} (A + I) D^{-1/2}` (Kipf & Welling 2017), sparse (n × n).

    Rows are targets, columns sources. A self loop that is there keeps its weight, a missing one gets 1.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> graph = si.nn.normalised_adjacency(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), 2)
    >>> graph.to_dense()
    tensor([[1.0000, 0.0000],
            [0.7071, 0.5000]])
    """
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    edges, values = gcn_norm(torch.stack([sources, targets]), weights, n, add_self_loops=True)
    return torch.sparse_coo_tensor(edges.flip(0), values, (n, n), check_invariants=True).coalesce()


def propagate(adjacency: Tensor, x: Tensor, n_hops: int = 1) -> Tensor:
    r"""Features of the neighbours, :math:`\hat A^K x` (SGC, Wu et al. 2019), without parameters.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> graph = si.nn.normalised_adjacency(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.ones(2), 2)
    >>> si.nn.propagate(graph, torch.tensor([[1.0], [3.0]]))
    tensor([[2.0000],
            [2.0000]])
    """
    # what SGConv computes, by the product that torch_geometric uses for a sparse adjacency too; its own linear map is
    # left out, because the one that follows here is keyed
    for _ in range(n_hops):
        x = torch.sparse.mm(adjacency, x)
    return x
