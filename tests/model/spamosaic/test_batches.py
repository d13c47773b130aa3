"""Neighbourhoods and batches of spots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors, centred, hop_matrix, propagated
from scinfl.model.spamosaic._spatial_graph import original_propagation, spatial_graph

CPU = torch.device("cpu")


def make_sections(n=40, rng=0):
    generator = np.random.default_rng(rng)
    return generator.random((n, 2)), np.repeat(["a", "b"], [n // 2, n - n // 2])


def make_tensors(rows, *, n_spots=40, with_targets=True) -> SpotTensors:
    """Spots of one modality, each with its row in the data as its only feature."""
    rows = np.asarray(rows)
    place = np.full(n_spots, -1)
    place[rows] = np.arange(len(rows))
    xy, section = make_sections(n_spots)
    graph = spatial_graph(xy[rows], section[rows], n_neighbours=4)
    x = torch.from_numpy(rows.astype(np.float32)[:, None])
    parts = (x + 100, x + 200, graph) if with_targets else ()
    return SpotTensors(torch.from_numpy(place), x, *parts)


def ids(x):
    return x.flatten().int().tolist()


def test_a_hop_is_the_mean_over_the_neighbourhood():
    xy, section = make_sections()
    graph = spatial_graph(xy, section, n_neighbours=4)
    x = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    hops = propagated(x, hop_matrix(graph), 2)
    dense = graph.toarray()
    mean = dense / dense.sum(1, keepdims=True)
    assert len(hops) == 3
    np.testing.assert_array_equal(hops[0], x)
    np.testing.assert_allclose(hops[1], mean @ x, rtol=1e-5)
    np.testing.assert_allclose(hops[2], mean @ mean @ x, rtol=1e-5)
    assert {hop.dtype for hop in hops} == {np.dtype(np.float32)}
    published = hop_matrix(graph, compat=True)
    np.testing.assert_allclose(published.toarray(), original_propagation(graph).toarray())


def test_features_are_centred_by_section_and_large_offsets_cost_no_precision():
    _, section = make_sections()
    x = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    far = x + np.where(section == "a", 1000, -1000)[:, None].astype(np.float32)
    for name in ("a", "b"):
        np.testing.assert_allclose(centred(far, section)[section == name].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(centred(far, section), centred(x, section), atol=2e-4)
    np.testing.assert_array_equal(centred(x[:1], section[:1]), 0)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_hold_every_spot_once_with_its_own_values(batch_size):
    rna, adt = np.arange(0, 30), np.r_[0:10, 30:40]
    tensors = {"rna": make_tensors(rna), "adt": make_tensors(adt)}
    chosen = np.arange(5, 35)
    batches = MosaicBatches(tensors, chosen, CPU)
    assert len(batches) == 30
    for generator in (None, torch.Generator().manual_seed(0)):
        seen = list(batches.batches(batch_size, generator))
        assert sorted(spot for batch in seen for spot in ids(batch.rows)) == chosen.tolist()
        for batch in seen:
            own = [name for name, rows in (("rna", rna), ("adt", adt)) if batch.rows[0] in rows]
            assert list(batch.inputs) == own  # all spots of a batch were measured in the same modalities
            assert len(batch.rows) <= 1.5 * batch_size
            for name in own:
                assert ids(batch.inputs[name]) == ids(batch.rows)
                assert ids(batch.targets[name]) == [spot + 100 for spot in ids(batch.rows)]
                assert ids(batch.values[name]) == [spot + 200 for spot in ids(batch.rows)]


def test_a_neighbour_is_a_neighbour_in_space_in_every_modality():
    rows = np.r_[0:10, 30:40]
    tensors = {"adt": make_tensors(rows)}
    graph = tensors["adt"].graph
    pairs = set()
    for number in range(20):
        for batch in MosaicBatches(tensors, rows, CPU).batches(8, torch.Generator().manual_seed(number)):
            pairs |= set(zip(ids(batch.rows), ids(batch.neighbours["adt"]), strict=True))
    place = {row: number for number, row in enumerate(rows)}
    assert all(graph[place[i], place[j]] == 1 for i, j in pairs)
    assert len(pairs) > 0.8 * graph.nnz


def test_what_the_loss_does_not_ask_for_is_left_out():
    (batch,) = MosaicBatches({"rna": make_tensors(range(40), with_targets=False)}, np.arange(40), CPU).batches(100)
    assert list(batch.inputs) == ["rna"]
    assert batch.targets == batch.values == batch.neighbours == {}


def test_spots_that_no_modality_measured_are_in_no_batch():
    tensors = {"rna": make_tensors(range(10)), "adt": make_tensors(range(5, 15))}
    batches = MosaicBatches(tensors, np.arange(40), CPU)
    assert sorted(spot for batch in batches.batches(4) for spot in ids(batch.rows)) == list(range(15))
    assert list(MosaicBatches(tensors, np.arange(20, 40), CPU).batches(4)) == []
    assert list(MosaicBatches(tensors, np.arange(0), CPU).batches(4)) == []


def test_many_modalities_are_kept_apart():
    tensors = {f"m{number}": make_tensors(np.arange(number, 40)) for number in range(12)}
    for batch in MosaicBatches(tensors, np.arange(40), CPU).batches(100):
        for spot in ids(batch.rows):
            assert list(batch.inputs) == [f"m{number}" for number in range(12) if spot >= number]


def test_order_follows_the_generator_alone():
    batches = MosaicBatches({"rna": make_tensors(range(40))}, np.arange(40), CPU)

    def order(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return [spot for batch in batches.batches(8, generator) for spot in ids(batch.rows)]

    assert order(None) == list(range(40))
    assert order(1) == order(1) != order(2)


def test_hops_stay_sparse():
    graph = spatial_graph(np.random.default_rng(0).random((5000, 2)), np.repeat("a", 5000), n_neighbours=6)
    hop = hop_matrix(graph)
    assert sparse.issparse(hop)
    assert hop.nnz == graph.nnz
    assert hop.dtype == np.float32
