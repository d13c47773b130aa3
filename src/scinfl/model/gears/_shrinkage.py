"""How much of a network is added to its prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

ORDERS = ("single", "combination")
"""One perturbed gene, and several: shrunk apart."""

AT_LEAST = 5  # conditions without which nothing is known
_CONFIDENCE = stats.norm.cdf(1.0)  # one standard error, for many conditions


def order_of(genes: Sequence[str]) -> str:
    """Which of the orders a set of perturbed genes belongs to."""
    return ORDERS[0] if len(genes) == 1 else ORDERS[1]


def shrunk(metrics: Mapping[str, float], n: float, *, prior: str | None, orders: Sequence[str]) -> dict[str, float]:
    """Validation metrics with the network's part shrunk, for one and for several perturbed genes apart."""
    result = {name: metrics[name] for name in ("mse", "pearson_delta", "mse_de")}
    if prior is None:
        return result
    agreement, power, missed = (
        n * np.array([metrics[f"{what}_{number}"] for number in range(len(orders))])
        for what in ("agreement", "power", "missed")
    )
    result["mse_de"] = 0.0
    for order in ORDERS:
        own = np.array([name == order for name in orders], dtype=bool)
        chosen = own if own.sum() >= AT_LEAST else np.ones(len(orders), bool)
        share = share_of(agreement[chosen], power[chosen])
        result["mse_de"] += float((missed - 2 * share * agreement + share**2 * power)[own].sum() / n)
        result[f"shrinkage_{order}"] = share
    return result


def share_of(agreement: np.ndarray, power: np.ndarray) -> float:
    r"""Share of the network's change that is added to the prior: what fits best, less its standard error.

    Of the product :math:`a_i` of the network's change with what the prior misses in condition i, and its square
    :math:`p_i`, the best share is :math:`s = \sum a_i / \sum p_i`; its standard error is that of a ratio of means over
    conditions, widened by the t distribution where they are few. Fewer than five conditions give no estimate. A
    share that is somewhat too small has almost no effect, one that is too large may be worse than the prior alone.
    """
    n = len(power)
    if n < AT_LEAST or power.sum() <= 0:
        return 0.0
    share = agreement.sum() / power.sum()
    spread = np.square(agreement - share * power).sum()
    error = np.sqrt(spread / n / (n - 1)) / power.mean()
    return float(np.clip(share - stats.t.ppf(_CONFIDENCE, n - 1) * error, 0, 1))
