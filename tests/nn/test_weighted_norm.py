"""Rows that represent several cells are normalised like the cells."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from scinfl.nn import NormMLP, WeightedBatchNorm

COUNTS = torch.tensor([1, 3, 2, 5])


def make_norm(n_features=3, like=None):
    """A norm whose scale and shift are not the initial ones, and torch's with the same parameters."""
    generator = torch.Generator().manual_seed(1)
    norm, twin = WeightedBatchNorm(n_features).double(), nn.BatchNorm1d(n_features).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(n_features, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(n_features, generator=generator))
    twin.load_state_dict(norm.state_dict())
    return norm, twin


def make_rows(*shape, rng=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng), dtype=torch.float64)


def assert_same_state(network, twin):
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_a_row_of_weight_w_counts_like_w_equal_rows_of_torch():
    norm, twin = make_norm()
    x, error = make_rows(4, 3).requires_grad_(), make_rows(4, 3, rng=1)
    repeated = x.detach().repeat_interleave(COUNTS, 0).requires_grad_()
    for _ in range(2):  # running statistics move twice
        y, expected = norm(x, COUNTS), twin(repeated)
        torch.testing.assert_close(y.repeat_interleave(COUNTS, 0), expected)
    # the error of a row is that of all its copies
    got = torch.autograd.grad((y * error * COUNTS[:, None]).sum(), [x, norm.weight, norm.bias])
    wanted = torch.autograd.grad(
        (expected * error.repeat_interleave(COUNTS, 0)).sum(), [repeated, twin.weight, twin.bias]
    )
    of_rows = torch.stack([part.sum(0) for part in wanted[0].split(COUNTS.tolist())])
    for one, other in zip(got, [of_rows, *wanted[1:]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert_same_state(norm, twin)


def test_without_weights_it_is_torchs_norm():
    norm, twin = make_norm()
    x = make_rows(6, 3)
    torch.testing.assert_close(norm(x), twin(x))
    assert_same_state(norm, twin)


def test_weights_broadcast_over_the_inner_axes_and_all_axes_but_the_last_are_pooled():
    norm, twin = make_norm()
    x = make_rows(4, 5, 3)
    y = norm(x, COUNTS[:, None])
    expected = twin(x.repeat_interleave(COUNTS, 0).reshape(-1, 3)).view(-1, 5, 3)
    torch.testing.assert_close(y.repeat_interleave(COUNTS, 0), expected)
    assert_same_state(norm, twin)


def test_a_row_of_weight_zero_is_normalised_but_not_counted():
    norm, twin = make_norm()
    x = make_rows(4, 3)
    y = norm(x, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    kept = [0, 1, 3]
    torch.testing.assert_close(y[kept], twin(x[kept]))
    assert_same_state(norm, twin)
    assert torch.isfinite(y).all()


def test_only_shares_count_in_the_normalisation_and_only_the_running_variance_knows_the_number():
    one, _ = make_norm()
    other, _ = make_norm()
    x = make_rows(4, 3)
    torch.testing.assert_close(one(x, COUNTS), other(x, 10 * COUNTS))
    torch.testing.assert_close(one.running_mean, other.running_mean)
    assert not torch.allclose(one.running_var, other.running_var)


def test_a_single_row_gives_the_shift_and_keeps_the_statistics_finite():
    norm, _ = make_norm()
    y = norm(make_rows(1, 3), torch.tensor([1.0]))
    torch.testing.assert_close(y[0], norm.bias)
    assert torch.isfinite(norm.running_var).all()


def test_in_evaluation_the_running_statistics_normalise_and_stay():
    norm, twin = make_norm()
    x = make_rows(4, 3)
    norm(x, COUNTS)
    twin(x.repeat_interleave(COUNTS, 0))
    norm.eval(), twin.eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    fresh = make_rows(2, 3, rng=7)
    torch.testing.assert_close(norm(fresh, torch.tensor([1.0, 9.0])), twin(fresh))
    torch.testing.assert_close(norm(fresh[None]), twin(fresh)[None])
    scale, shift = norm.folded()
    torch.testing.assert_close(fresh * scale + shift, twin(fresh))
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


def test_fold_normalises_by_given_statistics_and_remembers_them():
    norm, twin = make_norm()
    x = make_rows(6, 3)
    scale, shift = norm.fold(x.mean(0), x.var(0, correction=0), 6.0)
    torch.testing.assert_close(x * scale + shift, twin(x))
    assert_same_state(norm, twin)


def test_single_precision_stays_single():
    norm = WeightedBatchNorm(3)
    assert norm(make_rows(4, 3).float(), COUNTS).dtype == torch.float32


def torch_pieces(mlp: NormMLP, sizes, *, last_norm):
    layers: list[nn.Module] = []
    for number, (n_in, n_out) in enumerate(pairwise(sizes)):
        last = number == len(sizes) - 2
        layers += [nn.Linear(n_in, n_out)]
        layers += [nn.BatchNorm1d(n_out)] if last_norm or not last else []
        layers += [] if last else [nn.ReLU()]
    network = nn.Sequential(*layers).double()
    mine = [*mlp.linears, *mlp.norms]
    theirs = [layer for kind in (nn.Linear, nn.BatchNorm1d) for layer in network if isinstance(layer, kind)]
    for one, other in zip(mine, theirs, strict=True):
        other.load_state_dict(one.state_dict())
    return network


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("sizes", [[4, 3], [4, 6, 3], [4, 6, 5, 1]])
def test_the_mlp_is_a_sequence_of_torchs_pieces(sizes, last_norm):
    torch.manual_seed(0)
    mlp = NormMLP(sizes, last_norm=last_norm).double()
    twin = torch_pieces(mlp, sizes, last_norm=last_norm)
    x = make_rows(4, 4)
    for training in (True, True, False):
        mlp.train(training), twin.train(training)
        y = mlp(x, COUNTS)
        torch.testing.assert_close(y.repeat_interleave(COUNTS, 0), twin(x.repeat_interleave(COUNTS, 0)))
        torch.testing.assert_close(mlp(x[None])[0], twin(x))
    assert len(mlp.norms) == len(sizes) - (1 if last_norm else 2)


def test_gradients_reach_all_parameters_of_the_mlp():
    torch.manual_seed(0)
    mlp = NormMLP([4, 6, 3], last_norm=False).double()
    twin = torch_pieces(mlp, [4, 6, 3], last_norm=False)
    x = make_rows(4, 4)
    mlp(x, COUNTS).mul(COUNTS[:, None]).square().sum().backward()
    repeated = twin(x.repeat_interleave(COUNTS, 0))
    (repeated * COUNTS.repeat_interleave(COUNTS)[:, None] * repeated).sum().backward()
    torch.testing.assert_close(mlp.linears[0].weight.grad, twin[0].weight.grad)
    torch.testing.assert_close(mlp.norms[0].weight.grad, twin[1].weight.grad)
    torch.testing.assert_close(mlp.linears[1].bias.grad, twin[3].bias.grad)
