"""An overfitted network tells who was in its training data, one that saw nobody does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from scinfl.module import ClassifierModule
from scinfl.privacy import attacks

N = 240


@pytest.fixture(scope="module")
def study():
    """Hard cells, half of them in training; an overfitted network and an untrained one; shadows."""
    generator = np.random.default_rng(0)
    y = torch.from_numpy(generator.integers(3, size=N))
    x = torch.from_numpy((1.5 * np.eye(3, 20)[y] + generator.normal(size=(N, 20))).astype(np.float32))
    torch.manual_seed(0)
    network = ClassifierModule(20, 3, n_hidden=64, dropout=0.0, input_dropout=0.0)
    shadows, inside = attacks.train_shadows(network, x, y, n_models=13, n_epochs=20, lr=1e-2)
    target, member = shadows[0], inside[0]
    return network, x, y, target, member, shadows[1:], inside[1:]


def value(scores, member, metric="auc"):
    return attacks.membership_scores(scores, member).loc[metric, "value"]


def test_confidence_is_the_logit_of_the_right_label(study):
    network, x, y, *_ = study
    with torch.no_grad():
        p = network.eval()(x).double().softmax(1)[torch.arange(N), y]
    assert np.allclose(attacks.confidence(network, x, y), torch.log(p / (1 - p)))


def test_an_overfitted_network_has_an_advantage_and_an_untrained_one_has_none(study):
    network, x, y, target, member, *_ = study
    overfitted = attacks.membership_scores(target, member)
    assert overfitted.loc["advantage", "low"] > 0.1
    untrained = attacks.membership_scores(attacks.confidence(network, x, y), member)
    assert untrained.loc["auc", "low"] < 0.5 < untrained.loc["auc", "high"]
    assert untrained.loc["advantage", "low"] < 0 < untrained.loc["advantage", "high"]


def test_shadow_networks_beat_the_threshold_where_it_counts(study):
    _, _, _, target, member, shadows, inside = study
    online = attacks.likelihood_ratio(target, shadows, inside)
    offline = attacks.likelihood_ratio(target, shadows, inside, online=False)
    assert value(online, member) > value(target, member) + 0.03
    for score in (online, offline):  # sure of some cells, which a threshold never is
        assert value(score, member, "tpr_at_1%") > value(target, member, "tpr_at_1%") + 0.03


def test_the_likelihood_ratio_is_its_formula(study):
    _, _, _, target, _, shadows, inside = study
    score = attacks.likelihood_ratio(target, shadows, inside)
    both = np.flatnonzero(inside.any(0) & ~inside.all(0))
    assert np.array_equal(np.flatnonzero(~np.isnan(score)), both)
    squares, freedom = 0.0, 0
    for chosen in (inside, ~inside):
        for i in np.flatnonzero(chosen.any(0)):
            own = shadows[chosen[:, i], i]
            squares, freedom = squares + ((own - own.mean()) ** 2).sum(), freedom + len(own) - 1
    deviation = np.sqrt(squares / freedom)
    logs = [
        [norm.logpdf(target[i], shadows[chosen[:, i], i].mean(), deviation) for i in both]
        for chosen in (inside, ~inside)
    ]
    assert np.allclose(score[both], np.subtract(*logs))


def test_donors_are_inside_as_a_whole():
    generator = np.random.default_rng(0)
    x, y = torch.from_numpy(generator.normal(size=(40, 5)).astype(np.float32)), torch.arange(40) % 2
    groups = np.repeat(np.arange(10), 4)
    network = ClassifierModule(5, 2, n_hidden=4)
    _, inside = attacks.train_shadows(network, x, y, n_models=3, n_epochs=1, groups=groups)
    assert all(len(set(row[groups == group])) == 1 for row in inside for group in range(10))
    assert (inside.sum(1) == 20).all()
    score, member = attacks.by_group(np.arange(40.0), groups < 5, groups)
    assert score[:2].tolist() == [1.5, 5.5]
    assert member.tolist() == [True] * 5 + [False] * 5


def test_one_update_tells_who_was_in_it(study):
    network, x, y, *_ = study
    import copy

    after = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(after.parameters(), 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(after(x[:60]), y[:60]).backward()
        optimizer.step()
    table = attacks.membership_scores(attacks.loss_drop(network, after, x, y), np.arange(N) < 60)
    assert table.loc["auc", "low"] > 0.7


def test_scores_stand_beside_naive_ones():
    generator = np.random.default_rng(0)
    member = generator.random(3000) < 0.5
    scores = generator.normal(size=3000) + member
    table = attacks.membership_scores(scores, member)
    assert table.loc["auc", "value"] == pytest.approx(roc_auc_score(member, scores))
    outside = np.sort(scores[~member])[::-1]
    threshold = outside[int(0.01 * len(outside)) - 1]
    assert table.loc["tpr_at_1%", "value"] == pytest.approx((scores[member] > threshold).mean())
    assert (scores[~member] > threshold).mean() <= 0.01
    assert table.loc["advantage", "value"] == pytest.approx(0.38, abs=0.08)  # 2 Φ(1/2) − 1
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_too_few_outsiders_tell_no_small_rate():
    table = attacks.membership_scores(np.arange(150.0), np.arange(150) >= 120)
    assert not np.isnan(table.loc["tpr_at_1%", "value"])
    assert np.isnan(table.loc["tpr_at_0.1%", "value"])


def test_without_outsiders_there_is_nothing_to_rate():
    with pytest.raises(ValueError, match="cells inside and outside"):
        attacks.membership_scores(np.ones(3), np.ones(3, dtype=bool))
