"""What attackers recover of one cell, beside the cell itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scinfl._checks import one_of
from scinfl.pl._axes import axes
from scinfl.pl._palette import DEVIATIONS

_MOST = 2.5  # deviations from the mean of a row, beyond which colours end


def reconstruction(table: pd.DataFrame, true: str = "true", *, ax: Axes | None = None) -> Axes:
    """One cell and what was recovered of it, a row each, with the features in the order of the true values.

    Rows are centred and scaled, as attacks leave shift and size open; correlations with the cell are written beside.

    Parameters
    ----------
    table
        One row a feature, one column for the cell and one for each recovered cell, drawn in this order.
    true
        Column of the cell itself.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If the column is missing, or there is nothing beside it.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=50)
    >>> ax = si.pl.reconstruction(pd.DataFrame({"true": x, "in the open": 2 * x, "masked": x[::-1]}))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['true', 'in the open', 'masked']
    """
    one_of("true", true, list(table.columns))
    if table.shape[1] < 2:
        msg = f"Expected a column for each recovered cell beside '{true}', found none. Add some."
        raise ValueError(msg)
    names = [true, *table.columns.drop(true)]
    values = table[names].to_numpy(dtype=np.float64).T
    spread = values.std(1, keepdims=True)
    values = (values - values.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    likeness = values @ values[0] / values.shape[1]
    ax = axes(ax, 8.5, 1.2 + 0.32 * len(names))
    order = np.argsort(values[0], kind="stable")
    image = ax.imshow(
        values[:, order], cmap=DEVIATIONS, vmin=-_MOST, vmax=_MOST, aspect="auto", interpolation="nearest"
    )
    for row in range(1, len(names)):
        ax.axhline(row - 0.5, color="white", linewidth=4 if row == 1 else 1.5)
    ax.set_yticks(range(len(names)), names)
    for row, value in enumerate(likeness[1:], start=1):
        ax.annotate(f"{value:.2f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize="small")
    ax.annotate("r", (1.01, 0), xycoords=("axes fraction", "data"), va="center", fontsize="small", style="italic")
    ax.set_xticks([])
    ax.set_xlabel(f"{values.shape[1]} features, in the order of the true values")
    ax.figure.colorbar(image, ax=ax, label="deviations", pad=0.09, ticks=[-2, 0, 2])
    return ax
