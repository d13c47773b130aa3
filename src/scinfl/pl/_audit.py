"""Scores of attackers beside their baselines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scinfl._checks import one_of
from scinfl.pl._axes import axes
from scinfl.pl._methods import legend_above, require_columns
from scinfl.pl._palette import BLACK, VERDICTS

_SYMBOLS = {"leaks": "o", "unclear": "D", "holds": "s"}


def audit(table: pd.DataFrame, family: str | None = None, *, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """Score of every attack of one family with its interval, and its baseline as a bar.

    Parameters
    ----------
    table
        ``adata.uns["infl"]["audit"]["table"]`` of :func:`scinfl.tl.audit`.
    family
        Family of attacks, for example ``"reconstruction"`` or ``"membership"``; the first by default.
    metric
        Score to draw; the first of the family by default.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If the table is no audit, or has no such family or metric.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame(
    ...     {
    ...         "family": "membership",
    ...         "adversary": ["outsider", "server"],
    ...         "uploads": ["", "in the open"],
    ...         "attack": "loss threshold",
    ...         "setting": "",
    ...         "metric": "AUC",
    ...         "score": [0.5, 0.8],
    ...         "low": [0.48, 0.76],
    ...         "high": [0.52, 0.84],
    ...         "baseline": 0.5,
    ...         "verdict": ["holds", "leaks"],
    ...     }
    ... )
    >>> ax = si.pl.audit(table, "membership")
    >>> ax.get_xlabel()
    'AUC'
    """
    columns = ["family", "adversary", "uploads", "attack", "setting", "metric", "score", "low", "high", "baseline"]
    require_columns(table, [*columns, "verdict"])
    families = list(dict.fromkeys(table["family"]))
    family = families[0] if family is None else family
    one_of("family", family, families)
    own = table[(table["family"] == family) & table["score"].notna()]
    metrics = list(dict.fromkeys(own["metric"]))
    metric = metrics[0] if metric is None and metrics else metric
    one_of("metric", metric, metrics)
    own = own[own["metric"] == metric].iloc[::-1]
    place = np.arange(len(own))
    ax = axes(ax, 8.5, 1.1 + 0.3 * len(own))
    for verdict, colour in VERDICTS.items():
        chosen = (own["verdict"] == verdict).to_numpy()
        part, at = own[chosen], place[chosen]
        ax.plot(part["score"], at, _SYMBOLS[verdict], color=colour, markersize=5, linestyle="none")
        ax.hlines(
            at, part["low"].fillna(part["score"]), part["high"].fillna(part["score"]), color=colour, linewidth=1.5
        )
    ax.plot(own["baseline"], place, "|", color=BLACK, markersize=11, markeredgewidth=1.8, linestyle="none")
    ax.set_yticks(place, [_described(row) for _, row in own.iterrows()], fontsize="small")
    ax.set_ylim(-0.6, len(own) - 0.4)
    ax.set_xlabel(str(metric))
    ax.grid(axis="x", linewidth=0.4, alpha=0.5)
    handles = [
        Line2D([], [], color=VERDICTS[name], marker=_SYMBOLS[name], linestyle="none", markersize=5, label=name)
        for name in VERDICTS
        if (own["verdict"] == name).any()
    ]
    baseline = Line2D([], [], color=BLACK, marker="|", linestyle="none", markersize=10, label="baseline")
    baseline.set_markeredgewidth(1.8)
    legend_above(ax, [*handles, baseline])
    return ax


def _described(row: pd.Series) -> str:
    who = f"{row['adversary']}, {row['uploads']}" if row["uploads"] else str(row["adversary"])
    how = f"{row['attack']}, {row['setting']}" if row["setting"] else str(row["attack"])
    return f"{who}: {how}"
