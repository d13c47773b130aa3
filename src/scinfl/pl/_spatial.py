"""Sections of tissue side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.lines import Line2D
from scipy.spatial import KDTree

from scinfl import _names
from scinfl._checks import an_anndata, first_of, missing, number_between, obs_column, whole_number
from scinfl._colours import category_colours
from scinfl._coordinates import coordinates_of, in_tissue
from scinfl.pl._axes import axes
from scinfl.pl._images import diameter_of, draw_on_images, images_of, microns_of, scale_bar
from scinfl.pl._palette import SEQUENTIAL

_MISSING = "0.85"
_GAP = 0.06
_MANY = 20_000


def sections(
    adata: AnnData,
    color: str = _names.DOMAIN,
    *,
    section_key: str,
    spatial_key: str = "spatial",
    size: float | None = None,
    ncols: int | None = None,
    image: bool = True,
    microns: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Spots of all sections side by side in one pair of axes, coloured by a column of ``obs`` or a gene.

    Sections keep their scale and their orientation: the second coordinate points down, as in images. Only their places
    are moved, so the coordinates of the axes mean nothing and are not drawn. Where ``.uns["spatial"]`` has an image of
    every section, as readers of Visium write it, spots are drawn on it by :func:`squidpy.pl.spatial_scatter`, without
    those outside of the tissue (``.obs["in_tissue"]`` is 0).

    Parameters
    ----------
    adata
        Sections with coordinates in ``.obsm``. Colours of categories are taken from ``.uns[f"{color}_colors"]``.
    color
        Column of ``.obs``, or a gene, whose values in ``.X`` are drawn. Names get a legend; numbers get a colour bar
        that ends at the 1st and the 99th percentile. Make numbers that are names categorical.
    section_key
        Column of ``.obs`` that names the section.
    spatial_key
        Coordinates in ``.obsm``; the first two columns are drawn.
    size
        Diameter of a spot in the unit of the coordinates; by default close to the distance between spots, or that of
        the image's scale factors.
    ncols
        Sections in a row; by default all of them up to 4.
    image
        Draw images where there are some: one for each section, under its name, or one for a single section.
    microns
        Micrometres per unit of the coordinates, for a scale bar. By default, on images, those of the scale factors
        (``microns_per_pixel``), or, for Visium (``array_row`` in ``.obs``), those by which nearest spots are 100 µm
        apart.
    ax
        Axes to draw on.

    Raises
    ------
    KeyError
        If the colour, the section column or the coordinates are missing.
    ValueError
        If coordinates are not finite, or spots lack a section.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.obs["section"] = np.where(np.arange(adata.n_obs) % 2, "slice 1", "slice 2")
    >>> adata.obsm["spatial"] = np.random.default_rng(0).random((adata.n_obs, 2))
    >>> ax = si.pl.sections(adata, "bulk_labels", section_key="section")
    >>> [text.get_text() for text in ax.texts]
    ['slice 1', 'slice 2']
    """
    an_anndata(adata)
    if not (inside := in_tissue(adata.obs)).all():
        adata = adata[inside]
    values = _values(adata, color)
    section = obs_column(adata, section_key, "section_key").astype("category").cat.remove_unused_categories()
    spots = _coordinates(adata, spatial_key, section, section_key)
    names, codes = list(map(str, section.cat.categories)), section.cat.codes.to_numpy()
    if ncols is None:
        ncols = min(4, len(names))
    whole_number("ncols", ncols, 1)
    for argument, value in (("size", size), ("microns", microns)):
        if value is not None:
            number_between(argument, value, 0, np.inf, open_low=True)
    images = images_of(adata, spatial_key, names) if image else None
    diameter = float(size or (diameter_of(images) if images else _spacing(spots, codes)))
    moved, labels, extent = _side_by_side(spots, codes, min(ncols, len(names)), diameter)
    ax = _sized_axes(ax, extent)
    ax.set(xlim=(0, extent[0]), ylim=(extent[1], 0), aspect="equal")
    ax.set_axis_off()
    for name, (x, y) in zip(names, labels, strict=True):
        ax.annotate(name, (x, y), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize="small")
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        colours = _colour_bar(ax, values.to_numpy(np.float64), color)
        how: dict[str, Any] = {"norm": colours.norm, "cmap": colours.cmap}
    else:
        values = values.astype("category")
        palette = _legend(ax, values, adata.uns.get(f"{color}_colors"), color)
        how = {"palette": palette[:-1]}
    if images:
        microns = microns_of(images, adata.obs, spots, codes) if microns is None else microns
        how |= {"diameter": diameter, "microns": microns, "missing": _MISSING}
        draw_on_images(ax, images, values, codes, spots, moved, **how)
        return ax
    dots = EllipseCollection(
        diameter,
        diameter,
        0,
        units="xy",  # in the unit of the data, so that spots fit their density at any size of the figure
        offsets=moved,
        offset_transform=ax.transData,
        linewidths=0,
        rasterized=len(spots) > _MANY,
    )
    if "palette" in how:
        dots.set_facecolor([palette[code] for code in values.cat.codes])  # code −1, missing, is the last
    else:
        dots.set(array=np.ma.masked_invalid(values.to_numpy(np.float64)), **how)
    ax.add_collection(dots)
    if microns is not None:
        ax.add_artist(scale_bar(microns, ax))
    return ax


