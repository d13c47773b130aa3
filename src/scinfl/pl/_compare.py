"""Methods side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scinfl._checks import one_of
from scinfl.pl._axes import axes, polar_axes
from scinfl.pl._methods import chosen_metrics, legend_above, legend_aside, require_columns
from scinfl.pl._palette import method_lines, method_styles

_COLUMNS = ("method", "metric", "value", "label", "site")


def compare(table: pd.DataFrame, metrics: Sequence[str] | str = "balanced_accuracy", *, ax: Axes | None = None) -> Axes:
    """Mean of one or more metrics by method as bars, with seeds as points.

    Parameters
    ----------
    table
        What :func:`scinfl.tl.compare` returned.
    metrics
        Metrics of the table, for example ``["balanced_accuracy", "modules removed"]``.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame({"method": pd.Categorical(["FedAvg", "keyed"]), "value": [0.8, 0.7]})
    >>> ax = si.pl.compare(table.assign(seed=0, site="all", label="all", metric="f1"), "f1")
    >>> [float(bar.get_width()) for bar in ax.patches]
    [0.8, 0.7]
    """
    require_columns(table, _COLUMNS)
    overall = table[(table["label"] == "all") & (table["site"] == "all")]
    metrics = chosen_metrics(overall, metrics)
    methods = list(table["method"].cat.categories)
    ax = axes(ax, 6, 1 + 0.28 * len(methods) * max(1, len(metrics) * 0.7))
    height = 0.8 / len(metrics)
    for number, (metric, (colour, _)) in enumerate(method_styles(metrics).items()):
        chosen = overall[overall["metric"] == metric]
        means = chosen.groupby("method", observed=False)["value"].mean()
        position = np.arange(len(methods)) + (number - (len(metrics) - 1) / 2) * height
        label = metric.replace("_", " ")
        ax.barh(position, means.reindex(methods), height, label=label, color=colour, alpha=0.75)
        points = chosen["method"].cat.codes.to_numpy()
        ax.plot(
            chosen["value"],
            position[points],
            "o",
            color="black",
            markersize=2.5,
            markerfacecolor="white",
            markeredgewidth=0.6,
        )
    ax.set_yticks(range(len(methods)), methods)
    ax.invert_yaxis()
    if len(metrics) > 1:
        legend_above(ax, align="right")
    else:
        ax.set_xlabel(metrics[0].replace("_", " "))
    return ax


def tradeoff(
    table: pd.DataFrame,
    *,
    privacy: str,
    utility: str = "balanced_accuracy",
    cost: str = "bytes",
    ax: Axes | None = None,
) -> Axes:
    """Utility against the score of an attacker, one point per method (mean of the seeds), sized by its cost.

    Parameters
    ----------
    table
        What :func:`scinfl.tl.compare` returned.
    privacy
        Metric of an attacker, for example ``"model stealing, 200 labelled samples"`` or ``"membership advantage"``, or
        the ``"epsilon"`` that was spent; further left is better. Methods without it are left out.
    utility
        Metric of the right key; further up is better.
    cost
        Metric that the area of a point shows.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> columns = ["method", "metric", "value"]
    >>> rows = [("FedAvg", "epsilon", 8.0), ("FedAvg", "f1", 0.8), ("FedAvg", "bytes", 100.0)]
    >>> table = pd.DataFrame(rows, columns=columns).assign(seed=0, site="all", label="all")
    >>> ax = si.pl.tradeoff(table, privacy="epsilon", utility="f1")
    >>> len(ax.collections)
    1
    """
    require_columns(table, _COLUMNS)
    overall = table[(table["label"] == "all") & (table["site"] == "all")]
    for name, metric in (("privacy", privacy), ("utility", utility), ("cost", cost)):
        one_of(name, metric, sorted(overall["metric"].unique()))
    means = overall.pivot_table(index="method", columns="metric", values="value", aggfunc="mean", observed=True)
    means = means.dropna(subset=[privacy, utility, cost])
    ax = axes(ax, 5.5, 4.5)
    largest = max(means[cost].max(), 1e-12)
    styles = method_styles(map(str, means.index))
    for method, row in means.iterrows():
        colour, symbol = styles[str(method)]
        ax.scatter(
            row[privacy],
            row[utility],
            30 + 270 * row[cost] / largest,
            color=colour,
            marker=symbol,
            alpha=0.7,
            label=method,
        )
    who = "" if privacy == "epsilon" else "attacker: "
    ax.set(xlabel=f"{who}{privacy.replace('_', ' ')}", ylabel=utility.replace("_", " "))
    for handle in legend_aside(ax, title=f"area: {cost}").legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    return ax


def radar(
    table: pd.DataFrame, metric: str = "auroc", *, methods: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """One metric by class as a radar chart, one line a method (mean of the seeds).

    The middle is not 0 but just below the least value: read the scale.

    Parameters
    ----------
    table
        What :func:`scinfl.tl.compare` returned.
    metric
        ``"auroc"``, ``"f1"``, ``"precision"`` or ``"recall"``.
    methods
        Which methods; all that have the metric by default.
    ax
        Polar axes to draw on.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame({"label": ["T cell", "B cell", "monocyte"], "value": [0.9, 0.8, 0.7]})
    >>> ax = si.pl.radar(table.assign(method="keyed", metric="auroc", seed=0, site="all"))
    >>> len(ax.lines)
    1
    """
    require_columns(table, _COLUMNS)
    by_class = table[(table["label"] != "all") & (table["site"] == "all")]
    one_of("metric", metric, sorted(by_class["metric"].unique()))
    values = by_class[by_class["metric"] == metric].pivot_table(
        index="method", columns="label", values="value", aggfunc="mean", observed=True
    )
    for method in methods or ():
        one_of("methods", method, list(values.index))
    ax = polar_axes(ax)
    angles = np.linspace(0, 2 * np.pi, values.shape[1], endpoint=False)
    for method, (colour, line) in method_lines(methods or values.index).items():
        row = values.loc[method].to_numpy()
        ax.plot([*angles, angles[0]], [*row, row[0]], line, color=colour, label=method, linewidth=1.2)
    least, largest = np.nanmin(values.to_numpy()), np.nanmax(values.to_numpy())
    ax.set_ylim(np.floor(10 * (least - 0.01)) / 10, max(1.0, largest))  # else lines near 1 cover each other
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_xticks(angles, values.columns, fontsize="small")
    ax.tick_params(axis="y", labelsize="x-small")
    ax.tick_params(axis="x", pad=8)
    ax.set_title("AUROC" if metric == "auroc" else metric.replace("_", " "), loc="left")
    legend_aside(ax)
    return ax
