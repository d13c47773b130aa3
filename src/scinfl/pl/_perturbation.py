"""Measured and predicted response to one perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scinfl._checks import first_of, whole_number
from scinfl.pl._axes import axes
from scinfl.pl._methods import in_order, legend_above, require_columns
from scinfl.pl._palette import CONTROL, PALE, VERMILION, method_styles
from scinfl.pl._response import response


def perturbation(
    adata: AnnData | pd.DataFrame,
    predictions: Mapping[str, Any] | Any | None = None,
    perturbation: str | Sequence[str] | None = None,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 20,
    layer: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Measured change of single cells as boxes, predicted mean changes as symbols, the control mean as a dotted line.

    Whiskers end at the outermost cell within 1.5 × interquartile range of the box; cells beyond are not drawn. What
    lies between the whiskers counts as a hit in :func:`scinfl.metrics.perturbation`.

    Parameters
    ----------
    adata
        Cells that went through :func:`scinfl.pp.perturbations`. The change of a cell is its expression minus the mean
        of the control cells (of the test half where they were split). Or a tidy table: the columns ``gene`` and
        ``change``, one row per cell and gene.
    predictions
        A trained :class:`scinfl.model.GEARS`, or models and tables of predicted changes (perturbations × genes) by
        name. Where the cells were split, the train mean and the additive rule are drawn beside them. With a table:
        predicted mean change by gene, by method.
    perturbation
        What to draw, for example ``"A+B"`` or ``["A", "B"]``; for cells only.
    genes
        Genes to draw, in this order; by default the ``n_genes`` that respond most (of those that are no dropouts), or
        those of the table.
    n_genes
        Number of genes; for cells only.
    layer
        Layer that the models were trained on; for cells only.
    title
        Title; by default the perturbation.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the cells were not prepared.
    ValueError
        If the perturbation was not measured, a column is missing, or a gene has no cell or no prediction of any method.

    Examples
    --------
    One line from cells and a model:

    >>> import pandas as pd, scinfl as si
    >>> adata = si.datasets.perturbseq_simulated(100, n_singles=8, n_doubles=3, n_cells=10, n_controls=30)
    >>> si.pp.perturbations(adata)
    >>> ax = si.pl.perturbation(adata, None, adata.obs["infl_perturbation"].cat.categories[-1], n_genes=5)
    >>> len(ax.get_xticks())
    5

    Or from a table:

    >>> table = pd.DataFrame({"gene": ["KLF1"] * 4 + ["HBG1"] * 4, "change": [0.1, 0.3, 0.2, 0.4, 1, 2, 3, 2]})
    >>> ax = si.pl.perturbation(table, {"GEARS": {"KLF1": 0.25, "HBG1": 1.5}}, title="BAK1+KLF1")
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['KLF1', 'HBG1']
    """
    if isinstance(adata, AnnData):
        if perturbation is None:
            msg = 'Expected the `perturbation` to draw, found None. Name one, for example `perturbation="A+B"`.'
            raise ValueError(msg)
        table, predictions, name = response(adata, predictions, perturbation, genes, n_genes, layer)
        title = name if title is None else title
    else:
        table = adata
    require_columns(table, ["gene", "change"])
    genes = in_order(table["gene"]) if genes is None else list(map(str, genes))
    cells = {str(gene): own.to_numpy() for gene, own in table["change"].dropna().groupby(table["gene"], observed=True)}
    if absent := [gene for gene in genes if gene not in cells]:
        msg = f"Expected measured changes of every gene in `table`, found none of {first_of(absent)}."
        raise ValueError(msg)
    guesses = {method: _by_gene(method, values, genes) for method, values in (predictions or {}).items()}
    ax = axes(ax, max(3.5, 1.2 + 0.29 * len(genes)), 3.2)
    boxes = ax.boxplot(
        [cells[gene] for gene in genes],
        positions=range(len(genes)),
        widths=0.7,
        whis=1.5,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": PALE, "edgecolor": "0.4", "linewidth": 0.7},
        medianprops={"color": "0.25", "linewidth": 1},
        whiskerprops={"color": "0.4", "linewidth": 0.7},
        capprops={"color": "0.4", "linewidth": 0.7},
    )
    control = ax.axhline(0, color=CONTROL, linestyle=":", linewidth=1.5, label="control mean")
    shifts = np.linspace(-0.22, 0.22, len(guesses)) if len(guesses) > 1 else [0.0]
    symbols = [
        _symbols(ax, method, guesses[method], shift, style)
        for (method, style), shift in zip(method_styles(guesses).items(), shifts, strict=False)
    ]
    measured = boxes["boxes"][0]
    measured.set_label("measured cells")
    room = ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi / len(genes)
    angle, size = (60, "small") if room > 0.2 else (90, "x-small")
    ax.set_xticks(range(len(genes)), genes, rotation=angle, ha="right", va="center_baseline", fontsize=size)
    for label in ax.get_xticklabels():
        label.set_rotation_mode("anchor")
    ax.set_xlim(-0.6, len(genes) - 0.4)
    ax.set_ylabel("change of expression")
    legend_above(ax, [measured, control, *symbols], title=title)
    return ax


