"""Updates without senders: what the shuffler hands on, and what it is worth."""

from __future__ import annotations

import numpy as np
import pytest
from tests.privacy.dp.test_update_dp import announced

from scinfl.federation import FedAvg, Update, simulate
from scinfl.privacy import KeyedSum
from scinfl.privacy.dp._accounting import gaussian_epsilon, shuffled_epsilon
from scinfl.privacy.dp._shuffle import Shuffle
from scinfl.privacy.dp._update_dp import UpdateDP

pytestmark = pytest.mark.filterwarnings("ignore:Noise on the updates of:UserWarning")


def make_updates(n=6):
    return [
        Update(f"site_{i}", 1, {"w": np.full(3, float(i), np.float32)}, 10 + i, 10.0 + i, {"loss": 1.0}, 2)
        for i in range(n)
    ]


def test_names_weights_and_order_are_gone_and_the_values_are_not():
    protection, updates = Shuffle(max_norm=1.0, noise_multiplier=1.0), make_updates()
    orders = set()
    for _ in range(50):
        nameless = protection.shuffle(updates)
        assert {(u.site, u.n_obs, u.weight, len(u.metrics), len(u.header)) for u in nameless} == {("", 0, 1.0, 0, 0)}
        orders.add(tuple(float(u.state["w"][0]) for u in nameless))
        assert sorted(orders.copy().pop()) == [0, 1, 2, 3, 4, 5]
    assert len(orders) > 20


def test_the_server_takes_the_plain_mean():
    protection = Shuffle(max_norm=1.0, noise_multiplier=1.0)
    combined = protection.combine(make_updates())
    np.testing.assert_allclose(combined.state["w"], 2.5)
    assert combined.state["w"].dtype == np.float32
    assert (combined.site, combined.n_obs, combined.key_version) == ("", 0, 2)
    assert protection.combine([Update("a", 0, {}, 1, purpose="evaluation")]) is None


def test_a_run_clips_blurs_and_forgets_who_sent_what(toy_sites):
    states = {}
    for max_norm in (100.0, 0.2):
        protection = Shuffle(max_norm=max_norm, noise_multiplier=0.0)
        sites = announced(toy_sites, protection)
        run = simulate(sites, {"w": np.zeros(4)}, FedAvg(), [protection], n_rounds=1, progress=False)
        states[max_norm] = run.state["w"]
        assert "train_loss" not in run.history[0]
    np.testing.assert_allclose(states[100.0], (1 + 2 + 6) / 3 / 2)
    assert np.linalg.norm(states[0.2]) == pytest.approx(0.2)


def test_few_sites_are_told_the_epsilon_of_the_noise_alone_and_many_less():
    for n_sites in (3, 10):
        shuffled, alone = (kind(max_norm=1.0, noise_multiplier=8.0) for kind in (Shuffle, UpdateDP))
        for protection in (shuffled, alone):
            protection.open_account(n_sites=n_sites, n_rounds=2, journal=None)
            for number in (1, 2):
                protection.begin_round("a", number, {})
        assert shuffled.epsilon() == alone.epsilon() == pytest.approx(gaussian_epsilon(4 / np.sqrt(2), 1e-5))
    many = Shuffle(max_norm=1.0, noise_multiplier=8.0)
    many.open_account(n_sites=10**6, n_rounds=2, journal=None)
    for number in (1, 2):
        many.begin_round("a", number, {})
    assert many.epsilon("a") == pytest.approx(2 * shuffled_epsilon(4.0, 10**6, 5e-6))
    assert many.epsilon() < 0.3 * alone.epsilon()
    many.open_account(n_sites=3, n_rounds=1, journal=None)  # the smallest crowd counts
    assert many.epsilon() == alone.epsilon()


def test_a_sum_that_was_not_shuffled_and_a_single_site_are_refused(toy_sites, key):
    shuffle = Shuffle(max_norm=1.0, noise_multiplier=1.0)
    announced(toy_sites, shuffle)
    with pytest.raises(ValueError, match="went through the shuffler"):
        simulate(toy_sites, {"w": np.zeros(4)}, FedAvg(), [shuffle, KeyedSum(key)], n_rounds=1, progress=False)
    with pytest.raises(ValueError, match="at least 2 sites"):
        simulate(toy_sites[:1], {"w": np.zeros(4)}, FedAvg(), [shuffle], n_rounds=1, progress=False)
    assert repr(shuffle) == "Shuffle(max_norm=1, noise_multiplier=1, delta=1e-05)"
