"""Scores with and without the key."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from scinfl.pl._axes import axes
from scinfl.pl._methods import chosen_metrics, grouped_bars, in_order, legend_above, require_columns, values_by


def ablation(
    table: pd.DataFrame,
    metrics: Sequence[str] | str = ("accuracy", "balanced_accuracy", "f1", "auroc"),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Scores with the right key, with wrong keys, without the keyed modules and untrained, as bars with points.

    Points are the keys and networks that were tried, or seeds.

    Parameters
    ----------
    table
        What :func:`scinfl.tl.ablate` returned, or several such tables joined by :func:`pandas.concat`.
    metrics
        Scores to draw, in this order.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column or a score is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> rows = [("right key", 0, 0.8), ("wrong key", 0, 0.1), ("wrong key", 1, 0.2)]
    >>> table = pd.DataFrame(rows, columns=["variant", "repeat", "value"]).assign(metric="f1", label="all")
    >>> ax = si.pl.ablation(table, "f1")
    >>> [round(float(bar.get_height()), 2) for bar in ax.patches]
    [0.8, 0.15]
    """
    require_columns(table, ["variant", "metric", "label", "value"])
    table = table[table["label"] == "all"]
    metrics, variants = chosen_metrics(table, metrics), in_order(table["variant"])
    ax = axes(ax, min(7.0, max(3.4, 1.0 + len(metrics) * (0.2 + 0.1 * len(variants)))), 2.8)
    grouped_bars(ax, values_by(table, "variant", "metric"), variants, [(metric,) for metric in metrics])
    shown = ["AUROC" if metric == "auroc" else metric.replace("_", "\n") for metric in metrics]
    ax.set_xticks(range(len(metrics)), shown, fontsize="small")
    ax.set_ylabel("score")
    legend_above(ax)
    return ax
