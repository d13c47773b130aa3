"""The formula of the keyed layer, and what must not leave it."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from scinfl.nn import CoordinateLinear, clear_key, keyed, keyed_layers, lock, set_key, unkeyed, unlock


def make_layer(key, n_in=7, n_out=5, *, bias=True, dtype=torch.float64, **options) -> CoordinateLinear:
    generator = torch.Generator().manual_seed(3)
    layer = CoordinateLinear(nn.Linear(n_in, n_out, bias=bias), generator=generator, **options).to(dtype)
    layer.set_coordinates(key.coordinates, "layer")
    return layer


def naive_reading(layer, key, name="layer"):
    """The formulas of the docstring, unit by unit."""
    theta = [p.detach().numpy() for p in layer.meta.parameters()]

    def meta(c):
        h = np.sin(30 * (theta[0] @ c + theta[1]))
        h = np.sin(30 * (theta[2] @ h + theta[3]))
        return theta[4] @ h + theta[5]

    def standardised(values):
        values = np.array(values)
        return (values - values.mean(0)) / values.std(0)

    at_in = standardised([meta(c) for c in key.coordinates(f"{name}/inputs", (layer.in_features, 4))])
    at_out = standardised([meta(c) for c in key.coordinates(f"{name}/outputs", (layer.out_features, 4))])
    sign_in = np.where(key.coordinates(f"{name}/input signs", (layer.in_features,)) < 0, -1, 1)
    sign_out = np.where(key.coordinates(f"{name}/output signs", (layer.out_features,)) < 0, -1, 1)
    order = np.argsort(key.coordinates(f"{name}/permutation", (layer.in_features,)))
    return (
        order,
        sign_in * np.exp(0.25 * np.tanh(at_in[:, 0])),
        sign_out * np.exp(0.25 * np.tanh(at_out[:, 1])),
        0.2 * np.tanh(at_out[:, 2]),
    )


def naive_forward(layer, key, x):
    order, s_in, s_out, shift = naive_reading(layer, key)
    W, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return np.array([s_out * (W @ (s_in * row[order])) + b + shift for row in x])


def test_forward_is_the_formula(key):
    layer = make_layer(key)
    x = torch.randn(6, 7, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach().numpy(), naive_forward(layer, key, x.numpy()), rtol=1e-10, atol=1e-12)


def test_proposition_1_a_guessed_key_is_off_by_the_difference_of_the_modules(key):
    from scinfl.privacy import Key

    layer, guess = make_layer(key), Key.generate()
    x = torch.randn(6, 7, dtype=torch.float64)
    right = layer(x).detach().numpy()
    layer.set_coordinates(guess.coordinates, "layer")
    difference = layer(x).detach().numpy() - right
    expected = naive_forward(layer, guess, x.numpy()) - naive_forward(layer, key, x.numpy())
    np.testing.assert_allclose(difference, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(difference).mean() > 0.2 * np.abs(right).mean()


def test_proposition_2_without_modules_the_output_changes_by_what_they_added(key):
    layer = make_layer(key)
    x = torch.randn(6, 7, dtype=torch.float64)
    right = layer(x)
    layer.clear_coordinates()
    plain = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), plain)
    np.testing.assert_allclose(
        (right - plain).detach().numpy(), naive_forward(layer, key, x.numpy()) - plain.detach().numpy(), rtol=1e-9
    )


def test_signs_and_permutation_are_spread_and_magnitudes_bounded(key):
    layer = make_layer(key, 400, 300)
    order, inverse = (t.numpy() for t in layer._read_units()[:2])
    s_in, s_out, shift = (t.numpy() for t in layer._read())
    assert (order[inverse] == np.arange(400)).all()
    assert sorted(order) == list(range(400))
    assert (order == np.arange(400)).mean() < 0.05
    for scale in (s_in, s_out):
        assert 0.35 < (scale > 0).mean() < 0.65
        assert np.exp(-0.25) <= np.abs(scale).min() < 0.85
        assert 1.15 < np.abs(scale).max() <= np.exp(0.25)
    assert np.abs(shift).max() <= 0.2
    assert shift.std() > 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_lock_and_unlock_are_inverse_and_the_unlocked_plain_layer_computes_the_same(key, bias):
    layer = make_layer(key, bias=bias)
    weight, bias_ = layer.unlock(layer.weight, layer.bias)
    x = torch.randn(6, 7, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.linear(x, weight, bias_), layer(x), rtol=1e-12, atol=1e-12)
    locked, locked_bias = layer.lock(weight, bias_)
    torch.testing.assert_close(locked, layer.weight, rtol=1e-12, atol=1e-12)
    if bias:
        torch.testing.assert_close(locked_bias, layer.bias, rtol=1e-12, atol=1e-12)
    else:
        assert locked_bias is None


def test_averages_of_locked_states_are_locked_averages(key):
    network = keyed(nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))).double()
    set_key(network, key.coordinates)
    names = [name for name, _ in network.named_parameters() if "meta" not in name]
    states = [{n: torch.randn_like(network.get_parameter(n)) for n in names} for _ in range(3)]
    weights = [0.2, 0.5, 0.3]
    mean = {n: sum(w * s[n] for w, s in zip(weights, states, strict=True)) for n in names}
    locked = [lock(network, state) for state in states]
    for name, value in lock(network, mean).items():
        expected = sum(w * s[name] for w, s in zip(weights, locked, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def federate(key, data, *, boundary: bool, magnitude: float, shift: float) -> dict[str, torch.Tensor]:
    """Two sites, three rounds of Adam with weight decay: key at the boundary or inside the network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).double()
    network = keyed(network, generator=torch.Generator().manual_seed(1), magnitude=magnitude, shift=shift).double()
    set_key(network, key.coordinates)
    names = [n for n, p in network.named_parameters() if p.requires_grad]
    state = {n: network.get_parameter(n).detach().clone() for n in names}
    for _ in range(3):
        sent = []
        for x, y in data:
            local = unkeyed(copy.deepcopy(network)) if boundary else network
            start = unlock(network, state) if boundary else state
            with torch.no_grad():
                for name in names:
                    local.get_parameter(name).copy_(start[name])
            parameters = [local.get_parameter(n) for n in names]
            optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(x), y).backward()
                optimizer.step()
            trained = {n: local.get_parameter(n).detach().clone() for n in names}
            sent.append(lock(network, trained) if boundary else trained)
        state = {n: (sent[0][n] + sent[1][n]) / 2 for n in names}
    return state


