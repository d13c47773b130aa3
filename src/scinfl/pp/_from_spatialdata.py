"""The table of a SpatialData, with what a model needs to know of its spots."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of

if TYPE_CHECKING:
    from spatialdata import SpatialData


def from_spatialdata(
    sdata: SpatialData,
    table: str | None = None,
    *,
    section_key: str = "section",
    spatial_key: str = "spatial",
    coordinate_system: str = "global",
) -> AnnData:
    """Complete a table of a SpatialData by sections and coordinates, and return it.

    Each region that the table annotates is a section, and the coordinates of a spot are the centroid of its shape,
    point or label. The table is changed in place and is the one of the SpatialData: what tools write into it later is
    written with ``sdata.write(...)``, or ``sdata.write_element(table, overwrite=True)`` where the SpatialData has a
    file.

    Sets the following fields of the table:

    ``.obs["section"]``
        Name of the region (categorical).
    ``.obsm["spatial"]``
        Centroids (spots × 2 or 3), in the coordinate system.

    Parameters
    ----------
    sdata
        SpatialData with a table of spots, bins or cells.
    table
        Name of the table; may be left out where there is one.
    section_key
        Column of ``.obs`` to write.
    spatial_key
        Entry of ``.obsm`` to write.
    coordinate_system
        Which of the coordinate systems of the SpatialData.

    Returns
    -------
    The table itself.

    Raises
    ------
    KeyError
        If there is no such table, or more than one and no name.
    ValueError
        If the table annotates no region, or spots that have no place.

    References
    ----------
    Marconato et al. (2025), SpatialData: an open and universal data framework for spatial omics, Nature Methods
    22:58-62.
    """
    names = list(sdata.tables)
    if table is None and len(names) == 1:
        table = names[0]
    if table not in names:
        msg = f"Expected `table` to name one of {first_of(names) or 'no tables'}, found {table!r}. Pass its name."
        raise KeyError(msg)
    adata = sdata.tables[table]
    attributes = adata.uns.get("spatialdata_attrs")
    if attributes is None:
        msg = (
            f"Expected a table that annotates shapes, points or labels, found '{table}', which annotates none. Name "
            "them with `spatialdata.models.TableModel.parse`."
        )
        raise ValueError(msg)
    region = adata.obs[attributes["region_key"]].astype("category").cat.remove_unused_categories()
    instance = adata.obs[attributes["instance_key"]]
    adata.obsm[spatial_key] = _centroids(sdata, region, instance, coordinate_system)
    adata.obs[section_key] = region
    return adata


def _centroids(sdata: SpatialData, region: pd.Series, instance: pd.Series, coordinate_system: str) -> np.ndarray:
    """Place of each instance of each region."""
    from spatialdata import get_centroids

    found: np.ndarray | None = None
    for name in region.cat.categories:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The index of the dataframe is not monotonic", UserWarning)
            places = get_centroids(sdata[name], coordinate_system=coordinate_system).compute()
        rows = np.flatnonzero(region == name)
        axes = [axis for axis in "xyz" if axis in places]
        own = places[axes].reindex(instance.iloc[rows]).to_numpy(np.float64)
        if lacking := int(np.isnan(own).any(1).sum()):
            msg = (
                f"Expected a place of every row of region '{name}', found {lacking} of {len(rows)} without. Keep the "
                "rows that match its elements with `spatialdata.match_table_to_element`."
            )
            raise ValueError(msg)
        found = np.empty((len(region), own.shape[1])) if found is None else found
        found[rows] = own
    return found  # type: ignore[return-value]
