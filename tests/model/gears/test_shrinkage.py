"""How much of the network is added to the prior."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scinfl.model.gears._shrinkage import order_of, share_of, shrunk


def test_the_share_is_what_fits_best_less_the_standard_error_of_a_ratio_of_means():
    generator = np.random.default_rng(0)
    power = generator.uniform(0.5, 1.5, 12)
    agreement = 0.6 * power + generator.normal(0, 0.05, 12)
    best = agreement.sum() / power.sum()
    error = np.std(agreement - best * power, ddof=0) / np.sqrt(11) / power.mean()
    assert share_of(agreement, power) == pytest.approx(best - stats.t.ppf(stats.norm.cdf(1), 11) * error)


def test_few_conditions_give_a_small_share():
    assert share_of(np.full(4, 0.9), np.ones(4)) == 0 < share_of(np.full(5, 0.9), np.ones(5))
    few, many = (share_of(np.array([0.9, 0.5] * n), np.ones(2 * n)) for n in (3, 20))
    assert 0 < few < many < 0.7


def test_a_useless_network_is_left_out_and_a_perfect_one_kept():
    assert share_of(np.array([-0.1, 0.1, -0.2, 0.1, -0.1]), np.ones(5)) == 0
    assert share_of(np.zeros(5), np.zeros(5)) == 0
    assert share_of(np.arange(1.0, 6.0), np.arange(1.0, 6.0)) == pytest.approx(1)


def metrics_of(agreement, power, missed):
    n = len(agreement)
    values = {"mse": 0.1, "pearson_delta": 0.5, "mse_de": 0.3}
    for what, array in (("agreement", agreement), ("power", power), ("missed", missed)):
        values |= {f"{what}_{number}": value / n for number, value in enumerate(array)}
    return values


def test_the_error_of_the_history_is_that_of_the_shrunk_network():
    agreement = np.array([0.5, 0.9, 0.55, 0.95, 0.6, 1.0, 0.55, 0.9, 0.5, 0.95])
    orders = ["single", "combination"] * 5
    metrics = metrics_of(agreement, np.ones(10), np.ones(10))
    result = shrunk(metrics, 10, prior="additive", orders=orders)
    assert 0 < result["shrinkage_single"] < result["shrinkage_combination"] < 1
    shares = np.tile([result["shrinkage_single"], result["shrinkage_combination"]], 5)
    assert result["mse_de"] == pytest.approx((1 - 2 * shares * agreement + shares**2).mean())
    assert set(result) == {"mse", "pearson_delta", "mse_de", "shrinkage_single", "shrinkage_combination"}
    plain = {"mse": 0.1, "pearson_delta": 0.5, "mse_de": 0.3}
    assert shrunk(metrics, 10, prior=None, orders=orders) == plain


def test_an_order_without_validation_conditions_takes_the_share_of_the_other():
    metrics = metrics_of([0.5, 0.55, 0.6, 0.5, 0.6], np.ones(5), np.ones(5))
    result = shrunk(metrics, 5, prior="mean", orders=["single"] * 5)
    assert result["shrinkage_combination"] == result["shrinkage_single"] > 0


def test_orders_follow_from_the_number_of_genes():
    assert [order_of(genes) for genes in (("A",), ("A", "B"), ("A", "B", "C"))] == [
        "single",
        "combination",
        "combination",
    ]
