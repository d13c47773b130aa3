"""Modalities in one embedding, and values of a modality that was not measured."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scinfl._checks import first_of, layers_of, obs_column
from scinfl.pl._axes import axes
from scinfl.pl._methods import chosen_metrics, grouped_bars, in_order, legend_above, require_columns, values_by
from scinfl.pl._palette import BLACK, BLUE, SEQUENTIAL
from scinfl.pl._perturbation import _correlation
from scinfl.pl._spatial import _coordinates, sections

_SHOWN = {"foscttm": "FOSCTTM\N{NO-BREAK SPACE}↓"}
_MANY = 2_000
_WHOLE = "all spots"
_PANEL = "panel"
_VALUE = "value"


def modality_alignment(
    table: pd.DataFrame,
    metrics: Sequence[str] | str | None = None,
    *,
    by: str = "modalities",
    ax: Axes | None = None,
) -> Axes:
    """Scores of how modalities meet, as bars with a dashed line where spots paired at random would be.

    Bars are means; points are the rows of the table, seeds or sections for example. An arrow down marks scores that are
    better when low.

    Parameters
    ----------
    table
        Tidy: the columns ``metric``, ``value`` and that of ``by``, for example tables of
        :func:`scinfl.metrics.modality_alignment` with ``table.assign(modalities="rna, adt")``, joined by
        :func:`pandas.concat`. Lines need the column ``chance``.
    metrics
        Scores to draw, in this order; all of the table by default.
    by
        Column with a colour for each value: pairs of modalities, or methods.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        If a column or a score is missing.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> table = si.metrics.modality_alignment(x, x + 0.1).assign(modalities="rna, adt")
    >>> ax = si.pl.modality_alignment(table, ["foscttm", "cosine"])
    >>> ax.get_xticklabels()[1].get_text(), ax.get_legend().get_texts()[0].get_text()
    ('cosine', 'rna, adt')
    """
    require_columns(table, ["metric", "value", by])
    metrics, groups = chosen_metrics(table, metrics), in_order(table[by])
    ax = axes(ax, min(7.0, max(3.5, 1.0 + len(metrics) * (0.3 + 0.16 * len(groups)))), 3.0)
    grouped_bars(ax, values_by(table, by, "metric"), groups, [(metric,) for metric in metrics])
    handles = list(ax.get_legend_handles_labels()[0])
    if "chance" in table:
        chance = table["chance"].groupby([table[by].astype(str), table["metric"].astype(str)]).mean()
        handles.append(_chance_lines(ax, [[chance.get((group, m), np.nan) for m in metrics] for group in groups]))
    labels = [_SHOWN.get(metric, metric.replace("_", "\n")) for metric in metrics]
    ax.set_xticks(range(len(metrics)), labels, fontsize="small")
    ax.set_ylabel("score")
    legend_above(ax, handles)
    return ax


def imputation(
    adata: AnnData,
    feature: str,
    *,
    measured: AnnData | None = None,
    layer: str | None = None,
    section_key: str | None = None,
    spatial_key: str = "spatial",
    size: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One imputed feature in space, beside the same spots as measured, on one scale of colours.

    Parameters
    ----------
    adata
        Imputed values (spots × features) with coordinates in ``.obsm``.
    feature
        Feature to draw.
    measured
        Measured values in ``.X``, of these spots (others are left out), on the scale of the imputed. Without, imputed
        values are drawn alone.
    layer
        Layer of ``adata`` to draw in place of X: ``"std"`` for the uncertainty.
    section_key
        Column of ``adata.obs`` that names the section; each is a row of panels. Without, all spots are one section.
    spatial_key
        Coordinates in ``adata.obsm``; the first two columns are drawn.
    size
        Diameter of a spot in the unit of the coordinates.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the feature, the layer, the section column or the coordinates are missing.
    ValueError
        If spots were not measured.

    Examples
    --------
    >>> import scinfl as si
    >>> truth = si.datasets.mosaic_simulated(1, n_spots=100)["adt"]
    >>> imputed = truth.copy()
    >>> imputed.X = truth.X.toarray().mean(0) + 0 * truth.X.toarray()
    >>> ax = si.pl.imputation(imputed, "PROTEIN3", measured=truth)
    >>> [text.get_text() for text in ax.texts]
    ['measured', 'imputed']
    """
    shown = {"imputed" if layer is None else layer: _feature_values(adata, feature, layer)}
    if measured is not None:
        shown = {"measured": _measured_values(measured, feature, adata)} | shown
    whole = pd.Series(_WHOLE, adata.obs_names)
    section = whole if section_key is None else obs_column(adata, section_key, "section_key")
    section = section.astype("category").cat.remove_unused_categories()
    spots = _coordinates(adata, spatial_key, section, str(section_key))
    codes = section.cat.codes.to_numpy(np.int64) * len(shown)
    names = [kind if section_key is None else f"{name}, {kind}" for name in section.cat.categories for kind in shown]
    panels = pd.DataFrame(
        {
            _PANEL: pd.Categorical.from_codes(np.concatenate([codes + number for number in range(len(shown))]), names),
            _VALUE: np.concatenate(list(shown.values())),
        },
        index=[f"{kind}, {spot}" for kind in shown for spot in range(adata.n_obs)],
    )
    drawn = ad.AnnData(obs=panels, obsm={spatial_key: np.tile(spots, (len(shown), 1))})
    ncols = len(shown) if measured is not None else None
    ax = sections(drawn, _VALUE, section_key=_PANEL, spatial_key=spatial_key, size=size, ncols=ncols, ax=ax)
    ax.figure.axes[-1].set_ylabel(feature)  # of the colour bar, which was drawn last
    return ax