def test_training_at_the_boundary_equals_training_inside_the_network(key):
    generator = torch.Generator().manual_seed(5)
    data = [
        (torch.randn(20, 6, generator=generator, dtype=torch.float64), torch.randint(3, (20,), generator=generator))
        for _ in range(2)
    ]
    inside = federate(key, data, boundary=False, magnitude=0, shift=0)
    outside = federate(key, data, boundary=True, magnitude=0, shift=0)
    for name, value in inside.items():
        torch.testing.assert_close(outside[name], value, rtol=0, atol=1e-12)
    # magnitudes change Adam's path, not what is computed
    close = federate(key, data, boundary=True, magnitude=0.25, shift=0.2)
    assert not torch.allclose(close["0.weight"], outside["0.weight"])


def secret_chunks(network, key) -> list[bytes]:
    """Everything that is derived from the key in a network, as byte strings to look for."""
    chunks = []
    for name, layer in keyed_layers(network).items():
        layer.set_coordinates(key.coordinates, name)
        factors = layer._read_factors()
        derived = [*layer._read_units(), *layer._read(), *factors.to_plain, *factors.to_locked]
        values = [*layer._coordinates.values(), *derived]
        for value in values:
            for form in (value.double(), value.float(), value.long()):
                array = form.numpy().ravel()
                if len(np.unique(array)) > 4:  # rounded values are no secret
                    chunks.append(array[:8].tobytes())
    assert len(chunks) > 10
    return chunks


