"""Attackers that must succeed where there is no lock, and may not where there is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tests.conftest import make_cells
from tests.model.test_classifier import fit

from scinfl.privacy import Key, attacks

N_STEPS = 200


@pytest.fixture(scope="module")
def stolen():
    """Networks trained with each scheme on hard cells, and what an attacker has: a few cells of each label."""
    key = Key(bytes(range(32)), federation="test-federation")
    test = make_cells(900, 40, 6, noise=2.5, rng=1)
    train, test = test[::2].copy(), test[1::2].copy()
    models = {
        scheme: fit(train, 12, key=key, scheme=scheme, options={"dropout": 0.0, "input_dropout": 0.0})
        for scheme in ("coordinate", "permuted", "pooled")
    }
    names = np.array(models["coordinate"].labels)
    true, x = test.obs["label"].astype(str).to_numpy(), torch.from_numpy(test.X)

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, names[network(x).argmax(1).numpy()])

    few = np.random.default_rng(0).choice(train.n_obs, 24, replace=False)
    own = torch.from_numpy(train.X[few])
    codes = torch.from_numpy(train.obs["label"].cat.codes.to_numpy()[few].astype(np.int64))
    return {scheme: model.module for scheme, model in models.items()}, own, codes, score


@pytest.mark.parametrize("attack", [attacks.fit_scales, attacks.fine_tune, attacks.fit_key], ids=lambda a: a.__name__)
@pytest.mark.parametrize("scheme", ["permuted", "pooled"])
def test_the_published_forms_fall_to_model_stealing_with_a_few_samples(stolen, scheme, attack):
    networks, x, y, score = stolen
    right = score(networks[scheme])
    scratch = attacks.train_from_scratch(networks[scheme], x, y, score, n_steps=N_STEPS)
    found = attack(networks[scheme], x, y, score, n_steps=N_STEPS)
    assert found > scratch + 0.1
    assert found > right - 0.15


@pytest.mark.parametrize("attack", [attacks.fit_scales, attacks.fit_key], ids=lambda a: a.__name__)
def test_the_coordinate_form_leaves_model_stealing_at_training_from_scratch(stolen, attack):
    networks, x, y, score = stolen
    scratch = attacks.train_from_scratch(networks["coordinate"], x, y, score, n_steps=N_STEPS)
    assert attack(networks["coordinate"], x, y, score, n_steps=N_STEPS) < scratch + 0.1
    assert scratch < score(networks["coordinate"]) - 0.1


def test_attackers_leave_the_network_as_it_is_and_never_see_the_key(stolen):
    networks, x, y, score = stolen
    network = networks["coordinate"]
    before, right = copy.deepcopy(network.state_dict()), score(network)
    for attack in (attacks.train_from_scratch, attacks.fine_tune, attacks.fit_scales, attacks.fit_key):
        attack(network, x, y, score, n_steps=5)
    assert score(network) == right
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_statistics_undo_a_module_that_only_shifts_before_batch_normalisation(key):
    """Known break of the permuted form: strip the module, fit the normalisation to unlabelled cells."""
    from torch import nn

    from scinfl.nn import keyed, set_key

    torch.manual_seed(0)
    network = keyed(
        nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)), "permuted", layers=["0"]
    )
    set_key(network, key.coordinates)
    with torch.no_grad():
        for parameter in network[0].meta.parameters():
            parameter.mul_(20)
        x = torch.randn(500, 8)
        network(x)
        for _ in range(200):
            network.train()(x)
        right = network.eval()(x).argmax(1)

        def agreement(other):
            return (other.eval()(x).argmax(1) == right).double().mean().item()

        assert agreement(network) == 1
        assert attacks.removed_modules(network, agreement) < 0.9
        assert attacks.matched_statistics(network, x, agreement) > 0.97
        layer_norm = keyed(nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), "permuted")
        before = attacks.removed_modules(layer_norm, agreement)
        assert attacks.matched_statistics(layer_norm, x, agreement) == before


def test_stealing_a_projected_network_trains_a_first_layer_of_its_own(key):
    test = make_cells(900, 40, 6, noise=2.5, rng=1)
    model = fit(test, 8, key=key, share="projected", options={"dropout": 0.0, "input_dropout": 0.0})
    names, true = np.array(model.labels), test.obs["label"].astype(str).to_numpy()
    x, y = torch.from_numpy(test.X), torch.from_numpy(test.obs["label"].cat.codes.to_numpy().astype(np.int64))

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, names[network(x).argmax(1).numpy()])

    assert attacks.removed_modules(model.module, score) == pytest.approx(1 / 6)
    for attack in (attacks.train_from_scratch, attacks.fine_tune, attacks.fit_scales, attacks.fit_key):
        assert attack(model.module, x[:200], y[:200], score, n_steps=N_STEPS) > 0.4, attack.__name__
