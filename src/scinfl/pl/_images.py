"""Spots on the images of their sections, through squidpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from scipy.spatial import KDTree

Images = dict[str, Mapping[str, Any]]
"""Images and scale factors of each section, as readers of Visium write them."""

_VALUE = "value"
_SPACING = 100.0  # µm between the centres of the spots of Visium
_BAR: dict[str, Any] = {"location": "lower left", "box_alpha": 0.6, "font_properties": {"size": "x-small"}}


def images_of(adata: AnnData, spatial_key: str, names: Sequence[str]) -> Images | None:
    """Images of all sections; ``None`` unless there is one of each."""
    libraries = adata.uns.get(spatial_key)
    if not isinstance(libraries, Mapping):
        return None
    if len(names) == len(libraries) == 1:
        libraries = {names[0]: next(iter(libraries.values()))}
    found = {name: libraries[name] for name in names if name in libraries and _resolution(libraries[name])}
    return found if len(found) == len(names) else None


def diameter_of(images: Images) -> float:
    """Largest diameter of a spot by the scale factors, in the unit of the coordinates."""
    return max(float(library["scalefactors"]["spot_diameter_fullres"]) for library in images.values())


def microns_of(images: Images, obs: pd.DataFrame, spots: np.ndarray, codes: np.ndarray) -> float | None:
    """Micrometres per unit of the coordinates in the first section, where that is known."""
    factors = next(iter(images.values()))["scalefactors"]
    if "microns_per_pixel" in factors:
        return float(factors["microns_per_pixel"])
    first = spots[codes == 0]
    if "array_row" not in obs or len(first) < 2:
        return None
    return _SPACING / float(np.median(KDTree(first).query(first, k=2)[0][:, 1]))


def scale_bar(microns: float, ax: Axes) -> Artist:
    """A scale bar below axes in which a unit is so many micrometres."""
    from matplotlib_scalebar.scalebar import ScaleBar

    below = {"location": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes}
    return ScaleBar(microns, "um", length_fraction=0.1, **_BAR | below)


def draw_on_images(
    ax: Axes,
    images: Images,
    values: pd.Series,
    codes: np.ndarray,
    spots: np.ndarray,
    moved: np.ndarray,
    *,
    diameter: float,
    microns: float | None,
    missing: str,
    palette: Sequence[str] | None = None,
    norm: Normalize | None = None,
    cmap: Colormap | None = None,
) -> None:
    """Draw each section on its image, in axes of its own at the place that it has among the others."""
    import squidpy as sq

    width, height = ax.get_xlim()[1], ax.get_ylim()[0]
    for code, (name, library) in enumerate(images.items()):
        own, factors = codes == code, library["scalefactors"]
        resolution = _resolution(library)
        factor = float(factors[f"tissue_{resolution}_scalef"])
        low, high = moved[own].min(0) - diameter / 2, moved[own].max(0) + diameter / 2
        size = (high - low) / (width, height)
        inset = ax.inset_axes((low[0] / width, 1 - high[1] / height, *size))
        obs = pd.DataFrame({_VALUE: values[own].array}, index=values.index[own])
        uns = {"spatial": {name: library}} | ({} if palette is None else {f"{_VALUE}_colors": list(palette)})
        scale = {} if microns is None or code else {"scalebar_dx": microns / factor, "scalebar_units": "um"}
        sq.pl.spatial_scatter(
            AnnData(obs=obs, obsm={"spatial": spots[own]}, uns=uns),
            shape="square" if "bin_size_um" in factors else "circle",
            color=_VALUE,
            img_res_key=resolution,
            size=diameter / float(factors["spot_diameter_fullres"]),
            norm=norm,
            cmap=cmap,
            na_color=missing,
            title="",
            legend_loc=None,
            colorbar=False,
            ax=inset,
            fig=ax.figure,
            scalebar_kwargs=_BAR,
            **scale,
        )
        start, stop = (spots[own].min(0) - diameter / 2) * factor, (spots[own].max(0) + diameter / 2) * factor
        inset.set(xlim=(start[0], stop[0]), ylim=(stop[1], start[1]))
        inset.set_axis_off()


def _resolution(library: Mapping[str, Any]) -> str | None:
    """The finest image that has a scale factor."""
    images, factors = library.get("images"), library.get("scalefactors") or {}
    if not isinstance(images, Mapping) or "spot_diameter_fullres" not in factors:
        return None
    names = (name for name in ("hires", "lowres", *images) if name in images and f"tissue_{name}_scalef" in factors)
    return next(names, None)
