"""The Gram matrix of a first layer shows the order of its features, unless offsets hide it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scinfl.federation import Update
from scinfl.model.base._round_offsets import RoundOffsets
from scinfl.nn import keyed, lock, new_model_id, set_key, set_model_id
from scinfl.privacy import Key
from scinfl.privacy.attacks import GramEvidence, align_gram, train_references

N = 14


@pytest.fixture(scope="module")
def layers():
    """First layers of networks that learned of the same features, each with noise of its own."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(8, N)) * generator.uniform(0.5, 2, N)
    return [0.15 * generator.normal(size=(40, 8)) @ shared + 0.03 * generator.normal(size=(40, N)) for _ in range(5)]


def stored(weight, key, model_id):
    """The layer as a key stores it, with the order and signs that it has."""
    network = keyed(nn.Linear(N, len(weight)), generator=torch.Generator().manual_seed(0))
    set_model_id(network, model_id)
    set_key(network, key.coordinates)
    state = lock(network, {"weight": torch.from_numpy(weight).float(), "bias": torch.zeros(len(weight))})
    order = np.argsort(key.coordinates("/permutation", (N,)), kind="stable")
    return state["weight"].numpy(), order, np.where(key.coordinates("/input signs", (N,)) < 0, -1.0, 1.0)


def search(weight, references):
    evidence = GramEvidence(weight, references)
    return evidence, align_gram(evidence, n_restarts=10, n_steps=20_000)


def test_without_offsets_the_order_and_all_signs_are_found(layers, key):
    stolen, order, signs = stored(layers[0], key, None)
    evidence, found = search(stolen, layers[1:])
    np.testing.assert_array_equal(found.order, order)
    assert abs(found.signs @ signs) == N
    assert found.score == pytest.approx(evidence.score(order, signs))
    assert found.score == found.scores.max()


def test_offsets_leave_nothing_in_one_version_in_two_or_in_a_rekeyed_one(layers, key):
    plain, order, signs = stored(layers[0], key, None)
    whole = GramEvidence(plain, layers[1:]).score(order, signs)
    one, two = (stored(layers[0], key, new_model_id())[0] for _ in range(2))
    rekeyed = stored(layers[0], Key.generate(), new_model_id())[0]
    for weight in (one, one - two, one - rekeyed):
        for rank in (None, 8):
            evidence = GramEvidence(weight, layers[1:], rank=rank)
            found = align_gram(evidence, n_restarts=10, n_steps=20_000)
            assert evidence.score(order, signs) < min(0.5 * whole, found.score)
            assert (found.order == order).mean() < 0.5


def test_what_two_sites_of_one_round_send_is_hidden_by_sums_alone(layers, key):
    network = keyed(nn.Linear(N, len(layers[0])), generator=torch.Generator().manual_seed(0))
    set_key(network, key.coordinates)
    protection = RoundOffsets(network, key, new_model_id())
    order, sent = stored(layers[0], key, None)[1], []
    for weight in (layers[0], 0.1 * layers[0]):
        state = {"weight": stored(weight, key, None)[0]}
        update = Update("site", 1, state, n_obs=1, weight=1)
        sent.append(protection.encode(update).state["weight"])
    assert (search(sent[0], layers[1:])[1].order == order).mean() < 0.5
    np.testing.assert_array_equal(search(sent[0] - sent[1], layers[1:])[1].order, order)


def test_references_are_layers_of_networks_of_the_same_shape():
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    x, y = torch.randn(30, 5), torch.randint(0, 2, (30,))
    before = network[0].weight.clone()
    one, two = train_references(keyed(network), "0", x, y, n_references=2, n_steps=5)
    assert one.shape == two.shape == (7, 5)
    assert not np.allclose(one, two)
    assert torch.equal(network[0].weight, before)
