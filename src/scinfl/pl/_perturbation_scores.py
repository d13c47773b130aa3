"""Scores of perturbation response, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from scinfl.pl._axes import axes
from scinfl.pl._methods import chosen_metrics, grouped_bars, in_order, legend_above, require_columns, values_by
from scinfl.pl._palette import DEVIATIONS, method_styles

_REACH = 2.0
_TITLES = {
    "mse": "MSE, all genes",
    "mse_de": "MSE, top DE genes",
    "pearson": "Pearson, all genes",
    "pearson_de": "Pearson, top DE genes",
    "pearson_delta": "Pearson of the change",
    "pearson_delta_de": "Pearson of the change, top DE genes",
    "opposite_direction_de": "opposite direction, top DE genes",
}
_INTERACTION_SCORES = ("mag", "dcor", "dcor_singles", "dcor_first", "dcor_second", "corr_fit", "dominance", "eq_contr")


def perturbation_metrics(
    table: pd.DataFrame, metrics: Sequence[str] | str = "mse_de", *, by: str = "subgroup", ax: Axes | None = None
) -> Axes:
    """Mean of one or more scores by subgroup (or site) and method as bars, with seeds as points.

    Parameters
    ----------
    table
        Tidy: the columns ``method``, ``metric``, ``value`` and that of ``by``, as
        :func:`scinfl.metrics.perturbation_summary` gives them, or a row a perturbation, of which the mean is drawn.
        Without a column ``seed`` all rows are one run.
    metrics
        Scores of the table. Several share one axis: choose those of one scale.
    by
        Column whose values are groups of bars, such as ``"site"``.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column or a score is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> rows = [("GEARS", 0, "unseen", "mse_de", 0.2), ("GEARS", 1, "unseen", "mse_de", 0.3)]
    >>> table = pd.DataFrame(rows, columns=["method", "seed", "subgroup", "metric", "value"])
    >>> ax = si.pl.perturbation_metrics(table)
    >>> float(ax.patches[0].get_height()), ax.get_ylabel()
    (0.25, 'MSE, top DE genes')
    """
    require_columns(table, ["method", by, "metric", "value"])
    metrics = chosen_metrics(table, metrics)
    table = table[table["metric"].isin(metrics)]
    groups = [(metric, subgroup) for metric in metrics for subgroup in in_order(table[by])]
    methods = in_order(table["method"])
    ax = axes(ax, min(7.0, max(3.5, 1.0 + len(groups) * (0.3 + 0.22 * len(methods)))), 3.0)
    grouped_bars(ax, values_by(table, "method", "metric", by, seed="seed"), methods, groups)
    _label_groups(ax, groups)
    ax.set_ylabel("score" if len(metrics) > 1 else _titled(metrics[0]))
    legend_above(ax)
    return ax


def hit_rate(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Hit rate by perturbation and method: the share of genes predicted within the whiskers of the measured cells.

    Parameters
    ----------
    table
        Tidy: the columns ``method``, ``perturbation``, ``metric`` and ``value``, from
        :func:`scinfl.metrics.perturbation`. Several rows (seeds) are averaged.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column or ``"hit_rate"`` is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame({"method": ["GEARS"], "perturbation": ["A+B"], "metric": ["hit_rate"], "value": [0.75]})
    >>> si.pl.hit_rate(table).get_xlabel()
    'hit rate'
    """
    require_columns(table, ["method", "perturbation", "metric", "value"])
    table = table[table["metric"] == "hit_rate"]
    if len(table) == 0:
        msg = "Expected rows with the metric 'hit_rate', found none. Score with `scinfl.metrics.perturbation`."
        raise ValueError(msg)
    perturbations, styles = in_order(table["perturbation"]), method_styles(in_order(table["method"]))
    named = table.assign(perturbation=table["perturbation"].astype(str), method=table["method"].astype(str))
    rates = named.pivot_table(index="perturbation", columns="method", values="value", dropna=False).reindex(
        perturbations
    )
    step = min(0.2, 0.8 / len(styles))
    ax = axes(ax, 3.5, 1.0 + len(perturbations) * (0.14 + 0.09 * len(styles)))
    for number, (method, (colour, symbol)) in enumerate(styles.items()):
        height = np.arange(len(perturbations)) + (number - (len(styles) - 1) / 2) * step
        ax.hlines(height, 0, rates[method], color=colour, alpha=0.5, linewidth=1)
        ax.plot(rates[method], height, symbol, color=colour, markersize=5, label=method, clip_on=False)
    for line in range(1, len(perturbations)):
        ax.axhline(line - 0.5, color="0.9", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(perturbations)), perturbations, fontsize="small")
    ax.set(xlim=(0, 1), ylim=(len(perturbations) - 0.5, -0.5), xlabel="hit rate")
    legend_above(ax, align="right")
    return ax


