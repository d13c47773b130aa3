"""Cells come out of open updates, exactly where the theory says so, and out of masked ones not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from scinfl.datasets import pbmc
from scinfl.federation import Update
from scinfl.module import ClassifierModule
from scinfl.privacy import KeyedSum, attacks

LAYER = "encoder.1"


@pytest.fixture(scope="module")
def blood():
    """Log-normalised counts, two thirds zeros; half public."""
    adata = pbmc()
    x = adata.raw.X.toarray().astype(np.float32)
    y = adata.obs["bulk_labels"].cat.codes.to_numpy().astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:350]], x[order[350:]], y[order[350:]]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ClassifierModule(765, 10, n_hidden=64, dropout=0.3, input_dropout=0.2).eval()


def change(network, x, y, **local):
    found = attacks.local_change(network, torch.from_numpy(x), torch.from_numpy(y), **{"lr": 1.0, **local})
    return found[f"{LAYER}.weight"].detach().numpy(), found[f"{LAYER}.bias"].detach().numpy()


@pytest.mark.parametrize("local", [{}, {"n_steps": 5, "lr": 0.01}], ids=["one step", "five steps"])
def test_one_cell_is_read_exactly_off_plain_gradient_descent(blood, network, local):
    _, x, y = blood
    for number in range(5):
        cell = x[[number]]
        found = attacks.recover_input(*change(network, cell, y[[number]], **local))[None]
        scores = attacks.reconstruction_scores(cell, found).iloc[0]
        assert scores["pearson"] > 0.999
        assert scores["top_features"] == 1
        assert scores["nonzero"] > 0.995
        assert_allclose(found, cell, atol=0.02)  # size, too


def test_adam_blurs_one_cell_but_its_pattern_shows(blood, network):
    _, x, y = blood
    found = attacks.recover_input(*change(network, x[:1], y[:1], n_steps=4, lr=3e-3, optimizer="adam"))[None]
    scores = attacks.reconstruction_scores(x[:1], found).iloc[0]
    assert 0.6 < scores["pearson"] < 0.999
    assert scores["nonzero"] > 0.99


@pytest.mark.parametrize("size", [2, 8])
def test_a_batch_of_sparse_cells_is_unmixed_exactly(blood, network, size):
    public, x, y = blood
    found = attacks.recover_inputs(*change(network, x[:size], y[:size]), size, sparse=True)
    scores = attacks.reconstruction_scores(x[:size], found, public)
    assert scores["pearson"].min() > 0.999
    assert scores["reidentified"].all()
    random = attacks.reconstruction_scores(x[:size], public[:size], public)
    assert random["pearson"].max() < 0.8
    assert random["reidentified"].sum() == 0


def test_independent_components_beat_the_mean_cell_on_dense_cells(network):
    generator = np.random.default_rng(0)
    x = generator.exponential(size=(4, 765)).astype(np.float32)
    found = attacks.recover_inputs(*change(network, x, np.arange(4)), 4)
    assert attacks.reconstruction_scores(x, found)["pearson"].min() > 0.9


def in_order(numbers, weight, bias):
    """Weight and bias in an upload that holds them in the order of their names."""
    return numbers[bias.size : bias.size + weight.size].reshape(weight.shape), numbers[: bias.size]


def test_a_start_that_fails_leaves_the_others(monkeypatch):
    from scinfl.privacy.attacks import _reconstruction as module_under_test

    fits = []

    class Fails(module_under_test.FastICA):
        def fit(self, x, y=None):
            fits.append(self.random_state)
            if len(fits) == 1:
                msg = "A has a NaN entry"
                raise ValueError(msg)
            return super().fit(x, y)

    monkeypatch.setattr(module_under_test, "FastICA", Fails)
    generator = np.random.default_rng(0)
    x, delta = generator.exponential(size=(3, 400)), generator.normal(size=(3, 20))
    found = attacks.recover_inputs(delta.T @ x, delta.sum(0), 3, n_restarts=3)
    assert attacks.reconstruction_scores(x, found)["pearson"].min() > 0.95
    assert len(fits) == 3


def test_keyed_sums_show_no_more_than_the_mean_cell(blood, network, key):
    public, x, y = blood
    own, means = [], []
    for number in range(20):
        cell = x[[number]]
        weight, bias = change(network, cell, y[[number]])
        sums = KeyedSum(key, min_sites=2)
        sums.agree("training", {"a": 1.0, "b": 1.0})
        state = {f"{LAYER}.weight": weight, f"{LAYER}.bias": bias}
        integers = sums.encode(Update("a", 1, state, 1)).state["masked"].astype(np.float64) / 2.0**63 - 1
        found = attacks.recover_input(*in_order(integers, weight, bias))[None]
        own.append(attacks.reconstruction_scores(cell, found, public))
        means.append(attacks.reconstruction_scores(cell, attacks.mean_cell(cell, public), public))
    for metric in ("pearson", "top_features", "reidentified"):
        own_mean, mean_cell = (np.mean([part[metric].iloc[0] for part in parts]) for parts in (own, means))
        luck = 0.15 if metric == "reidentified" else 0.0  # three of twenty cells; masks differ from run to run
        assert own_mean <= mean_cell + luck
    assert np.mean([part["pearson"].iloc[0] for part in own]) < 0.05


def test_the_key_of_a_colluding_site_opens_the_upload_of_another(blood, network, key):
    """Why keyed sums count as open to a server that has a site on its side."""
    _, x, y = blood
    weight, bias = change(network, x[:1], y[:1])
    sums = KeyedSum(key, min_sites=2)
    sums.agree("training", {"a": 1.0, "b": 1.0})
    upload = sums.encode(Update("a", 1, {f"{LAYER}.weight": weight, f"{LAYER}.bias": bias}, 1))
    integers = upload.state["masked"].copy()
    nonce, context = upload.header["nonce"], upload.header["context"]
    integers -= sums._stream(context, upload, "a", nonce, len(integers), integers.dtype)[0]
    values = sums._numbers.decode(integers)
    found = attacks.recover_input(*in_order(values, weight, bias))[None]
    assert attacks.reconstruction_scores(x[:1], found)["pearson"][0] > 0.999


def test_scores_match_cells_whatever_their_order(blood):
    public, x, _ = blood
    order = np.random.default_rng(1).permutation(6)
    scores = attacks.reconstruction_scores(x[:6], 5 * x[:6][order] + 1, public)
    assert_allclose(scores["pearson"], 1)
    assert scores["reidentified"].all()
    naive = [np.corrcoef(a, b)[0, 1] for a, b in zip(x[:6], public[:6], strict=True)]
    alone = [attacks.reconstruction_scores(a[None], b[None])["pearson"][0] for a, b in zip(x[:6], public, strict=False)]
    assert_allclose(alone, naive, rtol=1e-9)


def test_dense_cells_have_no_pattern_and_constants_no_correlation():
    x = np.random.default_rng(0).normal(size=(3, 20))
    scores = attacks.reconstruction_scores(x, np.full_like(x, np.nan))
    assert scores["nonzero"].isna().all()
    assert (scores["pearson"] == 0).all()
    assert (scores["reidentified"] == 0).all()


def test_the_nearest_cell_is_the_best_that_copying_gives(blood):
    public, x, _ = blood
    nearest = attacks.reconstruction_scores(x[:4], attacks.nearest_cell(x[:4], public))["pearson"]
    assert (nearest >= [np.corrcoef(cell, public[0])[0, 1] for cell in x[:4]]).all()


def test_nothing_changed_gives_nothing():
    assert not attacks.recover_input(np.zeros((3, 5)), np.zeros(3)).any()
    assert not attacks.recover_inputs(np.zeros((3, 5)), np.zeros(3), 2).any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"weight \(units × inputs\) and its bias"):
        attacks.recover_input(np.zeros((3, 5)), np.zeros(5))
    with pytest.raises(ValueError, match="at most 3 inputs"):
        attacks.recover_inputs(np.zeros((3, 5)), np.zeros(3), 4)
    with pytest.raises(ValueError, match="as many reconstructed cells"):
        attacks.reconstruction_scores(np.zeros((3, 5)), np.zeros((2, 5)))


def test_a_lock_hides_the_order_until_it_is_known():
    generator = np.random.default_rng(0)
    loadings = generator.normal(size=(5, 30))
    mean = 3 * generator.normal(size=30)  # of symmetric cells, a sign could not be found
    public, x = (generator.normal(size=(n, 5)) @ loadings + 0.3 * generator.normal(size=(n, 30)) for n in (300, 3))
    public, x = public + mean, x + mean
    order, signs = generator.permutation(30), generator.choice([-1.0, 1.0], 30)
    locked = x[:, order] * signs
    assert attacks.reconstruction_scores(x, locked)["pearson"].mean() < 0.5
    found = attacks.match_signs([(public - public.mean(0))[:, order] * signs], public, order)
    assert abs(found @ signs) == 30
    assert attacks.reconstruction_scores(x, attacks.unscramble(locked, order, found, public))["pearson"].min() > 0.999
