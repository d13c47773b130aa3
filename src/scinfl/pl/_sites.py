"""What the sites hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes

from scinfl._colours import category_colours
from scinfl.pl._axes import axes

if TYPE_CHECKING:
    from scinfl.model import Classifier


def sites(model: Classifier, *, ax: Axes | None = None) -> Axes:
    """Cells by site and label, as stacked bars, in the colours of the labels where there are any.

    Parameters
    ----------
    model
        Model that was made with data of several sites.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, n_hidden=8)
    >>> ax = si.pl.sites(model)
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['site_1', 'site_2', 'site_3']
    """
    if model.adata is None or model.site_key is None:
        msg = "Expected a model with the data of several sites, found none. Set up with `site_key=`."
        raise ValueError(msg)
    obs, colours = model.adata.obs, model.adata.uns.get(f"{model.labels_key}_colors")
    table = pd.crosstab(obs[model.site_key].astype(str), obs[model.labels_key])
    if colours is None or len(colours) != table.shape[1]:
        colours = category_colours(table.shape[1])
    ax = axes(ax, 6.5, 0.8 + 0.35 * max(len(table), 0.6 * table.shape[1]))
    table.plot.barh(stacked=True, color=list(colours), width=0.8, ax=ax)
    ax.invert_yaxis()
    ax.set(xlabel="cells", ylabel="")
    ax.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left", fontsize="small", title=model.labels_key)
    return ax
