"""What the modalities of a MuData know of their spots, for the MuData."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import an_anndata, first_of, missing, unique
from scinfl._coordinates import coordinates_of, elsewhere
from scinfl._spelling import argument


def lift(mdata: MuData, columns: Sequence[str] | None = None, *, spatial_key: str = "spatial") -> None:
    """Write columns and coordinates of the modalities' spots to the MuData, where tools and plots look for them.

    Modalities have to agree on spots that several of them measured.

    Sets the following fields:

    ``mdata.obs``
        The columns; categories where a modality has categories.
    ``mdata.obsm["spatial"]``
        Coordinates of every spot.

    Parameters
    ----------
    mdata
        Spots of several modalities.
    columns
        Columns of the ``obs`` of the modalities; by default those that give every spot a value and that the modalities
        agree on.
    spatial_key
        Entry of the ``obsm`` of the modalities with coordinates; where none has one, no coordinates are written.

    Raises
    ------
    KeyError
        If no modality has one of the columns.
    ValueError
        If modalities do not agree on a column or on coordinates.

    Examples
    --------
    >>> import mudata, scinfl as si
    >>> mods = si.datasets.mosaic_simulated(n_spots=100).mod
    >>> mdata = mudata.MuData({name: adata.copy() for name, adata in mods.items()})
    >>> si.pp.lift(mdata, ["section"])
    >>> mdata.obs["section"].nunique(), mdata.obsm["spatial"].shape
    (3, (300, 2))
    """
    an_anndata(mdata, "mdata", "MuData")
    coordinates = _coordinates(mdata, spatial_key)
    found = {name: joined_column(mdata, name, "columns") for name in columns or []}
    for name in dict.fromkeys(name for adata in mdata.mod.values() for name in adata.obs) if columns is None else ():
        try:
            column = joined_column(mdata, name, "columns")
        except ValueError:  # of each modality by itself, as its number of counts
            continue
        if not missing(column).any():
            found[name] = column
    for name, column in found.items():
        mdata.obs[name] = _typed(column, [adata.obs[name] for adata in mdata.mod.values() if name in adata.obs])
    if coordinates is not None:
        mdata.obsm[spatial_key] = coordinates


def joined_column(mdata: MuData, column: str, setting: str) -> pd.Series:
    """Column of the modalities' ``obs`` for all spots (objects), which must agree; missing where none has a value.

    Raises
    ------
    KeyError
        If no modality has it.
    ValueError
        If two have different values of a spot.
    """
    found = pd.Series(np.nan, index=mdata.obs_names, dtype=object)
    for name, adata in mdata.mod.items():
        unique_spots(adata, f" in '{name}'")
        if column not in adata.obs:
            continue
        own = adata.obs[column].astype(object)
        known = found[own.index]
        if odd := int((known.notna() & own.notna() & (known.astype(str) != own.astype(str))).sum()):
            msg = (
                f"Expected the modalities to agree on obs['{column}'], found {odd} spots of which '{name}' has "
                f"another value. Correct the column, or write one to mdata.obs['{column}']."
            )
            raise ValueError(msg)
        found[own.index] = own.where(own.notna(), known)
    if found.isna().all():
        msg = (
            f"Expected {argument(setting)} to name a column of mdata.obs or of the obs of its modalities, found "
            f"{column!r}. Columns of mdata.obs are {first_of(list(map(str, mdata.obs.columns)), 20)}."
        )
        raise KeyError(msg)
    return found


def unique_spots(adata: AnnData, where: str) -> None:
    """Refuse spots of one name, which nothing distinguishes."""
    cure = "Join sections with `scinfl.pp.join_sections`, which keeps their spots apart."
    unique(adata.obs_names, f"spot names{where}", cure)


def _typed(column: pd.Series, parts: Sequence[pd.Series]) -> pd.Series:
    """A column of objects in the type that its parts have."""
    if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
        every = dict.fromkeys(name for part in parts for name in part.cat.categories)
        return column.astype(pd.CategoricalDtype(list(every), ordered=parts[0].cat.ordered))
    return column.infer_objects()


def _coordinates(mdata: MuData, spatial_key: str) -> np.ndarray | None:
    """Coordinates of all spots, which the modalities must agree on; ``None`` where no modality has any."""
    joined: np.ndarray | None = None
    for name, adata in mdata.mod.items():
        if spatial_key not in adata.obsm:
            continue
        own = coordinates_of(adata.obsm[spatial_key], f"mdata['{name}'].obsm['{spatial_key}']")
        if joined is None:
            joined = np.full((mdata.n_obs, own.shape[1]), np.nan)
        rows = mdata.obs_names.get_indexer(adata.obs_names)
        if (odd := elsewhere(own, joined[rows])).any():
            spots = adata.obs_names[odd]
            msg = (
                f"Expected the modalities to agree on obsm['{spatial_key}'], found {len(spots)} spots that '{name}' "
                f"puts at another place: {first_of(list(spots))}. Correct them, or write those that hold to "
                f"mdata.obsm['{spatial_key}']."
            )
            raise ValueError(msg)
        joined[rows] = own
    return joined
