"""How much of the network is added to the prior."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scinfl.model._shrinkage import share_of, shrunk


def sums_of(agreement, power, missed=None):
    a, p = np.asarray(agreement), np.asarray(power)
    return {
        "agreement": a.sum(),
        "power": p.sum(),
        "missed": np.sum(np.zeros_like(a) if missed is None else missed),
        "agreement_square": (a**2).sum(),
        "agreement_power": (a * p).sum(),
        "power_square": (p**2).sum(),
        "count": float(len(a)),
    }


def test_the_share_is_the_lower_end_of_the_interval_of_a_ratio_of_means():
    generator = np.random.default_rng(0)
    power = generator.uniform(0.5, 1.5, 12)
    agreement = 0.6 * power + generator.normal(0, 0.05, 12)
    best = agreement.sum() / power.sum()
    error = np.std(agreement - best * power, ddof=0) / np.sqrt(11) / power.mean()
    assert share_of(sums_of(agreement, power)) == pytest.approx(best - stats.t.ppf(0.9, 11) * error)


def test_few_conditions_speak_for_little():
    assert share_of(sums_of([0.9], [1.0])) == 0
    few, many = (share_of(sums_of([0.9, 0.5] * n, [1.0, 1.0] * n)) for n in (1, 20))
    assert few < many < 0.7


def test_a_useless_network_is_left_out_and_a_perfect_one_kept():
    assert share_of(sums_of([-0.1, 0.1, -0.2], [1.0, 1.0, 1.0])) == 0
    assert share_of(sums_of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])) == pytest.approx(1)


def metrics_of(single, combination, n):
    values = {"mse": 0.1, "pearson_delta": 0.5, "mse_de": 0.3}
    for order, sums in (("single", single), ("combination", combination)):
        values |= {f"{order}_{what}": value / n for what, value in sums.items()}
    return values


def test_the_error_of_the_history_is_that_of_the_shrunk_network():
    single = sums_of([0.5, 0.55, 0.6], [1.0, 1.0, 1.0], missed=[1.0, 1.0, 1.0])
    double = sums_of([0.9, 0.95, 1.0], [1.0, 1.0, 1.0], missed=[1.0, 1.0, 1.0])
    result = shrunk(metrics_of(single, double, 6), 6, prior="additive")
    assert 0 < result["shrinkage_single"] < result["shrinkage_combination"] < 1
    shares = result["shrinkage_single"], result["shrinkage_combination"]
    errors = [
        m["missed"] - 2 * s * m["agreement"] + s**2 * m["power"] for m, s in zip((single, double), shares, strict=True)
    ]
    assert result["mse_de"] == pytest.approx(sum(errors) / 6)
    assert shrunk(metrics_of(single, double, 6), 6, prior=None) == {"mse": 0.1, "pearson_delta": 0.5, "mse_de": 0.3}


def test_an_order_without_validation_conditions_takes_what_the_other_says():
    single, none = sums_of([0.5, 0.55, 0.6], [1.0, 1.0, 1.0]), sums_of([], [])
    result = shrunk(metrics_of(single, none, 3), 3, prior="mean")
    assert result["shrinkage_combination"] == result["shrinkage_single"] > 0
