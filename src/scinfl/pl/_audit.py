"""Scores of attackers beside their baselines."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scinfl._checks import one_of
from scinfl.pl._axes import axes
from scinfl.pl._methods import legend_above, require_columns
from scinfl.pl._palette import BLACK, VERDICTS

_WIDTH = 7.0  # inches: a page
_LINE = 46  # letters of a label, so that half of the width is left for the scores
_SYMBOLS = {"leaks": "o", "unclear": "D", "holds": "s"}


def audit(table: pd.DataFrame, family: str | None = None, *, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """Score of every attack of one family with its interval, and its baseline as a bar; attacks by adversary.

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
    own = own[own["metric"] == metric]
    who = own["adversary"].astype(str) + own["uploads"].map(lambda uploads: f" ({uploads})" if uploads else "")
    own, groups = own.assign(who=pd.Categorical(who, categories=list(dict.fromkeys(who)))), []
    own = own.sort_values("who", kind="stable")
    place, next_row = np.zeros(len(own)), 0
    for group, rows in own.reset_index().groupby("who", observed=True).groups.items():
        groups.append((next_row, str(group)))
        place[rows] = next_row + 1 + np.arange(len(rows))
        next_row += len(rows) + 1
    ax = axes(ax, _WIDTH, 1.1 + 0.3 * next_row)
    for verdict, colour in VERDICTS.items():
        chosen = (own["verdict"] == verdict).to_numpy()
        part, at = own[chosen], place[chosen]
        ax.plot(part["score"], at, _SYMBOLS[verdict], color=colour, markersize=5, linestyle="none")
        ax.hlines(
            at, part["low"].fillna(part["score"]), part["high"].fillna(part["score"]), color=colour, linewidth=1.5
        )
    ax.plot(own["baseline"], place, "|", color=BLACK, markersize=11, markeredgewidth=1.8, linestyle="none")
    attacks = [_described(row) for _, row in own.iterrows()]
    ticks = [*((row, name, "bold") for row, name in groups), *zip(place, attacks, ["normal"] * len(place), strict=True)]
    ax.set_yticks([row for row, _, _ in ticks], [name for _, name, _ in ticks], fontsize="small")
    for label, (_, _, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(next_row - 0.4, -0.6)
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
    what = f"{row['attack']}, {row['setting']}" if row["setting"] else str(row["attack"])
    return fill(what, _LINE)
