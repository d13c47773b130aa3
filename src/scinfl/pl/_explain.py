"""Contributions of features to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Patch

from scinfl import _names
from scinfl._checks import first_of, one_of, whole_number
from scinfl.pl._axes import axes
from scinfl.pl._methods import legend_above
from scinfl.pl._palette import BLUE, GREY, VERMILION, low_to_high

_BINS = 80
_HALF = 0.4  # of the height of a row that its cells may fill
_WEAK = 0.2
_SIDES = ((VERMILION, "high values indicate the label"), (BLUE, "low values indicate it"), (GREY, "both or neither"))


def explain(adata: AnnData, label: str, *, n_features: int = 10, ax: Axes | None = None) -> Axes:
    """SHAP values of the first features of a label, a point per cell, coloured by the value of the feature.

    Points to the right indicate the label. Where high values (vermilion) are there, the label is known by much of the
    feature, and by little of it where low values (blue) are.

    Parameters
    ----------
    adata
        Cells that went through :func:`scinfl.tl.explain`.
    label
        Label to explain.
    n_features
        Features to draw, those of largest mean size first.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the cells were not explained, or a feature to draw is gone.
    ValueError
        If the model has no such label.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scinfl as si
    >>> adata = ad.AnnData(np.array([[0.0, 1.0], [2.0, 1.0]]))
    >>> adata.obsm["infl_shap"] = np.array([[[-1.0], [0.1]], [[1.0], [0.0]]])
    >>> explained = {"labels": np.array(["B cell"]), "features": np.array(["0", "1"]), "output": "logit"}
    >>> adata.uns["infl"] = {"explain": explained}
    >>> ax = si.pl.explain(adata, "B cell")
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['0', '1']
    """
    settings = _settings(adata)
    one_of("label", label, [str(name) for name in settings["labels"]])
    whole_number("n_features", n_features, 1)
    shap = adata.obsm[_names.SHAP][:, :, [str(name) for name in settings["labels"]].index(label)]
    first = np.argsort(-np.abs(shap).mean(0), kind="stable")[:n_features]
    features = [str(name) for name in np.asarray(settings["features"])[first]]
    shades = _ranks(_values(adata, features, settings.get("layer")))
    ax = axes(ax, 3.4, 1.0 + 0.26 * len(features))
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    for row, column in enumerate(first):
        x, order = shap[:, column], np.argsort(shades[:, row], kind="stable")
        y = row + _swarm(x)
        ax.scatter(
            x[order], y[order], 5, c=shades[order, row], cmap=low_to_high(), vmin=0, vmax=1, linewidths=0, alpha=0.8
        )
    ax.set_yticks(range(len(features)), features, fontsize="small")
    ax.set_ylim(len(features) - 0.4, -0.6)
    ax.set_xlabel(f"SHAP value ({settings['output']})")
    ax.set_title(label, loc="left", fontsize="medium")
    bar = ax.figure.colorbar(ScalarMappable(cmap=low_to_high()), ax=ax, aspect=25, pad=0.02)
    bar.set_ticks([0, 1], labels=["low", "high"], fontsize="small")
    bar.set_label("value of the feature", fontsize="small", labelpad=-12)
    bar.outline.set_visible(False)
    return ax


def top_features(
    adata: AnnData, labels: Sequence[str] | str | None = None, *, n_features: int = 5, ax: Axes | None = None
) -> Axes:
    """First features of each label as bars of their mean absolute SHAP value.

    Colours show whether high values of the feature indicate the label (its value and SHAP value correlate over the
    cells), low values do, or neither (correlations up to 0.2).

    Parameters
    ----------
    adata
        Cells that went through :func:`scinfl.tl.explain`.
    labels
        Labels to draw; all by default.
    n_features
        Features of each label.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the cells were not explained.
    ValueError
        If the model has no such label.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scinfl as si
    >>> adata = ad.AnnData(np.zeros((2, 2)), obsm={"infl_shap": np.zeros((2, 2, 1))})
    >>> columns = ["label", "rank", "feature", "mean_abs_shap", "direction"]
    >>> top = pd.DataFrame([("B cell", 1, "MS4A1", 0.8, 0.9), ("B cell", 2, "CD3D", 0.3, -0.7)], columns=columns)
    >>> adata.uns["infl"] = {"explain": {"labels": np.array(["B cell"]), "output": "logit", "top": top}}
    >>> ax = si.pl.top_features(adata)
    >>> [float(bar.get_width()) for bar in ax.patches]
    [0.8, 0.3]
    """
    settings = _settings(adata)
    known = [str(name) for name in settings["labels"]]
    labels = known if labels is None else [labels] if isinstance(labels, str) else list(labels)
    for label in labels:
        one_of("labels", label, known)
    whole_number("n_features", n_features, 1)
    top = settings["top"]
    parts = [top[(top["label"] == label) & (top["rank"] <= n_features)] for label in labels]
    starts = np.cumsum([0, *(len(part) + 1.6 for part in parts)])
    ax = axes(ax, 3.4, 0.6 + 0.135 * starts[-1])
    for label, part, start in zip(labels, parts, starts[:-1], strict=True):
        colours = [_side(direction) for direction in part["direction"]]
        ax.barh(start + np.arange(len(part)), part["mean_abs_shap"], 0.8, color=colours)
        ax.text(0, start - 0.6, f" {label}", fontsize="small", fontweight="bold", va="bottom", ha="left")
    places = np.concatenate([start + np.arange(len(part)) for start, part in zip(starts[:-1], parts, strict=True)])
    ax.set_yticks(places, pd.concat(parts)["feature"].astype(str), fontsize="x-small")
    ax.set_ylim(starts[-1] - 1.6, -1.9)
    ax.set_xlabel(f"mean |SHAP value| ({settings['output']})")
    legend_above(ax, [Patch(color=colour, label=name) for colour, name in _SIDES])
    return ax


def _settings(adata: AnnData) -> dict[str, Any]:
    settings = adata.uns.get(_names.UNS, {}).get("explain")
    if settings is None or _names.SHAP not in adata.obsm:
        msg = f"Expected SHAP values in adata.obsm['{_names.SHAP}'], found none. Run `scinfl.tl.explain` first."
        raise KeyError(msg)
    return settings


def _values(adata: AnnData, features: list[str], layer: str | None) -> np.ndarray:
    """Values of the features (cells × features)."""
    if gone := [name for name in features if name not in adata.var_names]:
        msg = f"Expected the features that were explained in adata.var_names, found no {first_of(gone)}. Keep them."
        raise KeyError(msg)
    return adata[:, features].to_df(layer).to_numpy(np.float64)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of the values of each column, from 0 to 1, so that a few outliers leave shades to the others."""
    ranks = pd.DataFrame(values).rank().to_numpy()
    low, high = ranks.min(0), ranks.max(0)
    return np.divide(ranks - low, high - low, out=np.full(ranks.shape, 0.5), where=high > low)


def _swarm(x: np.ndarray) -> np.ndarray:
    """Heights of points around their row: those of about the same value are above and below each other."""
    span = np.ptp(x)
    bins = np.zeros(len(x), int) if span == 0 else np.minimum((_BINS * (x - x.min()) / span).astype(int), _BINS - 1)
    order = np.argsort(bins, kind="stable")
    counts = np.bincount(bins)
    place = np.empty(len(x), int)
    place[order] = np.arange(len(x)) - np.repeat(np.cumsum(counts) - counts, counts)
    heights = np.ceil(place / 2) * np.where(place % 2 == 1, 1, -1)  # 0, 1, −1, 2, −2 …
    return heights * min(0.06, _HALF / max(1, np.abs(heights).max()))


def _side(direction: float) -> str:
    """Colour of a correlation; grey where there is none."""
    return VERMILION if direction > _WEAK else BLUE if direction < -_WEAK else GREY