def perturbation_scatter(
    table: pd.DataFrame, *, n_labels: int = 8, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Predicted against measured change, a point a gene, with the Pearson correlation in the title.

    Parameters
    ----------
    table
        The columns ``predicted`` and ``measured``, a row a gene; optionally ``de`` (whether the gene is one of the most
        differential) and ``gene`` (its name, by default the index).
    n_labels
        Number of genes to name: those whose measured or predicted change is largest. Names that would cover each other
        are left out.
    title
        Text before the correlation.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame({"predicted": [0.0, 0.5, 2.0], "measured": [0.1, 0.4, 1.0]}, index=["A", "B", "C"])
    >>> si.pl.perturbation_scatter(table).get_title(loc="left")
    'Pearson 1.00'
    """
    require_columns(table, ["predicted", "measured"])
    whole_number("n_labels", n_labels, 0)
    names = (table["gene"] if "gene" in table else table.index.to_series()).astype(str).to_numpy()
    x, y = (table[column].to_numpy(np.float64) for column in ("measured", "predicted"))
    de = table["de"].to_numpy(bool) if "de" in table else np.zeros(len(table), bool)
    ax = axes(ax, 3.6, 3.8)
    reach = 1.08 * max(np.nanmax(np.abs([x, y])), 1e-9)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    for mask, colour, size, label in ((~de, "0.55", 6, "other genes"), (de, VERMILION, 16, "DE genes")):
        if mask.any():
            ax.scatter(x[mask], y[mask], size, color=colour, alpha=0.75, linewidths=0, label=label)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="measured change", ylabel="predicted change")
    ax.set_aspect("equal")
    found = f"Pearson {_correlation(x, y)}" + (f", DE {_correlation(x[de], y[de])}" if de.any() else "")
    ax.set_title(found if title is None else f"{title}\n{found}", loc="left", fontsize="medium")
    if de.any():
        ax.legend(frameon=False, loc="lower right", fontsize="small", handletextpad=0.1)
    largest = np.argsort(-np.nan_to_num(np.maximum(np.abs(x), np.abs(y))), kind="stable")[:n_labels]
    _label_points(ax, [(names[number], x[number], y[number]) for number in largest])
    return ax


def _by_gene(method: str, values: Mapping[str, float] | pd.Series, genes: list[str]) -> np.ndarray:
    series = pd.Series(values, dtype=np.float64)
    found = series.set_axis(series.index.astype(str)).reindex(genes).to_numpy()
    if np.isnan(found).all():
        msg = f"Expected `predictions['{method}']` to hold changes of genes of `table`, found none. Index it by gene."
        raise ValueError(msg)
    return found


def _symbols(ax: Axes, method: str, values: np.ndarray, shift: float, style: tuple[str, str]) -> Line2D:
    colour, symbol = style
    return ax.plot(
        np.arange(len(values)) + shift,
        values,
        symbol,
        color=colour,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=method,
        zorder=5,
    )[0]


def _correlation(x: np.ndarray, y: np.ndarray) -> str:
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "undefined"
    return f"{np.corrcoef(x, y)[0, 1]:.2f}"


def _label_points(ax: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside their points, at the first of a few places where they cover no other name."""
    if points:
        ax.figure.canvas.figure.draw_without_rendering()  # what covers what depends on the layout
    taken: list[Any] = []
    for name, x, y in points:
        for dx, dy in ((5, 3), (-5, 3), (5, -3), (-5, -3), (0, 8), (0, -8)):
            text = ax.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                fontsize="x-small",
                ha="center" if dx == 0 else "left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
            )
            box, frame = text.get_window_extent(), ax.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
