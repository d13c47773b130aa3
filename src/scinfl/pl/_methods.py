"""Methods side by side: their order, legend and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from scinfl._checks import first_of, one_of
from scinfl.pl._palette import method_styles

_WIDE = 3.6  # inches of axes


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse what is no table, and a table that is empty or lacks a column."""
    if not isinstance(table, pd.DataFrame):
        msg = f"Expected a data frame as `table`, found a {type(table).__name__}. Pass what the function returned."
        raise TypeError(msg)
    if missing := [column for column in columns if column not in table]:
        msg = (
            f"Expected `table` to have the columns {', '.join(columns)}, found no {first_of(missing)}. "
            f"Columns are {first_of(list(map(str, table.columns)), 20)}."
        )
        raise ValueError(msg)
    if len(table) == 0:
        msg = "Expected `table` to have rows, found none."
        raise ValueError(msg)


def in_order(column: pd.Series) -> list[str]:
    """Values that occur, in the order of the categories or of their first occurrence."""
    occurring = list(dict.fromkeys(column.dropna()))
    if isinstance(column.dtype, pd.CategoricalDtype):
        occurring = [value for value in column.cat.categories if value in set(occurring)]
    return list(map(str, occurring))


def legend_above(
    ax: Axes, handles: Sequence[Artist] | None = None, *, title: str | None = None, align: str = "left"
) -> None:
    """A legend that covers no data, in as many columns as there is room for.

    With ``align="right"`` it may reach to the left over the tick labels.
    """
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    frame = ax.get_position()
    room = (frame.width if align == "left" else frame.x1) * ax.figure.bbox.width / ax.figure.dpi
    ax.legend(
        handles=handles,
        title=title,
        alignment="left",
        frameon=False,
        loc="lower left" if align == "left" else "lower right",
        bbox_to_anchor=(0 if align == "left" else 1, 1),
        ncols=_columns(handles, room),
        fontsize="small",
        columnspacing=1,
        handletextpad=0.5,
        handlelength=1.5,
        borderaxespad=0.2,
    )


def legend_aside(ax: Axes, *, title: str | None = None) -> Legend:
    """A legend to the right, or below where axes are too narrow to give up width."""
    handles, _ = ax.get_legend_handles_labels()
    room = ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi
    if room > _WIDE:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.1 if ax.name == "polar" else 1, 1)}
    else:
        below = -0.15 if ax.name == "polar" else -0.3
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, below), "ncols": _columns(handles, room)}
    return ax.legend(title=title, frameon=False, fontsize="small", columnspacing=1, handletextpad=0.5, **place)


def _columns(handles: Sequence[Artist], room: float) -> int:
    """Columns of a legend that fit into so many inches."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return int(np.clip(room / (0.33 + 0.063 * longest), 1, len(handles)))


def chosen_metrics(table: pd.DataFrame, metrics: Sequence[str] | str | None) -> list[str]:
    """Scores to draw, all of which occur; without any, all that do."""
    occurring = in_order(table["metric"])
    chosen = occurring if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    for metric in chosen:
        one_of("metrics", metric, sorted(occurring))
    return chosen


def values_by(table: pd.DataFrame, *columns: str, seed: str | None = None) -> dict[tuple[str, ...], np.ndarray]:
    """Values by the names in some columns; the mean of each seed where a column names seeds, else of all."""
    values, keys = table["value"], [table[column].astype(str) for column in columns]
    if seed is not None:
        values = values.groupby([*keys, *([table[seed].astype(str)] if seed in table else [])]).mean()
    groups = values.groupby(keys if seed is None else list(columns))
    return {key: own.dropna().to_numpy() for key, own in groups}


def grouped_bars(
    ax: Axes, values_of: Mapping[tuple[str, ...], np.ndarray], methods: Sequence[str], groups: Sequence[tuple[str, ...]]
) -> None:
    """Means as bars, one colour a method and one place a group, with the values of several seeds as points."""
    width = 0.8 / len(methods)
    for number, (method, (colour, _)) in enumerate(method_styles(methods).items()):
        values = [values_of.get((method, *group), np.array([])) for group in groups]
        position = np.arange(len(values)) + (number - (len(methods) - 1) / 2) * width
        means = [own.mean() if len(own) else np.nan for own in values]
        ax.bar(position, means, 0.92 * width, color=colour, alpha=0.75, label=method)
        spread = np.linspace(-0.25, 0.25, max(map(len, values))) * width
        if len(spread) > 1:  # a single run has no spread to show
            x = np.concatenate([place + spread[: len(own)] for place, own in zip(position, values, strict=True)])
            ax.plot(x, np.concatenate(values), "o", color="black", markersize=2.5, markerfacecolor="white", mew=0.6)
    ax.axhline(0, color="black", linewidth=0.6)
