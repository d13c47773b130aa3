"""Further model stealing: what falls to it and what does not."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tests.conftest import make_cells
from tests.model.test_classifier import fit

from scinfl.nn import set_key
from scinfl.privacy import Key, attacks

N_STEPS = 150


@pytest.fixture(scope="module")
def stolen():
    key = Key(bytes(range(32)), federation="test-federation")
    cells = make_cells(900, 40, 6, noise=2.5, rng=1)
    train, test = cells[::2].copy(), cells[1::2].copy()
    models = {
        scheme: fit(train, 12, key=key, scheme=scheme, options={"dropout": 0.0, "input_dropout": 0.0})
        for scheme in ("coordinate", "permuted", "pooled")
    }
    true, x = test.obs["label"].cat.codes.to_numpy(), torch.from_numpy(test.X)

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, network(x).argmax(1).numpy())

    few = np.random.default_rng(0).choice(train.n_obs, 24, replace=False)
    y = torch.from_numpy(train.obs["label"].cat.codes.to_numpy()[few].astype(np.int64))
    networks = {scheme: model.module.eval() for scheme, model in models.items()}
    return networks, torch.from_numpy(train.X[few]), y, score, torch.from_numpy(train.X)


def stealing(public):
    return {
        "fit_permutation": attacks.fit_permutation,
        "match_surrogate": attacks.match_surrogate,
        "distil": partial(attacks.distil, public=public),
        "average_versions": lambda network, *args, **options: attacks.average_versions(
            [network, network], *args, **options
        ),
    }


@pytest.mark.parametrize("name", ["fit_permutation", "match_surrogate", "distil", "average_versions"])
def test_the_coordinate_form_leaves_model_stealing_at_training_from_scratch(stolen, name):
    networks, x, y, score, public = stolen
    network = networks["coordinate"]
    before, right = copy.deepcopy(network.state_dict()), score(network)
    scratch = attacks.train_from_scratch(network, x, y, score, n_steps=N_STEPS)
    assert stealing(public)[name](network, x, y, score, n_steps=N_STEPS) < scratch + 0.12
    assert scratch < right - 0.1
    assert score(network) == right
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["distil", "average_versions"])
def test_the_permuted_form_falls_to_them(stolen, name):
    networks, x, y, score, public = stolen
    network = networks["permuted"]
    scratch = attacks.train_from_scratch(network, x, y, score, n_steps=N_STEPS)
    assert stealing(public)[name](network, x, y, score, n_steps=N_STEPS) > scratch + 0.1


def test_a_soft_permutation_finds_a_short_order_with_enough_samples():
    torch.manual_seed(0)
    from torch import nn

    from scinfl.nn import keyed

    network = keyed(nn.Sequential(nn.Linear(5, 3)), "coordinate")
    set_key(network, Key(bytes(range(32)), federation="test").coordinates)
    with torch.no_grad():
        network[0].weight.mul_(4)
    x = torch.randn(600, 5)
    y = network(x).argmax(1).detach()

    def agreement(other):
        with torch.inference_mode():
            return (other(x).argmax(1) == y).double().mean().item()

    assert attacks.removed_modules(network, agreement) < 0.7
    assert attacks.fit_permutation(network, x[:300], y[:300], agreement, n_steps=400) > 0.85


def test_one_open_update_gives_the_pooled_key_away(stolen):
    networks, _, _, score, public = stolen
    network = copy.deepcopy(networks["pooled"])
    set_key(network, Key(bytes(range(32)), federation="test-federation").coordinates)
    network.loss((public[:40], torch.arange(40) % 6)).backward()
    gradients = {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}
    vector = attacks.extract_pooled_key(gradients)
    layer = network.encoder[1]
    with torch.no_grad():
        true = layer.meta["encoder"](layer._secret()["points"].float()).mean(0).numpy()
    assert np.allclose(vector, true, rtol=1e-3, atol=1e-4)
    locked = copy.deepcopy(networks["pooled"])  # comes without the key
    assert score(attacks.use_pooled_key(locked, vector)) == pytest.approx(score(network), abs=0.01)


def test_other_schemes_have_no_pooled_key():
    with pytest.raises(KeyError, match="modulator of key scheme 'pooled'"):
        attacks.extract_pooled_key({"encoder.1.weight": np.zeros((2, 2))})
