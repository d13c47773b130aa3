"""One colour and one symbol a method, told apart in grey and by colour-blind readers too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from scinfl._checks import first_of

# Okabe & Ito (2008) without green, which is the control's, and yellow, which is too pale on white
_COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_SYMBOLS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
CONTROL_COLOUR = "#009E73"


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each method; beyond six the colours repeat with other symbols."""
    return {
        method: (_COLOURS[number % len(_COLOURS)], _SYMBOLS[number % len(_SYMBOLS)])
        for number, method in enumerate(methods)
    }


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that is empty or lacks a column."""
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
    longest = max(len(str(handle.get_label())) for handle in handles)
    frame = ax.get_position()
    room = (frame.width if align == "left" else frame.x1) * ax.figure.bbox.width / ax.figure.dpi
    ax.legend(
        handles=handles,
        title=title,
        alignment="left",
        frameon=False,
        loc="lower left" if align == "left" else "lower right",
        bbox_to_anchor=(0 if align == "left" else 1, 1),
        ncols=int(np.clip(room / (0.33 + 0.063 * longest), 1, len(handles))),
        fontsize="small",
        columnspacing=1,
        handletextpad=0.5,
        handlelength=1.5,
        borderaxespad=0.2,
    )


def grouped_bars(ax: Axes, seeds: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Means as bars, one colour a method and one place a group, with the values of the seeds as points."""
    width = 0.8 / len(seeds)
    for number, (method, (colour, _)) in enumerate(method_styles(seeds).items()):
        values = seeds[method]
        position = np.arange(len(values)) + (number - (len(seeds) - 1) / 2) * width
        means = [own.mean() if len(own) else np.nan for own in values]
        ax.bar(position, means, 0.92 * width, color=colour, alpha=0.75, label=method)
        spread = np.linspace(-0.25, 0.25, max(map(len, values))) * width
        x = np.concatenate([place + spread[: len(own)] for place, own in zip(position, values, strict=True)])
        ax.plot(x, np.concatenate(values), "o", color="black", markersize=2.5, markerfacecolor="white", mew=0.6)
    ax.axhline(0, color="black", linewidth=0.6)
