"""Propagation over graphs, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scinfl.nn import normalised_adjacency, propagate


def naive_adjacency(edges, n):
    """D^-1/2 (A + I) D^-1/2 with the degrees of the targets, entry by entry."""
    A = np.zeros((n, n))
    for source, target, weight in edges:
        A[target, source] += weight
    for vertex in range(n):
        if not any(source == target == vertex for source, target, _ in edges):
            A[vertex, vertex] = 1
    degree = A.sum(1)
    inverse = np.array([0 if d == 0 else d**-0.5 for d in degree])
    return inverse[:, None] * A * inverse


GRAPHS = {
    "directed": [(0, 1, 0.5), (1, 2, 0.7), (3, 1, 0.2), (4, 0, 1.0), (2, 4, 0.9)],
    "undirected": [(0, 1, 0.5), (1, 0, 0.5), (2, 3, 0.8), (3, 2, 0.8)],
    "some self loops": [(0, 0, 0.3), (0, 1, 0.5), (2, 2, 1.0), (2, 1, 0.25)],
    "isolated vertices": [(0, 1, 0.5)],
    "an edge twice": [(0, 1, 0.5), (0, 1, 0.25), (1, 2, 0.5)],
    "no edges": [],
}


def tensors(edges):
    return (
        torch.tensor([source for source, _, _ in edges], dtype=torch.long),
        torch.tensor([target for _, target, _ in edges], dtype=torch.long),
        torch.tensor([weight for _, _, weight in edges], dtype=torch.float32),
    )


@pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("n_hops", [0, 1, 3])
def test_propagation_is_the_dense_formula(edges, n_hops):
    adjacency, naive = normalised_adjacency(*tensors(edges), 6), naive_adjacency(edges, 6)
    assert adjacency.is_sparse
    np.testing.assert_allclose(adjacency.to_dense().numpy(), naive, rtol=1e-6, atol=1e-7)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.matrix_power(naive, n_hops) @ x.numpy()
    np.testing.assert_allclose(propagate(adjacency, x, n_hops).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_self_loop_that_is_there_keeps_its_weight_and_a_missing_one_gets_1():
    loops = normalised_adjacency(*tensors([(0, 0, 0.25), (1, 0, 0.75)]), 2).to_dense()
    torch.testing.assert_close(loops, torch.tensor([[0.25, 0.75], [0.0, 1.0]]))
    missing = normalised_adjacency(*tensors([(1, 0, 0.75)]), 2).to_dense()
    torch.testing.assert_close(missing, torch.tensor([[1 / 1.75, 0.75 / 1.75**0.5], [0.0, 1.0]]))


def test_features_flow_from_sources_to_targets():
    adjacency = normalised_adjacency(*tensors([(0, 1, 1.0)]), 3)
    after = propagate(adjacency, torch.tensor([[1.0], [0.0], [0.0]]))
    assert after[1] > 0
    torch.testing.assert_close(after[[0, 2]], torch.tensor([[1.0], [0.0]]))


def test_isolated_vertices_keep_their_features():
    adjacency = normalised_adjacency(*tensors(GRAPHS["isolated vertices"]), 6)
    x = torch.randn(6, 2)
    assert torch.equal(propagate(adjacency, x, 4)[2:], x[2:])


def test_gradients_flow_back_through_the_graph():
    adjacency = normalised_adjacency(*tensors(GRAPHS["directed"]), 5)
    x, error = torch.randn(5, 2, requires_grad=True), torch.randn(5, 2)
    (propagate(adjacency, x, 2) * error).sum().backward()
    torch.testing.assert_close(x.grad, torch.linalg.matrix_power(adjacency.to_dense(), 2).T @ error)


def test_it_is_the_simple_graph_convolution_of_torch_geometric():
    from torch_geometric.nn import SGConv

    torch.manual_seed(0)
    sources, targets, weights = tensors(GRAPHS["directed"] + GRAPHS["some self loops"])
    layer, x = SGConv(4, 3, K=2), torch.randn(6, 4)
    expected = layer(x, torch.stack([sources, targets]), weights)
    mine = F.linear(
        propagate(normalised_adjacency(sources, targets, weights, 6), x, 2), layer.lin.weight, layer.lin.bias
    )
    torch.testing.assert_close(mine, expected)
