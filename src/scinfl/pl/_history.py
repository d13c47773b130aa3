"""How training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scinfl._checks import one_of
from scinfl.pl._axes import axes

if TYPE_CHECKING:
    from scinfl.model import Classifier


def history(model: Classifier, metric: str | None = None, *, sites: bool = False, ax: Axes | None = None) -> Axes:
    """Metrics by round, with the round that the model keeps as a dotted line.

    Parameters
    ----------
    model
        Trained model.
    metric
        Column of ``model.history``; training and validation loss by default.
    sites
        Draw the training loss of every site behind the means (only in the process that trained).
    ax
        Axes to draw on.
    """
    table = model.history
    if table is None:
        msg = "Expected a trained model, found an untrained one. Call `train` first."
        raise RuntimeError(msg)
    if metric is not None:
        one_of("metric", metric, table.columns)
    columns = [metric] if metric else [name for name in ("train_loss", "validation_loss") if name in table]
    ax = axes(ax)
    if sites and model.site_history is not None:
        for _, losses in model.site_history["loss"].groupby("site", observed=True):
            ax.plot(losses.index.get_level_values("round"), losses, color="0.8", linewidth=0.8, zorder=0)
    for name in columns:
        ax.plot(table.index, table[name], label=name.replace("_", " "))
    ax.axvline(table.attrs["best_round"], color="0.4", linestyle=":", label="best round")
    ax.set(xlabel="round", ylabel=metric.replace("_", " ") if metric else "loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax
