"""What a site and a class are like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scinfl.datasets import pbmc
from scinfl.module import ClassifierModule
from scinfl.privacy import attacks


@pytest.fixture(scope="module")
def blood():
    """A network that was trained on half of the cells."""
    adata = pbmc()
    x = torch.from_numpy(np.asarray(adata.X, dtype=np.float32))
    y = torch.from_numpy(adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64))
    torch.manual_seed(0)
    network = ClassifierModule(765, 10, n_hidden=32, dropout=0.0, input_dropout=0.0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        network.loss((x[:350], y[:350])).backward()
        optimizer.step()
    return network.eval(), x, y


def test_an_update_shows_the_class_proportions_of_its_site(blood):
    _, x, y = blood
    torch.manual_seed(1)
    fresh = ClassifierModule(765, 10, n_hidden=16, dropout=0.0, input_dropout=0.0)
    codes = y[350:].numpy()

    def send(rows, of=x[350:], labels=y[350:]):
        change = attacks.local_change(fresh, of[rows], labels[rows], n_steps=2, lr=0.1)
        return {name: value.detach().numpy() for name, value in change.items()}

    sent, shares = attacks.simulate_sites(codes, send, n_sites=40, n_cells=60)
    assert np.allclose(shares.sum(1), 1)
    generator = np.random.default_rng(5)
    own = np.flatnonzero(np.isin(y[:350], generator.choice(10, 3, replace=False)))
    true = np.bincount(y[own], minlength=10) / len(own)
    found = attacks.infer_property(sent, shares, attacks.flatten(send(own, x, y)))
    public = np.bincount(codes, minlength=10) / len(codes)
    assert found.sum() == pytest.approx(1)
    assert np.abs(found - true).sum() < 0.4 * np.abs(public - true).sum()


def test_inverting_a_class_shows_its_mean_rather_than_another(blood):
    network, x, y = blood
    prior = attacks.CellPrior.from_cells(x[350:].numpy())
    for label in (4, 6):  # two of the larger classes
        found = attacks.invert_class(network, label, prior, n_iterations=60)
        scores = attacks.inversion_scores(found, x[:350].numpy(), y[:350].numpy(), label)
        assert scores["own_mean"] > scores["other_mean"] + 0.1
        assert scores["own_mean"] > scores["single_cells"]


def test_scores_of_an_inversion_are_correlations_less_the_overall_mean():
    generator = np.random.default_rng(0)
    x, codes = generator.normal(size=(30, 8)), np.arange(30) % 3
    found = x[codes == 1].mean(0)
    scores = attacks.inversion_scores(found, x, codes, 1)
    assert scores["own_mean"] == pytest.approx(1)
    naive = np.corrcoef(x[codes == 0].mean(0) - x.mean(0), found - x.mean(0))[0, 1]
    other = np.corrcoef(x[codes == 2].mean(0) - x.mean(0), found - x.mean(0))[0, 1]
    assert scores["other_mean"] == pytest.approx(max(naive, other))


def test_an_attribute_that_outputs_do_not_hold_is_guessed_at_chance():
    generator = np.random.default_rng(0)
    outputs, sex = generator.normal(size=(300, 4)), np.where(generator.random(300) < 0.5, "f", "m")
    assert attacks.infer_attribute(outputs, sex) == pytest.approx(0.5, abs=0.1)
    outputs[:, 0] += 3 * (sex == "f")
    assert attacks.infer_attribute(outputs, sex) > 0.85


def test_an_attribute_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least two values"):
        attacks.infer_attribute(np.zeros((20, 2)), np.repeat("f", 20))


def test_flattening_keeps_biases_and_the_means_of_rows():
    change = {"b.weight": np.array([[1.0, 3.0], [0.0, 2.0]]), "a.bias": np.array([5.0])}
    assert attacks.flatten(change).tolist() == [5, 2, 1]
