"""Neighbourhoods and batches of spots."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from scinfl.model._sections import SpotBatches, centred, propagated, spatial_graph


def make_sections(n=40, rng=0):
    generator = np.random.default_rng(rng)
    return generator.random((n, 2)), np.repeat(["a", "b"], [n // 2, n - n // 2])


def test_neighbours_are_the_nearest_of_the_section_both_ways():
    xy, section = make_sections()
    graph = spatial_graph(xy, section, 3).toarray()
    naive = np.eye(len(xy))
    for i in range(len(xy)):
        same = [j for j in range(len(xy)) if j != i and section[j] == section[i]]
        for j in sorted(same, key=lambda j: np.linalg.norm(xy[i] - xy[j]))[:3]:
            naive[i, j] = naive[j, i] = 1
    np.testing.assert_array_equal(graph, naive)


def test_a_section_of_one_spot_and_more_neighbours_than_spots_work():
    xy = np.array([[0.0, 0], [1, 0], [5, 5]])
    graph = spatial_graph(xy, np.array(["a", "a", "b"]), 10).toarray()
    np.testing.assert_array_equal(graph, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_a_hop_is_the_mean_over_the_neighbourhood():
    xy, section = make_sections()
    graph = spatial_graph(xy, section, 4)
    x = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    hops = propagated(x, graph, 2)
    dense = graph.toarray()
    mean = dense / dense.sum(1, keepdims=True)
    np.testing.assert_allclose(hops[1], mean @ x, rtol=1e-5)
    np.testing.assert_allclose(hops[2], mean @ mean @ x, rtol=1e-5)
    for name in ("a", "b"):
        np.testing.assert_allclose(centred(x, section)[section == name].mean(0), 0, atol=1e-6)


def test_batches_cover_every_spot_once_and_neighbours_are_neighbours():
    xy, section = make_sections()
    graph = spatial_graph(xy, section, 4)
    x = np.arange(40, dtype=np.float32)[:, None]
    rows = np.arange(5, 35)
    batches = list(SpotBatches(x, x, graph, rows, torch.device("cpu")).batches(8, torch.Generator().manual_seed(0)))
    seen = torch.cat([batch[0] for batch in batches]).flatten().int().tolist()
    assert sorted(seen) == rows.tolist()
    for own, _, near in batches:
        for i, j in zip(own.flatten().int().tolist(), near.flatten().int().tolist(), strict=True):
            assert graph[i, j] == 1


def test_the_graph_is_as_large_as_its_edges():
    graph = spatial_graph(np.random.default_rng(0).random((5000, 2)), np.repeat("a", 5000), 6)
    assert sparse.issparse(graph)
    assert graph.nnz < 5000 * 14
