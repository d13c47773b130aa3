"""Scores of integration, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from scinfl.pl._axes import axes
from scinfl.pl._methods import chosen_metrics, grouped_bars, in_order, legend_above, require_columns, values_by

_SHOWN = {
    "ari": "ARI",
    "nmi": "NMI",
    "asw_label": "ASW label",
    "asw_batch": "ASW batch",
    "ilisi": "iLISI",
    "pas": "PAS\N{NO-BREAK SPACE}↓",
    "chaos": "CHAOS\N{NO-BREAK SPACE}↓",
    "morans_i": "Moran's I",
    "morans_i_clusters": "Moran's I clusters",
}


def integration_metrics(
    table: pd.DataFrame, metrics: Sequence[str] | str | None = None, *, ax: Axes | None = None
) -> Axes:
    """Mean of scores by method as bars, with seeds as points; an arrow down marks scores that are better when low.

    Parameters
    ----------
    table
        Tidy: the columns ``method``, ``metric`` and ``value``, for example several tables of
        :func:`scinfl.metrics.integration` with ``table.assign(method=…, seed=…)``, joined by :func:`pandas.concat`.
        Without a column ``seed`` all rows are one run.
    metrics
        Scores to draw, in this order; all of the table by default. They share one axis.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column or a score is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> rows = [("SpaMosaic", 0, "ari", 0.8), ("SpaMosaic", 1, "ari", 0.9)]
    >>> table = pd.DataFrame(rows, columns=["method", "seed", "metric", "value"])
    >>> ax = si.pl.integration_metrics(table)
    >>> round(float(ax.patches[0].get_height()), 2), ax.get_xticklabels()[0].get_text()
    (0.85, 'ARI')
    """
    require_columns(table, ["method", "metric", "value"])
    metrics, methods = chosen_metrics(table, metrics), in_order(table["method"])
    ax = axes(ax, min(7.0, max(3.5, 1.0 + len(metrics) * (0.3 + 0.16 * len(methods)))), 3.2)
    values = values_by(table, "method", "metric", seed="seed")
    grouped_bars(ax, values, methods, [(metric,) for metric in metrics])
    labels = [_SHOWN.get(metric, metric.replace("_", " ")).replace(" ", "\n") for metric in metrics]
    ax.set_xticks(range(len(metrics)), labels, fontsize="small")
    ax.set_ylabel("score")
    legend_above(ax)
    return ax
