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

    Both axes have all labels, true ones first; a row without cells is empty, and ``n`` is the number of cells in a row.

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
    'true (bulk_labels)'
    """
    true = complete_column(adata, labels_key, "labels_key", "a label for every row").astype(str)
    predicted = complete_column(adata, predicted_key, "predicted_key", "a label for every row").astype(str)
    labels = sorted({*true, *predicted}, key=lambda label: (label not in set(true), label))
    counts = pd.crosstab(true, predicted).reindex(index=labels, columns=labels, fill_value=0)
    n = counts.sum(axis=1)
    shares = counts.div(n.where(n > 0), axis=0)
    ax = axes(ax, min(7.0, 2.5 + 0.4 * len(labels)), min(7.0, 2 + 0.4 * len(labels)))
    image = ax.imshow(shares, vmin=0, vmax=1, cmap=SHARES)
    ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(labels)), [f"{label} (n = {n[label]:,})" for label in labels])
    ax.set(xlabel=f"predicted ({predicted_key})", ylabel=f"true ({labels_key})")
    if len(labels) <= _MAX_LABELS_WITH_NUMBERS:
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.01:
                colour = "white" if share > 0.5 else "black"
                ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    ax.figure.colorbar(image, ax=ax, label="share of the true label", shrink=0.6)
    return ax
