"""Cells and key at once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from scinfl.datasets import pbmc
from scinfl.module import ClassifierModule
from scinfl.nn import keyed, keyed_layers, lock, projected, set_key, unkeyed
from scinfl.privacy import attacks
from scinfl.privacy.attacks import _joint
from scinfl.privacy.attacks._inversion import distance_of

LOCAL = {"lr": 0.01}


@pytest.fixture(scope="module")
def blood():
    adata = pbmc()
    x = adata.raw.X.toarray()[:, :60].astype(np.float32)
    y = adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:400]], torch.from_numpy(x[order[400:]]), torch.from_numpy(y[order[400:]])


def plain_network():
    torch.manual_seed(0)
    return ClassifierModule(60, 10, n_hidden=24, dropout=0.0, input_dropout=0.0).eval()


def under_lock(key, x, y, n_updates=4, size=3):
    """Stolen network and changes of updates as they travel."""
    plain = plain_network()
    network = keyed(copy.deepcopy(plain))
    set_key(network, key.coordinates)
    before = {name: p.detach().double() for name, p in plain.named_parameters()}
    changes, labels = [], []
    for number in range(n_updates):
        rows = slice(number * size, (number + 1) * size)
        change = attacks.local_change(plain, x[rows], y[rows], **LOCAL)
        after = {name: value + change[name].detach().double() for name, value in before.items()}
        sent = [lock(network, state) for state in (before, after)]
        changes.append({name: (sent[1][name] - sent[0][name]).float() for name in before})
        labels.append(y[rows])
    stolen = copy.deepcopy(network)  # comes without the key
    with torch.no_grad():
        for name, parameter in stolen.named_parameters():
            if name in before:
                parameter.copy_(lock(network, before)[name])
    return network, stolen, changes, labels


def pearson(x, cells, size=3):
    found = [
        attacks.reconstruction_scores(x[number * size : (number + 1) * size].numpy(), guess)["pearson"].mean()
        for number, guess in enumerate(cells)
    ]
    return float(np.mean(found))


def test_the_right_key_and_the_right_cells_explain_what_was_sent(blood, key):
    _, x, y = blood
    network, stolen, changes, labels = under_lock(key, x, y)
    guess = _joint._FreeLock(stolen, torch.Generator().manual_seed(0))
    for name, free in guess._orders.items():
        layer = network.get_submodule(name)
        permutation, (scale_in, scale_out, shift) = layer._read_units().permutation, layer._read()
        with torch.no_grad():
            free.logits.fill_(-30)
            free.logits[torch.arange(len(permutation)), permutation] = 30
            for parameter, value in ((free.input_scale, scale_in), (free.output_scale, scale_out), (free.shift, shift)):
                parameter.copy_(value)
    guess.read()
    own = guess.change(x[:3], labels[0], LOCAL)
    assert distance_of(own, changes[0]).item() < 1e-3
    other = guess.change(x[3:6], labels[0], LOCAL)
    assert distance_of(other, changes[0]).item() > 0.05
    assert np.array_equal(guess.first.hard(), network.encoder[1]._read_units().permutation.numpy())


def test_a_search_for_cells_and_coordinates_finds_neither(blood, key):
    public, x, y = blood
    network, stolen, changes, labels = under_lock(key, x, y)
    prior = attacks.CellPrior.from_cells(public)
    guess = attacks.invert_jointly(stolen, changes, labels, prior=prior, local=LOCAL, n_iterations=40)
    mean = [attacks.mean_cell(cells, public) for cells in guess.cells]
    assert pearson(x, guess.cells) < pearson(x, mean) + 0.1
    true = network.encoder[1]._read_units().permutation.numpy()
    assert (guess.order == true).mean() < 0.15
    short = attacks.invert_jointly(stolen, changes, labels, prior=prior, local=LOCAL, n_iterations=2)
    assert guess.distance < short.distance - 0.05  # it did search
    matched = attacks.invert_jointly(stolen, changes, labels, prior=prior, local=LOCAL, n_iterations=2, order=true)
    assert (matched.order == true).mean() > 0.9
    assert not any(layer.is_set for layer in keyed_layers(stolen).values())


@pytest.mark.parametrize(
    ("scheme", "options"), [("permuted", {}), ("pooled", {}), ("coordinate", {"train_meta": True})]
)
def test_published_forms_give_cells_and_what_stands_for_the_key_at_once(blood, key, scheme, options):
    public, x, y = blood
    network = keyed(plain_network(), scheme, **options).eval()
    set_key(network, key.coordinates)
    labels = [y[:3], y[3:6]]
    changes = [attacks.local_change(network, x[rows], y[rows], **LOCAL) for rows in (slice(3), slice(3, 6))]
    stolen = copy.deepcopy(network)
    prior = attacks.CellPrior.from_cells(public)
    guess = attacks.invert_jointly(stolen, changes, labels, prior=prior, local=LOCAL, n_iterations=50)
    mean = pearson(x, [attacks.mean_cell(cells, public) for cells in guess.cells])
    assert (guess.order is None) == (scheme != "coordinate")
    if scheme == "coordinate":
        assert pearson(x, guess.cells) < mean + 0.1
    else:
        assert pearson(x, guess.cells) > mean + 0.1


@pytest.mark.parametrize("make", [unkeyed, lambda network: projected(network, "encoder.1")], ids=["plain", "projected"])
def test_a_network_without_weights_to_unlock_is_refused(blood, make):
    public, _, y = blood
    with pytest.raises(ValueError, match="none or a secret projection"):
        attacks.invert_jointly(make(plain_network()), [{}], [y[:1]], prior=attacks.CellPrior.from_cells(public))
