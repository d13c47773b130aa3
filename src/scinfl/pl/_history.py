"""How training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scinfl._checks import one_of
from scinfl.pl._axes import axes
from scinfl.pl._palette import BLUE, VERMILION

_APART = 0.045  # of the axis, between names of sites

if TYPE_CHECKING:
    import pandas as pd

    from scinfl.model import Classifier


def history(model: Classifier, metric: str | None = None, *, sites: bool = False, ax: Axes | None = None) -> Axes:
    """Metrics by round, with the round that the model keeps, and the metric that chose it, as a dotted line.

    Parameters
    ----------
    model
        Trained model.
    metric
        Column of ``model.history``; training and validation loss by default, or where noise keeps the loss at the sites
        the ``epsilon`` that was spent.
    sites
        Draw what is known of every site behind the means: its training loss, or its ``epsilon`` (only in the process
        that trained).
    ax
        Axes to draw on.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, n_hidden=8)
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> ax = si.pl.history(model)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('round', 'loss')
    """
    table = model.history
    if table is None:
        msg = "Expected a trained model, found an untrained one. Call `train` first."
        raise RuntimeError(msg)
    if metric is not None:
        one_of("metric", metric, table.columns)
    own = model.site_history if sites else None
    columns = [name for name in ("train_loss", "validation_loss") if name in table]
    if metric is None and (not columns or (own is not None and "loss" not in own)):
        metric = "epsilon"
    ax = axes(ax)
    ends = _draw_sites(own, metric, ax) if own is not None else {}
    for name, colour in zip([metric] if metric else columns, (BLUE, VERMILION), strict=False):
        ax.plot(table.index, table[name], color=colour, label=name.replace("_", " "))
    monitor = table.attrs.get("monitor")
    chosen = f"best round, by {monitor.replace('_', ' ')}" if monitor else "last round"
    ax.axvline(table.attrs["best_round"], color="0.4", linestyle=":", label=chosen)
    ax.set(xlabel="round", ylabel=metric.replace("_", " ") if metric else "loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize="small")
    _name_sites(ends, ax)
    return ax


def _draw_sites(table: pd.DataFrame, metric: str | None, ax: Axes) -> dict[str, tuple[float, float]]:
    """Lines of sites, and where they end."""
    name = "epsilon" if metric == "epsilon" else "loss"
    if name not in table:
        msg = (
            f"Expected the {name} of every site to draw behind '{metric}', found none: under noise for privacy no loss "
            "is reported. Draw 'epsilon', or leave out `sites`."
        )
        raise ValueError(msg)
    ends = {}
    for site, values in table[name].groupby("site", observed=True):
        rounds = values.index.get_level_values("round")
        ax.plot(rounds, values, color="0.75", linewidth=0.8, zorder=0)
        ends[str(site)] = (rounds[-1], values.iloc[-1])
    return ends


def _name_sites(ends: dict[str, tuple[float, float]], ax: Axes) -> None:
    """Names beside the ends of lines; those of sites that end alike stand one above the other."""
    bottom, top = ax.get_ylim()
    lowest = -float("inf")
    for site, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        lowest = max(y, lowest + _APART * (top - bottom))
        ax.annotate(site, (x, lowest), (4, 0), textcoords="offset points", color="0.4", fontsize="x-small", va="center")
