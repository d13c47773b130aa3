"""Strategies beyond the plain mean."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl.federation import FedAdam, FedAvg, FedAvgM, FedProx, Median, TrimmedMean, Update, simulate
from scinfl.privacy import KeyedSum

START = {"w": np.zeros(3), "kept": np.ones(1)}


def mean_update(values):
    return Update("", 1, {"w": np.array(values, np.float64)}, 10, 10.0)


def test_server_momentum_is_its_formula():
    strategy, state, memory, m = FedAvgM(lr=0.5, momentum=0.8), START, {}, np.zeros(3)
    w = np.zeros(3)
    for values in ([1.0, 2.0, 3.0], [0.5, -1.0, 2.0], [0.0, 0.0, 0.0]):
        m = 0.8 * m + (np.array(values) - w)
        w = w + 0.5 * m
        state, memory = strategy.apply(state, mean_update(values), memory)
        np.testing.assert_allclose(state["w"], w)
    assert state["kept"] == 1
    plain, _ = FedAvgM(momentum=0).apply(START, mean_update([1.0, 2.0, 3.0]), {})
    np.testing.assert_allclose(plain["w"], [1, 2, 3])


def test_fedadam_is_its_formula():
    strategy, state, memory = FedAdam(lr=0.1, beta1=0.7, beta2=0.9, tau=0.01), START, {}
    w = m = v = np.zeros(3)
    for values in ([1.0, 2.0, 3.0], [0.5, -1.0, 2.0]):
        change = np.array(values) - w
        m, v = 0.7 * m + 0.3 * change, 0.9 * v + 0.1 * change**2
        w = w + 0.1 * m / (np.sqrt(v) + 0.01)
        state, memory = strategy.apply(state, mean_update(values), memory)
        np.testing.assert_allclose(state["w"], w)


@pytest.mark.parametrize("strategy", [FedAvg(), FedProx(), FedAvgM(), FedAdam()], ids=repr)
def test_strategies_of_the_mean_work_when_the_server_is_blind(toy_sites, key, strategy, tmp_path):
    from scinfl.federation import Journal

    start = {"w": np.zeros(3)}
    plain = simulate(toy_sites, start, strategy, n_rounds=5, progress=False)
    hidden = simulate(toy_sites, start, strategy, [KeyedSum(key)], n_rounds=5, progress=False)
    np.testing.assert_allclose(hidden.state["w"], plain.state["w"], atol=1e-12)
    simulate(toy_sites, start, strategy, n_rounds=2, progress=False, journal=Journal(tmp_path))
    resumed = simulate(toy_sites, start, strategy, n_rounds=5, progress=False, journal=Journal(tmp_path))
    np.testing.assert_array_equal(resumed.state["w"], plain.state["w"])  # what a strategy remembers is kept too


def five_updates(odd=1e6):
    values = [1.0, 2.0, 3.0, 4.0, odd]
    return [Update(str(i), 1, {"w": np.full(2, v)}, 10, 10.0, {"loss": v}) for i, v in enumerate(values)]


def test_robust_means_ignore_one_odd_site():
    np.testing.assert_allclose(TrimmedMean(trim=0.2).reduce(five_updates()).state["w"], 3)
    np.testing.assert_allclose(TrimmedMean(trim=0.0).reduce(five_updates(5.0)).state["w"], 3)
    np.testing.assert_allclose(Median().reduce(five_updates()).state["w"], 3)
    with pytest.raises(ValueError, match="more than 2 sites"):
        TrimmedMean().reduce(five_updates()[:2])


@pytest.mark.parametrize("strategy", [TrimmedMean(), Median()], ids=repr)
def test_robust_means_refuse_masked_sums_and_say_why(toy_sites, key, strategy):
    with pytest.raises(ValueError, match=r"compares single updates, which a masked sum hides.*protections=\(\)"):
        simulate(toy_sites, {"w": np.zeros(3)}, strategy, [KeyedSum(key)], n_rounds=1, progress=False)
    simulate(toy_sites, {"w": np.zeros(3)}, strategy, n_rounds=1, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedProx(proximal=-1),
        lambda: FedAvgM(momentum=1),
        lambda: FedAvgM(lr=0),
        lambda: FedAdam(tau=0),
        lambda: TrimmedMean(trim=0.5),
        lambda: Median(weights="equal"),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match="Expected"):
        make()