def _values(adata: AnnData, color: str) -> pd.Series:
    if color in adata.obs:
        return adata.obs[color]
    if color not in adata.var_names:
        msg = (
            f"Expected `color` to name a column of adata.obs or a gene, found {color!r}. "
            f"Columns are {first_of(list(map(str, adata.obs.columns)), 20)}."
        )
        raise KeyError(msg)
    return adata[:, color].to_df()[color]


def _coordinates(adata: AnnData, spatial_key: str, section: pd.Series, section_key: str) -> np.ndarray:
    if spatial_key not in adata.obsm:
        msg = (
            f"Expected coordinates in adata.obsm[{spatial_key!r}], found {first_of(list(adata.obsm)) or 'none'}. "
            "Name others with `spatial_key=`."
        )
        raise KeyError(msg)
    spots = coordinates_of(adata.obsm[spatial_key], f"adata.obsm[{spatial_key!r}]")[:, :2]
    for what, bad, cure in (
        (f"finite coordinates in adata.obsm[{spatial_key!r}]", ~np.isfinite(spots).all(1), "others"),
        (f"a section for every spot in adata.obs[{section_key!r}]", missing(section).to_numpy(), "none"),
    ):
        if bad.any():
            msg = f"Expected {what}, found {cure} for {bad.sum()} of {len(spots)} spots. Drop these spots first."
            raise ValueError(msg)
    return spots


def _spacing(spots: np.ndarray, codes: np.ndarray) -> float:
    """Side of the square that a spot has to itself, from the circle that holds its 4 nearest spots.

    The lower third of all spots: those at an edge would make spots too large.
    """
    sides = []
    for code in np.unique(codes):
        own = spots[codes == code]
        k = min(4, len(own) - 1)
        if k > 0:
            sides.append(KDTree(own).query(own, k=[k + 1])[0].ravel() * np.sqrt(np.pi / k))
    spacing = float(np.quantile(np.concatenate(sides), 1 / 3)) if sides else 0.0
    return spacing or float(np.ptp(spots, axis=0).max()) / 50 or 1.0


def _side_by_side(
    spots: np.ndarray, codes: np.ndarray, ncols: int, diameter: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Spots moved into the cells of a grid, the place of each section's name, and the extent of the whole."""
    n = codes.max() + 1
    low = np.stack([spots[codes == code].min(0) for code in range(n)]) - diameter / 2
    high = np.stack([spots[codes == code].max(0) for code in range(n)]) + diameter / 2
    row, column = np.divmod(np.arange(n), ncols)
    widths = np.array([(high - low)[column == c, 0].max() for c in range(ncols)])
    heights = np.array([(high - low)[row == r, 1].max() for r in range(row.max() + 1)])
    gap = _GAP * max(widths.max(), heights.max())
    left = np.concatenate([[0], np.cumsum(widths + gap)])
    top = np.concatenate([[0], np.cumsum(heights + 2 * gap)])  # names stand above each row
    middle = left[column] + widths[column] / 2
    corner = np.stack([middle - (high - low)[:, 0] / 2, top[row]], axis=1)
    extent = (float(left[-1] - gap), float(top[-1] - 2 * gap))
    return spots + (corner - low)[codes], np.stack([middle, top[row]], axis=1), extent


def _sized_axes(ax: Axes | None, extent: tuple[float, float]) -> Axes:
    scale = min(5.7 / extent[0], 6 / extent[1])  # with the legend seven inches, the width of a page
    return axes(ax, max(2.0, extent[0] * scale) + 1.3, max(1.5, extent[1] * scale) + 0.4)


def _colour_bar(ax: Axes, values: np.ndarray, label: str) -> ScalarMappable:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if len(known) else (0.0, 1.0)
    if low == high and len(known):
        low, high = known.min(), known.max()
    below, above = bool((known < low).any()), bool((known > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    colours = ScalarMappable(Normalize(low, high), colormaps[SEQUENTIAL].with_extremes(bad=_MISSING))
    bar = ax.figure.colorbar(colours, ax=ax, extend=extend, shrink=0.6, aspect=15, pad=0.02)
    bar.set_label(label.replace("_", " "), fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return colours


def _legend(ax: Axes, named: pd.Series, colours: Sequence[str] | None, title: str) -> list[str]:
    """Draw the legend; returns a colour for each category, and that of missing ones."""
    names, codes = list(map(str, named.cat.categories)), named.cat.codes.to_numpy()
    if colours is None or len(colours) != len(names):
        colours = category_colours(len(names))
    palette = [to_hex(colour) for colour in [*colours, _MISSING]]
    shown = [(name, palette[code]) for code, name in enumerate(names) if (codes == code).any()]
    if (codes < 0).any():
        shown.append(("missing", palette[-1]))
    handles = [Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in shown]
    ax.legend(
        handles=handles,
        title=title.replace("_", " "),
        title_fontsize="small",
        alignment="left",
        frameon=False,
        bbox_to_anchor=(1, 1),
        loc="upper left",
        ncols=-(-len(handles) // 16),
        fontsize="small",
        handletextpad=0.2,
    )
    return palette