def imputation_scatter(
    adata: AnnData, feature: str, *, measured: AnnData, layer: str | None = None, ax: Axes | None = None
) -> Axes:
    """Imputed against measured values of one feature, a point a spot, with the Pearson correlation in the title.

    The grey line is where both are equal. More than 2,000 spots are drawn as their number in hexagons.

    Parameters
    ----------
    adata
        Imputed values (spots × features).
    feature
        Feature to draw.
    measured
        Measured values in ``.X``, of these spots (others are left out), on the scale of the imputed.
    layer
        Layer of ``adata`` to draw in place of X.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the feature or the layer is missing.
    ValueError
        If spots were not measured.

    Examples
    --------
    >>> import scinfl as si
    >>> truth = si.datasets.mosaic_simulated(1, n_spots=100)["adt"]
    >>> imputed = truth.copy()
    >>> imputed.X = truth.X * 0.5
    >>> si.pl.imputation_scatter(imputed, "PROTEIN3", measured=truth).get_title(loc="left").split()
    ['PROTEIN3', 'Pearson', '1.00']
    """
    y, x = _feature_values(adata, feature, layer), _measured_values(measured, feature, adata)
    many = len(x) > _MANY
    ax = axes(ax, 3.5 + many * 0.7, 3.5)
    low, high = np.nanmin([x, y]), np.nanmax([x, y])
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.axline((low, low), slope=1, color="0.6", linewidth=0.8, zorder=0)
    if many:
        hexagons = ax.hexbin(
            x, y, gridsize=40, extent=(*limits, *limits), mincnt=1, bins="log", cmap=SEQUENTIAL, linewidths=0.2
        )
        ax.figure.colorbar(hexagons, ax=ax, pad=0.02).set_label("spots", fontsize="small")
    else:
        ax.scatter(x, y, 7, color=BLUE, alpha=0.5, linewidths=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel="measured", ylabel="imputed")
    ax.set_title(f"{feature}\nPearson {_correlation(x, y)}", loc="left", fontsize="medium")
    return ax


def _chance_lines(ax: Axes, chance: list[list[float]]) -> Line2D:
    """A dashed line over the place of each bar, for the legend the last of them."""
    width = 0.8 / len(chance)
    for number, values in enumerate(chance):
        middle = np.arange(len(values)) + (number - (len(chance) - 1) / 2) * width
        ax.hlines(values, middle - width / 2, middle + width / 2, color=BLACK, linestyle=(0, (2, 1)), linewidth=1)
    return Line2D([], [], color=BLACK, linestyle=(0, (2, 1)), linewidth=1, label="by chance")


def _feature_values(adata: AnnData, feature: str, layer: str | None) -> np.ndarray:
    if feature not in adata.var_names:
        msg = (
            f"Expected `feature` to be one of {adata.n_vars} features, found {feature!r}. "
            f"Features are {first_of(adata.var_names)}."
        )
        raise KeyError(msg)
    if layer is not None and layer not in adata.layers:
        msg = f"Expected `layer` to be one of {list(layers_of(adata))}, found {layer!r}."
        raise KeyError(msg)
    return adata[:, feature].to_df(layer)[feature].to_numpy(np.float64)


def _measured_values(measured: AnnData, feature: str, imputed: AnnData) -> np.ndarray:
    rows = measured.obs_names.get_indexer(imputed.obs_names)
    if absent := int((rows < 0).sum()):
        msg = (
            f"Expected every imputed spot in `measured`, found {absent} of {imputed.n_obs} missing: "
            f"{first_of(imputed.obs_names[rows < 0])}. Keep those that `measured` has."
        )
        raise ValueError(msg)
    return _feature_values(measured, feature, None)[rows]