def interactions(table: pd.DataFrame, *, scores: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Genetic-interaction scores as a heat map: colour by how far a value is from its column's mean, the value written.

    Parameters
    ----------
    table
        What :func:`scinfl.metrics.interaction` returned: a row a pair, with the column ``type``.
    scores
        Columns to draw; all but the coefficients by default.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame({"mag": [0.5, 1.5], "type": ["suppression", "synergy"]}, index=["A+B", "A+C"])
    >>> ax = si.pl.interactions(table, scores=["mag"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['A+B (suppression)', 'A+C (synergy)']
    """
    scores = list(_INTERACTION_SCORES if scores is None else scores)
    require_columns(table, [*scores, "type"])
    values = table[scores].to_numpy(np.float64)
    ax = axes(ax, 2.8 + 0.52 * len(scores), 1.3 + 0.26 * len(table))
    shades = _standardised(values)
    cmap = colormaps[DEVIATIONS].with_extremes(bad="0.85")
    image = ax.imshow(np.ma.masked_invalid(shades), vmin=-_REACH, vmax=_REACH, cmap=cmap, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(shades[row, column]) > 0.7 * _REACH else "black"
        ax.text(column, row, _written(value), ha="center", va="center", fontsize="x-small", color=colour)
    ax.set_xticks(
        range(len(scores)), [_spaced(score) for score in scores], rotation=45, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(
        range(len(table)),
        [f"{pair} ({kind})" if kind else pair for pair, kind in zip(table.index, table["type"], strict=True)],
    )
    ax.tick_params(length=0, labelsize="small")
    bar = ax.figure.colorbar(image, ax=ax, extend="both", fraction=0.05, pad=0.02)
    bar.set_label("column z score", fontsize="small")
    return ax


def _label_groups(ax: Axes, groups: list[tuple[str, str]]) -> None:
    """Subgroups at the ticks; below them the scores, if there are several."""
    room = ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi / len(groups)
    labels = [fill(_spaced(subgroup), max(1, int(room / 0.07)), break_long_words=False) for _, subgroup in groups]
    ax.set_xticks(range(len(groups)), labels, fontsize="small")
    metrics = [metric for metric, _ in groups]
    if len(set(metrics)) == 1:
        return
    below = "\n" * (1 + max(label.count("\n") for label in labels))
    middles = {
        metric: np.mean([number for number, other in enumerate(metrics) if other == metric]) for metric in metrics
    }
    lower = ax.secondary_xaxis("bottom")
    lower.set_xticks(list(middles.values()), [below + _titled(metric).replace(", ", "\n") for metric in middles])
    lower.tick_params(length=0)
    for number in range(1, len(groups)):
        if metrics[number] != metrics[number - 1]:
            ax.axvline(number - 0.5, color="0.8", linewidth=0.6)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Deviations of each column in its standard deviations; 0 in a constant column, NaN where a value is not finite."""
    known = np.isfinite(values)
    n = np.maximum(known.sum(0), 1)
    deviations = np.where(known, values, 0) - np.where(known, values, 0).sum(0) / n
    spread = np.sqrt(np.where(known, deviations**2, 0).sum(0) / n)
    return np.where(known, deviations / np.where(spread > 0, spread, 1), np.nan)


def _written(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–" if np.isnan(value) else "∞"


def _titled(metric: str) -> str:
    return _TITLES.get(metric, _spaced(metric))


def _spaced(name: str) -> str:
    return name.replace("_", " ")
