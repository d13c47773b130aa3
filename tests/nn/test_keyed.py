"""Swapping the linear layers of any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scinfl.nn import CoordinateLinear, keyed, keyed_layers, set_key, unkeyed, unlock


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(6, 6)
        self.first, self.again = shared, shared
        self.branches = nn.ModuleDict(
            {"a": nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh()), "b": nn.Linear(6, 4)}
        )
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        x = self.again(torch.relu(self.first(x)))
        return self.norm(self.branches["a"](x) * self.branches["b"](x))


NETWORKS = {
    "sequential": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)),
    "nested, shared, without bias": Nested,
    "one layer": lambda: nn.Linear(6, 3),
    "batch normalisation": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_keyed_and_unkeyed_give_the_network_back(key, make):
    network = make().eval()
    x = torch.randn(4, 6)
    before, names, ids = network(x), set(network.state_dict()), {n: id(p) for n, p in network.named_parameters()}
    network = keyed(network)
    torch.testing.assert_close(network(x), before)
    set_key(network, key.coordinates)
    assert not torch.allclose(network(x), before)
    assert {n: id(p) for n, p in network.named_parameters() if n in ids} == ids
    effective = unlock(network, network.state_dict())
    with_key = network(x)
    network = unkeyed(network)
    assert not keyed_layers(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(x), before)
    network.load_state_dict({name: value for name, value in effective.items() if name in names})
    torch.testing.assert_close(network(x), with_key, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_weights_and_not_the_frozen_meta_learner(key):
    network = keyed(NETWORKS["sequential"]())
    set_key(network, key.coordinates)
    network(torch.randn(4, 6)).sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_only_the_named_layers_are_keyed():
    network = keyed(NETWORKS["sequential"](), layers=["3"])
    assert list(keyed_layers(network)) == ["3"]
    assert type(network[0]) is nn.Linear


def test_the_meta_learners_follow_the_generator():
    def theta(seed):
        network = keyed(NETWORKS["sequential"](), generator=torch.Generator().manual_seed(seed))
        return network[0].meta.weight1

    assert torch.equal(theta(1), theta(1))
    assert not torch.equal(theta(1), theta(2))


def test_layers_whose_weights_torch_reads_directly_are_left_alone(key):
    network = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    assert list(keyed_layers(keyed(network))) == ["1"]
    with pytest.raises(ValueError, match="among the linear layers"):
        keyed(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 3)), layers=["0.out_proj"])


def test_mistakes_are_named(key):
    with pytest.raises(ValueError, match="'coordinate'"):
        keyed(nn.Linear(2, 2), "secret")
    with pytest.raises(ValueError, match="at least one linear layer"):
        keyed(nn.Sequential(nn.Conv1d(2, 2, 1)))
    with pytest.raises(ValueError, match="unkeyed"):
        keyed(keyed(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="found none"):
        set_key(nn.Linear(2, 2), key.coordinates)


def test_options_reach_the_layer():
    layer = keyed(nn.Linear(3, 2), magnitude=0.1, shift=0.0, n_dims=2)
    assert isinstance(layer, CoordinateLinear)
    assert (layer.magnitude, layer.shift, layer.n_dims) == (0.1, 0.0, 2)