def test_nothing_derived_from_the_key_is_in_states_pickles_or_copies(key):
    network = keyed(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12)))
    clean = pickle.dumps(network)
    chunks = secret_chunks(network, key)
    set_key(network, key.coordinates)
    network(torch.randn(2, 20))
    file = io.BytesIO()
    torch.save(network, file)
    texts = [pickle.dumps(network), file.getvalue(), pickle.dumps(network.state_dict()), repr(network).encode()]
    for text in texts:
        assert not any(chunk in text for chunk in chunks)
    assert len(texts[0]) == len(clean)
    for twin in (copy.deepcopy(network), copy.copy(network[0]), pickle.loads(pickle.dumps(network))):
        assert not any(layer.is_set for layer in keyed_layers(nn.Sequential(twin)).values())
        assert not any(
            layer._reading or layer._units or layer._factors for layer in keyed_layers(nn.Sequential(twin)).values()
        )
    names = set(network.state_dict())
    assert names == {
        f"{i}.{n}"
        for i in (0, 2)
        for n in ("weight", "bias", *(f"meta.{m}{k}" for m in ("weight", "bias") for k in (1, 2, 3)))
    }
    assert not list(network.buffers())


def test_the_search_finds_what_a_buffer_would_leak(key):
    network = keyed(nn.Sequential(nn.Linear(20, 16)))
    chunks = secret_chunks(network, key)
    network.register_buffer("leak", network[0]._read().input_scale.clone(), persistent=False)
    assert any(chunk in pickle.dumps(network) for chunk in chunks)


def test_precision_follows_the_network(key):
    network = keyed(nn.Sequential(nn.Linear(7, 5)))
    set_key(network, key.coordinates)
    x = torch.randn(3, 7)
    single = network(x)
    double = network.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        network[0]._read().input_scale.numpy(), naive_reading(network[0], key, "0")[1], rtol=1e-12
    )


def test_unknown_coordinates_are_an_error_where_they_are_needed(key):
    layer = make_layer(key)
    layer.clear_coordinates()
    with pytest.raises(RuntimeError, match="set_key"):
        layer.lock(layer.weight, layer.bias)
    network = keyed(nn.Sequential(nn.Linear(4, 3)))
    set_key(network, key.coordinates)
    clear_key(network)
    assert not network[0].is_set


# ---- the meta learner, trained


def test_a_trained_read_out_gets_gradients_and_the_rest_of_theta_none(key):
    layer = make_layer(key, train_meta=True)
    assert not layer.at_boundary
    layer(torch.randn(4, 7, dtype=torch.float64)).square().sum().backward()
    trained = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert trained == {"weight", "bias", "meta.weight3", "meta.bias3"}
    assert layer.meta.weight3.grad.abs().max() > 0


def test_a_trained_read_out_computes_what_the_frozen_one_did_until_it_is_trained(key):
    frozen, trained = make_layer(key), make_layer(key, train_meta=True)
    trained.load_state_dict(frozen.state_dict())
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(trained(x), frozen(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        trained.meta.weight3.add_(torch.randn_like(trained.meta.weight3))
    assert not torch.allclose(trained(x), frozen(x))
    np.testing.assert_allclose(trained(x).detach().numpy(), naive_forward(trained, key, x.numpy()), rtol=1e-9)
    weight, bias = trained.unlock(trained.weight, trained.bias)
    torch.testing.assert_close(nn.functional.linear(x, weight, bias), trained(x), rtol=1e-12, atol=1e-12)


def test_however_theta_is_trained_magnitudes_keep_their_spread_and_signs_stay(key):
    layer = make_layer(key, 200, 100, train_meta=True)
    signs = [torch.sign(t) for t in layer._read()[:2]]
    with torch.no_grad():
        layer.meta.weight3.mul_(1000).add_(3 * torch.randn_like(layer.meta.weight3))
        layer.meta.bias3.add_(50.0)
    s_in, s_out, shift = layer._read()
    assert torch.equal(torch.sign(s_in), signs[0])
    assert torch.equal(torch.sign(s_out), signs[1])
    for scale in (s_in, s_out):
        assert 0.1 < scale.abs().log().std() < 0.25
    assert 0.05 < shift.std() < 0.2


@pytest.mark.parametrize("train_meta", [False, True])
def test_a_layer_that_predicted_before_can_be_trained(key, train_meta):
    network = keyed(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), "coordinate", train_meta=train_meta)
    set_key(network, key.coordinates)
    x = torch.randn(4, 5)
    with torch.inference_mode():
        before = network(x)
        lock(network, {name: p.detach().clone() for name, p in network.named_parameters()})
    loss = network(x).square().sum()
    loss.backward()
    assert torch.allclose(network(x), before)
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    lock(network, dict(network.named_parameters()))
