"""How much of a network is added to its prior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

ORDERS = ("single", "combination")
"""One perturbed gene, and several: shrunk apart."""

_SUMS = ("agreement", "power", "missed", "agreement_square", "agreement_power", "power_square", "count")


def shrunk(metrics: Mapping[str, float], n: float, *, prior: str | None) -> dict[str, float]:
    """Validation metrics with the network's part shrunk, for one and for several perturbed genes apart."""
    result = {name: metrics[name] for name in ("mse", "pearson_delta", "mse_de")}
    if prior is None:
        return result
    sums = {order: {what: n * metrics[f"{order}_{what}"] for what in _SUMS} for order in ORDERS}
    both = {what: sum(group[what] for group in sums.values()) for what in _SUMS}
    result["mse_de"] = 0.0
    for order, group in sums.items():
        share = share_of(group if group["count"] > 1 else both)
        error = group["missed"] - 2 * share * group["agreement"] + share**2 * group["power"]
        result["mse_de"] += error / n
        result[f"shrinkage_{order}"] = share
    return result


def share_of(sums: Mapping[str, float]) -> float:
    r"""Share of the network's change that is added to the prior: the least that validation conditions speak for.

    Of the product :math:`a_i` of the network's change with what the prior misses, and its square :math:`p_i`, the best
    share is :math:`s = \sum a_i / \sum p_i`. The lower end of its one-sided 90 % interval is taken (a ratio of means
    over conditions, t distribution): few conditions speak for little, and a share that is somewhat too small costs next
    to nothing.
    """
    n, power = sums["count"], sums["power"]
    if n <= 1 or power <= 0:
        return 0.0
    share = sums["agreement"] / power
    spread = sums["agreement_square"] - 2 * share * sums["agreement_power"] + share**2 * sums["power_square"]
    error = np.sqrt(max(spread, 0.0) / n / (n - 1)) / (power / n)
    return float(np.clip(share - stats.t.ppf(0.9, n - 1) * error, 0, 1))
