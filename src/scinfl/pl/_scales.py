"""What sections show at several scales."""

from __future__ import annotations

from anndata import AnnData
from matplotlib.axes import Axes

from scinfl import _names
from scinfl.pl._axes import axes
from scinfl.pl._palette import BLUE, VERMILION

_SHOWN = {
    "stability": ("stability (adjusted Rand index of two halves)", BLUE),
    "held_out": ("held-out fit (variance explained)", VERMILION),
}


def scales(adata: AnnData, *, ax: Axes | None = None) -> Axes:
    """Stability and held-out fit of sections by scale, as :func:`scinfl.tl.scales` measured them.

    A rise of stability that flattens is a scale from which on wider neighbourhoods show the same domains; a fall of
    the fit from ``"cell"`` on says that spots differ from their neighbours, as cells of several types do.

    Parameters
    ----------
    adata
        Sections that went through :func:`scinfl.tl.scales`.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If scales were not compared.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.mosaic_simulated(3, n_spots=100)["rna"]
    >>> si.tl.scales(adata, section_key="section", n_halvings=1)
    >>> si.pl.scales(adata).get_xlabel()
    'scale (spots averaged)'
    """
    table = adata.uns.get(_names.UNS, {}).get("scales")
    if table is None:
        msg = "Expected adata.uns['infl']['scales'], found none. Run `scinfl.tl.scales` first."
        raise KeyError(msg)
    ax = axes(ax)
    for column, (label, colour) in _SHOWN.items():
        ax.plot(range(len(table)), table[column], "o-", color=colour, label=label)
    names = [f"{scale}\n({spots:.0f})" for scale, spots in zip(table.index, table["spots"], strict=True)]
    ax.set_xticks(range(len(table)), names)
    ax.set(xlabel="scale (spots averaged)", ylim=(min(0.0, table[[*_SHOWN]].min(axis=None)), 1))
    ax.legend(frameon=False, fontsize="small")
    return ax
