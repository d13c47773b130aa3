"""What was spent, against integrals, opacus and exact sums."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import integrate, stats

from scinfl.federation import Journal
from scinfl.privacy.dp._accounting import (
    Account,
    Charge,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    shuffled_epsilon,
    subsampled_epsilon,
    subsampled_noise_multiplier,
)
from scinfl.privacy.dp._gaussian_noise import gaussian_noise, on_grid, uniform_numbers


def test_noise_is_normal_and_never_the_same():
    noise = gaussian_noise((400, 500), 3.0)
    assert noise.dtype == np.float64
    assert stats.kstest(noise.ravel() / 3, "norm").pvalue > 1e-6
    assert noise.std() == pytest.approx(3, rel=0.01)
    assert len(np.unique(noise)) == noise.size
    assert not np.isin(gaussian_noise(1000, 3.0), noise).any()
    assert gaussian_noise((0, 3), 1.0).shape == (0, 3)
    assert gaussian_noise((), 1.0).shape == ()
    assert not gaussian_noise(5, 0.0).any()


def test_the_seed_of_numpy_changes_nothing():
    draws = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002
        draws.append((gaussian_noise(4, 1.0), uniform_numbers(4)))
    assert not np.isin(*(np.concatenate(draw) for draw in draws)).any()


def test_uniform_numbers_are_uniform():
    numbers = uniform_numbers(100_000)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-6


def test_the_grid_is_finer_than_the_noise_and_leaves_no_other_bits():
    values = gaussian_noise(1000, 1.0) + 1e-9
    rounded = on_grid(values, 1.0)
    assert 0 < np.abs(rounded - values).max() <= 2.0**-21
    np.testing.assert_array_equal(rounded * 2**20, np.rint(rounded * 2**20))
    np.testing.assert_array_equal(on_grid(values, 0.0), values)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("noise_multiplier", [0.4, 1.0, 5.0])
def test_delta_of_a_gaussian_is_the_integral_of_what_epsilon_leaves_over(epsilon, noise_multiplier):
    one, other = stats.norm(1, noise_multiplier).pdf, stats.norm(0, noise_multiplier).pdf
    start = 0.5 + epsilon * noise_multiplier**2  # where the ratio of both is e^epsilon
    integral, _ = integrate.quad(lambda x: one(x) - math.exp(epsilon) * other(x), start, start + 12 * noise_multiplier)
    assert gaussian_delta(epsilon, noise_multiplier) == pytest.approx(integral, abs=1e-10)


def test_epsilon_noise_and_delta_of_a_gaussian_agree():
    for epsilon in (0.1, 1.0, 8.0, 100.0):
        noise_multiplier = gaussian_noise_multiplier(epsilon, 1e-5)
        assert gaussian_epsilon(noise_multiplier, 1e-5) == pytest.approx(epsilon, rel=1e-4)
        assert gaussian_epsilon(noise_multiplier, 1e-5) <= epsilon
    assert gaussian_epsilon(1e6, 1e-5) == 0
    assert gaussian_epsilon(0, 1e-5) == math.inf


def test_epsilon_of_many_steps_is_that_of_opacus():
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    steps = {(1.1, 0.05): 300, (0.8, 0.2): 40, (1.1, 0.3): 7}
    for (noise_multiplier, sample_rate), n_steps in steps.items():
        for _ in range(n_steps):
            accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    expected = accountant.get_epsilon(1e-5)
    assert 0.98 * expected < subsampled_epsilon(steps, 1e-5) <= expected + 1e-9  # more orders, never looser
    assert subsampled_epsilon({}, 1e-5) == 0
    assert subsampled_epsilon({(0.0, 0.1): 1, (1.0, 0.1): 1}, 1e-5) == math.inf


def test_steps_of_everybody_are_one_gaussian_and_no_looser_than_opacus():
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(4.0, 1.0, 25)]
    found = subsampled_epsilon({(4.0, 1.0): 25}, 1e-5)
    assert found == pytest.approx(gaussian_epsilon(0.8, 1e-5))
    assert 0.7 * accountant.get_epsilon(1e-5) < found <= accountant.get_epsilon(1e-5)


@pytest.mark.parametrize(("rate", "n_steps"), [(0.1, 200), (1.0, 30)])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_for_a_target_spends_it_and_no_more(rate, n_steps, epsilon):
    noise_multiplier = subsampled_noise_multiplier(epsilon, 1e-4, rate, n_steps)
    assert 0.985 * epsilon < subsampled_epsilon({(noise_multiplier, rate): n_steps}, 1e-4) <= epsilon


def test_without_opacus_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(ImportError, match=r"pip install 'opacus>="):
        subsampled_epsilon({(1.234, 0.1): 1}, 1e-5)
    with pytest.raises(ImportError, match=r"pip install 'opacus>="):
        subsampled_noise_multiplier(1.234, 1e-5, 0.1, 10)
    assert subsampled_epsilon({(1.234, 1.0): 1}, 1e-5) > 0  # the exact form needs nobody


# ---- shuffling


def shuffled_answers(epsilon0: float, n: int, delta: float) -> float:
    """Epsilon of shuffled randomised response of n sites, one of which changes its bit, by exact sums."""
    truth = math.exp(epsilon0) / (1 + math.exp(epsilon0))
    others = stats.binom(n - 1, 1 - truth).pmf(np.arange(n))  # all others hold a 0
    zero = np.append(others, 0) * truth + np.append(0, others) * (1 - truth)
    one = np.append(others, 0) * (1 - truth) + np.append(0, others) * truth

    def excess(epsilon):
        return max(np.maximum(p - math.exp(epsilon) * q, 0).sum() for p, q in ((zero, one), (one, zero)))

    grid = np.linspace(0, epsilon0, 400)
    return next((epsilon for epsilon in grid if excess(epsilon) <= delta), epsilon0)


@pytest.mark.parametrize("n", [2000, 20_000])
def test_the_bound_for_shuffled_messages_holds_for_answers_whose_privacy_is_known(n, monkeypatch):
    from scinfl.privacy.dp import _accounting

    monkeypatch.setattr(_accounting, "gaussian_epsilon", lambda noise, delta: 0.5)  # purely private messages
    bound = shuffled_epsilon(1.0, n, 1e-5)
    assert shuffled_answers(0.5, n, 1e-5) < bound < 0.5


def test_few_sites_gain_nothing_by_shuffling_and_very_many_do():
    for n_sites in (2, 3, 10, 100):
        assert shuffled_epsilon(4.0, n_sites, 1e-5) == gaussian_epsilon(4.0, 1e-5)
    assert shuffled_epsilon(4.0, 100_000, 1e-5) < 0.3 * gaussian_epsilon(4.0, 1e-5)
    assert shuffled_epsilon(0.0, 100_000, 1e-5) == math.inf


# ---- the account


def test_an_account_adds_up_by_site_and_kind():
    account = Account()
    assert account.worst(lambda site: 1.0) == 0
    for charge in (Charge("a", 1.0, 0.1, 5), Charge("a", 1.0, 0.1, 5), Charge("a", 2.0, 0.1, 1), Charge("b", 1.0)):
        account.charge(charge)
    assert account.sites == ["a", "b"]
    assert account.spent("a") == {(1.0, 0.1): 10, (2.0, 0.1): 1}
    assert account.spent("b") == {(1.0, 1.0): 1}
    assert account.spent("c") == {}
    assert account.worst({"a": 3.0, "b": 7.0}.get) == 7


def test_charges_are_in_the_journal_before_they_are_spent_and_read_once(tmp_path):
    journal = Journal(tmp_path)
    first = Account()
    first.charge(Charge("a", 1.0))
    first.keep(journal)
    first.charge(Charge("a", 2.0, 0.25, 4))
    assert [event["charge"]["n_steps"] for event in journal.events()] == [4]
    resumed = Account()
    resumed.keep(Journal(tmp_path))
    assert resumed.spent("a") == {(2.0, 0.25): 4}
    first.keep(journal)  # the same object trains on
    assert first.spent("a") == {(1.0, 1.0): 1, (2.0, 0.25): 4}
    assert journal.verify()
