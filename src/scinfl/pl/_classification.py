"""Which labels are taken for which."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from scinfl import _names
from scinfl._checks import complete_column
from scinfl.pl._axes import axes
from scinfl.pl._palette import SHARES

_MAX_LABELS_WITH_NUMBERS = 20


def confusion(adata: AnnData, labels_key: str, *, predicted_key: str = _names.LABEL, ax: Axes | None = None) -> Axes:
    """Share of each true label (rows) that was given each predicted label (columns).

    Parameters
    ----------
    adata
        Data that went through :func:`scinfl.tl.annotate`.
    labels_key
        Column of ``adata.obs`` with the true labels.
    predicted_key
        Column with the predicted labels.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.obs["infl_label"] = adata.obs["bulk_labels"]  # as `si.tl.annotate` would, without an error
    >>> ax = si.pl.confusion(adata, "bulk_labels")
    >>> ax.get_ylabel()
    'bulk_labels'
    """
    true = complete_column(adata, labels_key, "labels_key", "a label for every row").astype(str)
    predicted = complete_column(adata, predicted_key, "predicted_key", "a label for every row").astype(str)
    shares = pd.crosstab(true, predicted, normalize="index")
    columns = [*[label for label in shares.index if label in shares], *shares.columns.difference(shares.index)]
    shares = shares[columns]
    ax = axes(ax, 2.5 + 0.4 * len(columns), 2 + 0.35 * len(shares))
    image = ax.imshow(shares, vmin=0, vmax=1, cmap=SHARES, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set(xlabel=predicted_key, ylabel=labels_key)
    if len(columns) <= _MAX_LABELS_WITH_NUMBERS:
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.01:
                colour = "white" if share > 0.5 else "black"
                ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    ax.figure.colorbar(image, ax=ax, label="share of the true label")
    return ax
