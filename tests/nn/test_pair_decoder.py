"""The fused read-out of pairs against the plain formula, and the layers whose key folds into it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scinfl.nn import CoordinateLinear, NormMLP, SecretProjection, decode_pairs, folded, keyed, set_key

NAMES = ["z", "u", "readout", "weight1", "scale1", "shift1", "weight2", "scale2", "shift2"]


def make_case(n_genes, n_conditions, d, *, dtype=torch.float64, n_hidden=None, n_out=None):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape, around=0.0, spread=1.0):
        values = around + spread * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    n_hidden, n_out = n_hidden or 2 * d, n_out or d
    values = {
        "z": normal(n_genes, d),
        "u": normal(n_conditions, d),
        "readout": normal(n_genes, n_out),
        "weight1": normal(n_hidden, d, spread=d**-0.5),
        "scale1": normal(n_hidden, around=1.0, spread=0.2),
        "shift1": normal(n_hidden, spread=0.3),
        "weight2": normal(n_out, n_hidden, spread=n_hidden**-0.5),
        "scale2": normal(n_out, around=1.0, spread=0.2),
        "shift2": normal(n_out, spread=0.3),
    }
    weight = (torch.rand(n_conditions, generator=generator, dtype=torch.float64) + 0.2).to(dtype)
    return values, weight


def decode(values, weight):
    v = values
    hidden, output = (v["weight1"], v["scale1"], v["shift1"], 1e-5), (v["weight2"], v["scale2"], v["shift2"], 1e-5)
    return decode_pairs(v["z"], v["u"], weight / weight.sum(), hidden, output, v["readout"])


def make_mlp(values):
    """The plain network of the same parameters; it has biases, which cancel."""
    n_hidden, d = values["weight1"].shape
    mlp = NormMLP([d, n_hidden, len(values["weight2"])]).to(values["z"])
    with torch.no_grad():
        for number in (0, 1):
            mlp.linears[number].bias.normal_(generator=torch.Generator().manual_seed(number))
            mlp.norms[number].momentum = 1.0
    return mlp


def naive(values, weight, mlp):
    """Every pair by itself, through the network."""
    parameters = {
        f"{part}.{number}.{kind}": values[f"{name}{number + 1}"]
        for part, kind, name in (
            ("linears", "weight", "weight"),
            ("norms", "weight", "scale"),
            ("norms", "bias", "shift"),
        )
        for number in (0, 1)
    }
    h = torch.relu(values["z"] + values["u"][:, None])
    r = torch.func.functional_call(mlp, parameters, (h, weight[:, None]))
    return (r * values["readout"]).sum(-1)


def objective(result):
    """Something that is not linear, so that errors of pairs differ."""
    towards = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return (result * towards).sum() + result.square().mean() + 0.1 * (result**3).mean()


def gradients(result, values):
    return torch.autograd.grad(objective(result), [values[name] for name in NAMES])


CASES = {
    "one condition": (50, 1, 8),
    "several conditions a chunk": (50, 70, 8),
    "chunks that are not full": (300, 20, 8),
    "one condition is larger than a chunk": (3000, 3, 8),
    "as many genes as a chunk": (2048, 2, 4),
    "one gene": (1, 30, 4),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_values_gradients_and_statistics_are_those_of_the_plain_network(shape, dtype, tolerance):
    values, weight = make_case(*shape, dtype=dtype)
    exact, _ = make_case(*shape)
    for name, value in exact.items():  # the formula in float64, of the rounded inputs
        value.data.copy_(values[name].detach())
    mlp = make_mlp(exact)
    expected = naive(exact, weight.double(), mlp)
    result, seen = decode(values, weight)
    assert result.dtype == dtype

    def close(one, other):
        scale = other.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=tolerance)

    close(result, expected)
    for one, other in zip(gradients(result, values), gradients(expected, exact), strict=True):
        close(one, other)
    n = float(weight.sum()) * shape[0]
    unbiased = n / max(n - 1, 1)
    for number, (mean, variance) in enumerate(((seen.mean1, seen.variance1), (seen.mean2, seen.variance2))):
        close(mean + mlp.linears[number].bias.to(mean), mlp.norms[number].running_mean)
        close(variance * unbiased, mlp.norms[number].running_var)


def test_gradients_agree_with_differences():
    values, weight = make_case(3, 4, 2, n_hidden=3)
    share = weight / weight.sum()

    def decoded(z, u, readout, weight1, scale1, shift1, weight2, scale2, shift2):
        return decode_pairs(z, u, share, (weight1, scale1, shift1, 1e-2), (weight2, scale2, shift2, 1e-2), readout)[0]

    inputs = [values[name] for name in NAMES]
    assert torch.autograd.gradcheck(decoded, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_sizes_of_the_layers_are_free():
    values, weight = make_case(20, 5, 3, n_hidden=7, n_out=2)
    expected = naive(values, weight, make_mlp(values))
    torch.testing.assert_close(decode(values, weight)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(300, 20, 8), (3000, 2, 4)])
def test_without_gradients_the_same_is_computed(shape):
    values, weight = make_case(*shape)
    result, seen = decode(values, weight)
    with torch.no_grad():
        again, seen_again = decode(values, weight)
    assert not again.requires_grad
    torch.testing.assert_close(again, result, rtol=1e-12, atol=1e-12)
    for one, other in zip(seen_again, seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_equal_conditions_count_like_one_of_their_weight():
    values, _ = make_case(30, 4, 5)
    counts = torch.tensor([1.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    repeated = {**values, "u": values["u"].repeat_interleave(counts.long(), 0)}
    expected, _ = decode(repeated, torch.ones(7, dtype=torch.float64))
    result, _ = decode(values, counts)
    torch.testing.assert_close(result.repeat_interleave(counts.long(), 0), expected, rtol=1e-10, atol=1e-10)


def test_a_condition_of_weight_zero_is_decoded_but_not_counted():
    values, weight = make_case(30, 4, 5)
    weight[2] = 0
    result, seen = decode(values, weight)
    kept = [0, 1, 3]
    expected, seen_without = decode({**values, "u": values["u"][kept]}, weight[kept])
    torch.testing.assert_close(result[kept], expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(seen, seen_without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(result).all()


def test_inputs_are_left_as_they_are_and_the_way_back_can_be_gone_twice():
    values, weight = make_case(300, 9, 4)
    before = {name: value.detach().clone() for name, value in values.items()}
    loss = objective(decode(values, weight)[0])
    first = torch.autograd.grad(loss, list(values.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(values.values()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(values[name], value) for name, value in before.items())


def test_statistics_have_no_gradient():
    values, weight = make_case(20, 3, 4)
    result, seen = decode(values, weight)
    assert result.requires_grad
    assert not any(one.requires_grad for one in seen)


# ---- the maps that a key folds into


def make_linear(key, *, bias=True, **options):
    torch.manual_seed(0)
    layer = CoordinateLinear(nn.Linear(7, 5, bias=bias), generator=torch.Generator().manual_seed(3), **options).double()
    layer.set_coordinates(key.coordinates, "layer")
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", ["plain", "with its key", "without a key"])
def test_a_folded_layer_computes_the_same(key, state, bias):
    layer = nn.Linear(7, 5, bias=bias).double() if state == "plain" else make_linear(key, bias=bias)
    if state == "without a key":
        layer.clear_coordinates()
    x = torch.randn(6, 7, dtype=torch.float64)
    weight, shift = folded(layer)
    assert (shift is not None) == bias
    torch.testing.assert_close(nn.functional.linear(x, weight, shift), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train_meta", [False, True])
def test_gradients_flow_through_a_folded_layer(key, train_meta):
    layer, twin = (make_linear(key, train_meta=train_meta) for _ in range(2))
    x = torch.randn(6, 7, dtype=torch.float64)
    nn.functional.linear(x, *folded(layer)).square().sum().backward()
    twin(x).square().sum().backward()
    found = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert found == {"weight", "bias", *(("meta.weight3", "meta.bias3") if train_meta else ())}
    for name in found:
        torch.testing.assert_close(layer.get_parameter(name).grad, twin.get_parameter(name).grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scheme", ["permuted", "pooled"])
def test_layers_of_the_published_schemes_cannot_be_folded(key, scheme):
    layer = keyed(nn.Linear(6, 4), scheme)
    assert folded(layer) is None
    set_key(layer, key.coordinates)
    assert folded(layer) is None
    weight, bias = torch.randn(4, 6), torch.randn(4)
    assert layer.lock(weight, bias) == (weight, bias)
    assert layer.unlock(weight, bias) == (weight, bias)


def test_other_modules_have_no_folded_weight():
    for module in (nn.ReLU(), nn.Conv1d(2, 2, 1), SecretProjection(nn.Linear(4, 3))):
        assert folded(module) is None


def test_a_copy_of_a_folded_layer_has_no_key(key):
    layer = make_linear(key)
    folded(layer)
    twin = copy.deepcopy(layer)
    assert torch.equal(folded(twin)[0], layer.weight)
