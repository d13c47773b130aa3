"""The published key schemes and the secret projection, against naive versions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from scinfl.nn import PermutedLinear, PooledLinear, SecretProjection, clear_key, keyed, keyed_layers, projected, set_key
from scinfl.nn import unkeyed as without_modules


def arrays(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def perceptron(p, prefix, h, layers, activation):
    for number, layer in enumerate(layers):
        h = p[f"{prefix}.{layer}.weight"] @ h + p[f"{prefix}.{layer}.bias"]
        if number < len(layers) - 1:
            h = activation(h)
    return h


@pytest.mark.parametrize("mix", [None, 0.4])
def test_permuted_is_its_formula(key, mix):
    layer = PermutedLinear(nn.Linear(5, 7), mix=mix).double()
    layer.set_coordinates(key.coordinates, "l")
    p, order = arrays(layer), np.argsort(key.coordinates("l/unit order", (7,)))
    x = np.random.default_rng(0).normal(size=(4, 5))
    plain = x @ p["weight"].T + p["bias"]
    added = []
    for i in range(7):
        c = 2 * order[i] / 6 - 1
        gamma = np.array([np.sin(2**l * np.pi * c) for l in range(8)] + [np.cos(2**l * np.pi * c) for l in range(8)])  # noqa: E741
        added.append(perceptron(p, "meta", gamma, (0, 2, 4), lambda h: np.maximum(h, 0))[0])
    expected = plain + added if mix is None else mix * plain + (1 - mix) * np.array(added)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-9)


def test_pooled_is_its_formula(key):
    layer = PooledLinear(nn.Linear(5, 7), strength=3.0).double()
    layer.set_coordinates(key.coordinates, "l")
    p, points = arrays(layer), key.coordinates("points", (128, 2))

    def silu(h):
        return h / (1 + np.exp(-h))

    def two_layers(prefix, h):
        h = silu(p[f"{prefix}.0.weight"] @ h + p[f"{prefix}.0.bias"])
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p[f"{prefix}.2.weight"] + p[f"{prefix}.2.bias"]
        return p[f"{prefix}.3.weight"] @ h + p[f"{prefix}.3.bias"]

    k = np.mean([two_layers("meta.encoder", point) for point in points], axis=0)
    a, b = np.split(two_layers("meta.modulator", k), 2)
    for x in np.random.default_rng(0).normal(size=(4, 5)):
        h = (p["weight"] * (1 + 3 * np.tanh(a))[:, None]) @ x + p["bias"] + 3 * np.tanh(b)
        q = p["meta.projection.weight"] @ h + p["meta.projection.bias"]
        film = p["meta.film.weight"] @ np.concatenate([q, k, q * k]) + p["meta.film.bias"]
        gamma, beta = np.split(film, 2)
        expected = h * (1 + 3 * np.tanh(gamma)) + 3 * np.tanh(beta)
        np.testing.assert_allclose(layer(torch.from_numpy(x[None])).detach().numpy()[0], expected, rtol=1e-9)


@pytest.mark.parametrize("scheme", ["permuted", "pooled"])
def test_published_schemes_can_be_set_cleared_and_undone(key, scheme):
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False))
    x = torch.randn(3, 6)
    plain, names = network(x), set(network.state_dict())
    network = keyed(network, scheme)
    torch.testing.assert_close(network(x), plain)
    clean = len(pickle.dumps(network))
    set_key(network, key.coordinates)
    assert not torch.allclose(network(x), plain)
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    assert len(pickle.dumps(network)) == clean
    assert not any(layer.is_set for layer in keyed_layers(copy.deepcopy(network)).values())
    secrets = [key.coordinates("points", (128, 2)), key.coordinates("0/unit order", (5,))]
    assert not any(s.astype(t).tobytes()[:16] in pickle.dumps(network) for s in secrets for t in ("f8", "f4"))
    clear_key(network)
    torch.testing.assert_close(network(x), plain)
    network = without_modules(network)
    assert set(network.state_dict()) == names


def test_the_layers_of_a_pooled_network_share_one_encoder():
    network = keyed(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), "pooled")
    assert network[0].meta["encoder"] is network[1].meta["encoder"]


def test_a_secret_projection_has_no_parameters_and_follows_the_key(key):
    network = projected(nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 4)), "0")
    assert isinstance(network[0], SecretProjection)
    assert set(network.state_dict()) == {"2.weight", "2.bias"}
    x = torch.randn(3, 6)
    assert (network[0](x) == 0).all()
    clean = len(pickle.dumps(network))
    set_key(network, key.coordinates)
    P = key.coordinates("0/projection", (50, 6)) * np.sqrt(3 / 6)
    np.testing.assert_allclose(network[0](x).numpy(), x.numpy() @ P.T, rtol=1e-4, atol=1e-5)
    assert abs(P.var() - 1 / 6) < 0.03
    np.testing.assert_allclose(network.double()[0](x.double()).numpy(), x.numpy() @ P.T, rtol=1e-6, atol=1e-7)
    network = network.float()
    network(x).sum().backward()
    network.zero_grad()
    assert len(pickle.dumps(network)) == clean
    assert (copy.deepcopy(network)[0](x) == 0).all()
    network = keyed(network)  # the other layers can be keyed too
    assert list(keyed_layers(network)) == ["0", "2"]
    assert isinstance(without_modules(network)[0], SecretProjection)
    with pytest.raises(ValueError, match="among the linear layers"):
        projected(nn.Sequential(nn.Linear(2, 2)), "3")
