"""Labels and cells that explain an update."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from scinfl.datasets import pbmc
from scinfl.module import ClassifierModule
from scinfl.privacy import attacks


@pytest.fixture(scope="module")
def blood():
    adata = pbmc()
    x = adata.raw.X.toarray()[:, :200].astype(np.float32)
    y = adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:350]], torch.from_numpy(x[order[350:]]), torch.from_numpy(y[order[350:]])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ClassifierModule(200, 10, n_hidden=32, dropout=0.0, input_dropout=0.0).eval()


def detached(change):
    return {name: value.detach() for name, value in change.items()}


def test_the_label_of_one_cell_is_the_negative_entry_of_the_last_gradient(blood, network):
    _, x, y = blood
    for number in range(20):
        change = attacks.local_change(network, x[[number]], y[[number]], lr=1.0)
        assert attacks.infer_label(-change["head.bias"].detach().numpy()) == y[number]


def test_labels_of_a_batch_are_counted(blood, network):
    public, x, y = blood
    expected = attacks.outputs_of(network, torch.from_numpy(public)).mean(0)
    change = attacks.local_change(network, x[:16], y[:16], lr=1.0)
    counts = attacks.infer_label_counts(-change["head.bias"].detach().numpy(), expected, 16)
    assert counts.sum() == 16
    assert np.minimum(counts, np.bincount(y[:16], minlength=10)).sum() >= 14


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_local_steps_are_those_of_torch(blood, network, optimizer):
    _, x, y = blood
    import copy

    own = copy.deepcopy(network)
    torch_optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](own.parameters(), 1e-2)
    for _ in range(3):
        torch_optimizer.zero_grad()
        F.cross_entropy(own(x[:8]), y[:8]).backward()
        torch_optimizer.step()
    change = attacks.local_change(network, x[:8], y[:8], n_steps=3, lr=1e-2, optimizer=optimizer)
    before = dict(network.named_parameters())
    for name, after in own.named_parameters():
        assert_allclose(change[name].detach(), (after - before[name]).detach(), atol=2e-6)


@pytest.mark.parametrize("local", [{"lr": 0.01}, {"lr": 0.01, "n_steps": 4}], ids=["one step", "four steps"])
def test_a_search_with_priors_finds_cells_of_a_batch(blood, network, local):
    public, x, y = blood
    change = detached(attacks.local_change(network, x[:3], y[:3], **local))
    prior = attacks.CellPrior.from_cells(public)
    found = attacks.invert_update(network, change, y[:3], prior=prior, local=local, n_iterations=80)
    own = attacks.reconstruction_scores(x[:3].numpy(), found, public)["pearson"].mean()
    mean = attacks.reconstruction_scores(x[:3].numpy(), attacks.mean_cell(x[:3], public), public)["pearson"].mean()
    assert own > 0.85 > mean + 0.1
    assert found.min() >= 0
    plain = attacks.invert_update(network, change, y[:3], local=local, n_iterations=80)
    assert own > attacks.reconstruction_scores(x[:3].numpy(), plain, public)["pearson"].mean()


def test_the_squared_distance_finds_one_cell(blood, network):
    _, x, y = blood
    change = detached(attacks.local_change(network, x[:1], y[:1], lr=1.0))
    found = attacks.invert_update(network, change, y[:1], distance="squared", n_iterations=150, local={"lr": 1.0})
    assert attacks.reconstruction_scores(x[:1].numpy(), found)["pearson"][0] > 0.9


def test_a_search_leaves_the_network_as_it_is(blood, network):
    _, x, y = blood
    before = {name: value.clone() for name, value in network.state_dict().items()}
    change = detached(attacks.local_change(network, x[:2], y[:2]))
    attacks.invert_update(network, change, y[:2], n_iterations=3, start=x[:2].numpy())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_prior_knows_what_cells_are_like(blood):
    public, _, _ = blood
    prior = attacks.CellPrior.from_cells(public)
    assert prior.smallest == 0
    assert prior.sparse == pytest.approx((public == 0).mean())
    assert prior.total == pytest.approx(public.sum(1).mean(), rel=1e-5)
    real, shuffled = torch.from_numpy(public[:50]), torch.from_numpy(public[:50, ::-1].copy())
    assert prior.penalty(real) < prior.penalty(shuffled)
    assert attacks.CellPrior.from_cells(public - 1).total is None


def test_a_prior_of_many_features_knows_their_variances_alone():
    many = np.random.default_rng(0).normal(size=(20, 3001)).astype(np.float32)
    prior = attacks.CellPrior.from_cells(many)
    assert prior.precision.shape == (3001,)
    assert prior.penalty(torch.from_numpy(many)).item() == pytest.approx(0.95, abs=0.05)


def test_a_module_that_two_layers_share_keeps_its_parameters(key):
    from torch import nn

    from scinfl.nn import keyed, set_key

    network = keyed(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), "pooled")
    set_key(network, key.coordinates)
    before = dict(network.named_parameters())
    x, y = torch.randn(4, 6, requires_grad=True), torch.arange(4) % 3
    attacks.local_change(network, x, y, n_steps=3, lr=0.01, create_graph=True)
    assert all(value is before[name] for name, value in network.named_parameters())
