"""Crafted weights read cells, and the site notices."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from scinfl.datasets import pbmc
from scinfl.module import ClassifierModule
from scinfl.nn import keyed, projected, set_key
from scinfl.privacy import Key, attacks, check_received
from scinfl.privacy.attacks._likeness import correlations


@pytest.fixture(scope="module")
def blood():
    adata = pbmc()
    x = np.asarray(adata.X, dtype=np.float32)
    y = torch.from_numpy(adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64))
    return x[:350], torch.from_numpy(x[350:]), y[350:]


def make(norm="layer", n_hidden=128):
    torch.manual_seed(0)
    return ClassifierModule(765, 10, n_hidden=n_hidden, dropout=0.0, input_dropout=0.0, norm=norm)


def parameters(network):
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


@pytest.mark.parametrize("norm", ["layer", None])
def test_crafted_weights_recover_cells_of_a_batch_and_honest_ones_none(blood, norm):
    public, x, y = blood
    network, crafted = make(norm), make(norm)
    imprint = attacks.imprint(network, public)
    crafted.load_state_dict(imprint.state)
    shares = [recovered(sent, imprint, x[:32], y[:32])[1] for sent in (crafted, network)]
    assert shares[0] > 0.4
    assert shares[1] < 0.1


def test_a_site_notices_crafted_weights_with_and_without_a_round_before(blood):
    network = make()
    state = {name: value.numpy() for name, value in attacks.imprint(network, blood[0]).state.items()}
    with pytest.raises(ValueError, match=r"'encoder.1.weight' repeat another"):
        check_received(state, parameters(network))
    with pytest.raises(ValueError, match="effective rank"):
        check_received(state)


def test_a_site_does_not_notice_honest_training(blood):
    _, x, y = blood
    network = make()
    before = parameters(network)
    check_received(before)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        network.loss((x, y)).backward()
        optimizer.step()
    check_received(parameters(network), before)
    check_received(parameters(network))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), "'head.bias' is missing"),
        (lambda state: state.update({"trap": np.zeros(2)}), "'trap' is new"),
        (lambda state: state.update({"head.bias": np.zeros(3)}), "'head.bias' has another shape"),
        (lambda state: state["head.bias"].fill(np.nan), "no numbers"),
        (lambda state: state["head.bias"].fill(50), "largest value of 'head.bias' is 50"),
        (lambda state: state["encoder.1.weight"][:30].__setitem__(..., state["encoder.1.weight"][20]), "% of the rows"),
    ],
)
def test_each_reason_is_named(change, message):
    network = make()
    state = parameters(network)
    change(state)
    with pytest.raises(ValueError, match=message):
        check_received(state, parameters(network))


def test_a_constant_scale_of_a_normalisation_is_no_reason():
    check_received({"norm.weight": np.ones(64), "norm.bias": np.zeros(64)})


def test_a_network_that_cannot_be_imprinted_is_refused(blood):
    with pytest.raises(ValueError, match="two linear layers"):
        attacks.imprint(nn.Sequential(nn.Linear(765, 10)), blood[0])


def test_crafting_leaves_the_network_as_it_is(blood):
    network = make()
    before = parameters(network)
    attacks.imprint(network, blood[0])
    assert all(np.array_equal(before[name], value) for name, value in parameters(network).items())


def test_nothing_found_is_nothing_recovered():
    assert attacks.share_recovered(np.ones((3, 4)), np.empty((0, 4))) == 0


@pytest.mark.parametrize("scheme", ["permuted", "pooled"])
def test_a_server_switches_modules_off_whose_key_acts_inside(blood, key, scheme):
    public, x, y = blood
    network = keyed(make(), scheme)
    crafted = copy.deepcopy(network)
    imprint = attacks.imprint(network, public)  # knows no key
    crafted.load_state_dict(imprint.state, strict=False)  # the encoder that layers share stands once in it
    set_key(crafted, key.coordinates)
    set_key(network, key.coordinates)
    shares = [recovered(sent, imprint, x[:32], y[:32])[1] for sent in (crafted, network)]
    assert shares[0] > 0.4
    assert shares[1] < 0.1


@pytest.mark.parametrize(("n_hidden", "least"), [(1024, 0.99), (256, 0.5)])
def test_crafted_weights_behind_a_projection_take_its_key(blood, key, n_hidden, least):
    public, x, y = blood
    network = projected(make(n_hidden=n_hidden), "encoder.1")
    best = {}
    for name, known in (("with the key", key), ("without", Key.generate())):
        set_key(network, known.coordinates)
        imprint = attacks.imprint(network, public)
        projection = network.encoder[1](torch.eye(765)).T.numpy()
        set_key(network, key.coordinates)  # the site has the right one
        crafted = copy.deepcopy(network)
        set_key(crafted, key.coordinates)
        crafted.load_state_dict(imprint.state, strict=False)
        assert imprint.layer == "encoder.5"
        hidden = recovered(crafted, imprint, x[:16], y[:16])[0]
        likeness = correlations(x[:16].numpy(), attacks.unproject(hidden, projection, public)).max(1)
        best[name] = np.sort(likeness)[-4:].mean()  # of the cells that are alone between two thresholds
    assert best["with the key"] > least
    assert best["without"] < 0.3


def recovered(network, imprint, x, y):
    """What crafted weights give of a batch, and the share of its cells that is among it."""
    network.zero_grad()
    network.loss((x, y)).backward()
    layer = network.get_submodule(imprint.layer)
    found = attacks.read_imprint(layer.weight.grad.numpy(), layer.bias.grad.numpy(), imprint.n_bins)
    return found, attacks.share_recovered(x.numpy(), found) if found.shape[1] == x.shape[1] else None
