"""Spots of an AnnData or a MuData: sections, sites, coordinates, and what each modality measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import first_of, looks_like_counts, missing, obs_column, unmasked, values_of
from scinfl._spelling import argument
from scinfl.model.base._cells import Matrix, owned
from scinfl.model.spamosaic import _spot_checks as check
from scinfl.model.spamosaic._measured import Measured

Data: TypeAlias = AnnData | MuData

_HEAD = 2000  # spots that show whether values are counts
_ACCESSIBILITY = ("atac", "peak", "histone", "epigenome", "h3k", "chromatin")
_PROTEINS = ("adt", "protein", "antibod", "hto")


def modalities_of(data: Data) -> dict[str, AnnData]:
    """AnnData by modality; an AnnData is one, called ``"X"``."""
    return {"X": data} if isinstance(data, AnnData) else dict(data.mod)


def column_of(data: Data, column: str, setting: str) -> np.ndarray:
    """Column of ``obs`` as strings, one for every spot; a MuData may have it in the ``obs`` of its modalities."""
    if isinstance(data, AnnData) or column in data.obs:
        found = obs_column(data, column, setting)
    else:
        found = _joined(data, column, setting)
    if n := int(missing(found).sum()):
        msg = f"Expected a value for every spot in obs['{column}'], found {n} spots without. Drop these spots."
        raise ValueError(msg)
    return found.astype(str).to_numpy()


def _joined(mdata: MuData, column: str, setting: str) -> pd.Series:
    """Column of the modalities' ``obs``, which must agree."""
    found = pd.Series(np.nan, index=mdata.obs_names, dtype=object)
    for name, adata in mdata.mod.items():
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
            f"{column!r}. "
            f"Columns of mdata.obs are {first_of(list(map(str, mdata.obs.columns)), 20)}."
        )
        raise KeyError(msg)
    return found


def read_spots(
    data: Data,
    *,
    section_key: str,
    site_key: str | None,
    spatial_key: str,
    layers: Mapping[str, str | None],
    normalise: Mapping[str, str] | None = None,
    train: bool = True,
    elsewhere: bool = False,
) -> dict[str, Measured]:
    """What each modality measured, once it is known that it can be joined.

    Where other sites are ``elsewhere``, some modalities may have been measured there alone: they have no spots here.
    """
    section = column_of(data, section_key, "section_key")
    site = np.full(len(section), "all") if site_key is None else column_of(data, site_key, "site_key")
    if train and site_key is not None:
        check.several_sites(site, site_key)
    check.one_site_per_section(section, site)
    found = {}
    for name, adata in modalities_of(data).items():
        modality, of = (None, "") if isinstance(data, AnnData) else (name, f" of '{name}'")
        if not train and modality and not adata.n_obs:
            continue  # left over in a part of a MuData
        if train and (adata.n_obs or not elsewhere):
            owned(adata, "AnnData" if isinstance(data, AnnData) else "MuData")
        rows = _rows(data, name, adata)
        matrix = _values(data, name, adata, layers.get(name))
        check.known_values(matrix, adata, of)
        check.same_features(adata, of, section_key)
        how = (normalise or {}).get(name) or normalisation_of(name, matrix)
        check.fits_normalisation(matrix, of, how)
        coordinates = _coordinates(data, adata, rows, spatial_key, section[rows], name)
        found[name] = Measured(modality, matrix, how, rows, coordinates, section[rows], site[rows].astype(str))
    if isinstance(data, MuData):
        check.paired(data, found)
    if train:
        check.enough_spots({name: own for name, own in found.items() if len(own.rows) or not elsewhere})
    if train and not elsewhere:
        check.linked({name: set(own.section) for name, own in found.items()})
    return found


def _values(data: Data, name: str, adata: AnnData, layer: str | None) -> Matrix:
    if layer is not None and layer not in adata.layers and isinstance(data, MuData):
        msg = (
            f"Expected layers['{name}'] to be a layer of mdata['{name}'], found {layer!r} beside {list(adata.layers)}."
        )
        raise KeyError(msg)
    return values_of(adata, layer)


def normalisation_of(modality: str, matrix: Matrix) -> str:
    """Logarithms of counts, of proteins centred log ratios, TF-IDF of accessibility; other values as they are.

    Any whole numbers are counts: those of accessibility, or of few genes, may well stay small.
    """
    if not looks_like_counts(matrix, n_rows=_HEAD, above=-1):
        return "none"
    usual = {"tfidf": _ACCESSIBILITY, "clr": _PROTEINS}
    named = (how for how, parts in usual.items() if any(part in modality.lower() for part in parts))
    return next(named, "lognorm")


def _rows(data: Data, name: str, adata: AnnData) -> np.ndarray:
    """Rows of a modality's spots in the data."""
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()].unique()
        where = "" if isinstance(data, AnnData) else f" in '{name}'"
        msg = (
            f"Expected unique spot names{where}, found {len(twice)} that occur more than once: {first_of(twice)}. "
            "Join sections with `scinfl.pp.join_sections`, which keeps their spots apart."
        )
        raise ValueError(msg)
    if isinstance(data, AnnData):
        return np.arange(adata.n_obs)
    rows = data.obs_names.get_indexer(adata.obs_names)
    if (rows < 0).any():
        msg = f"Expected mdata.obs_names to hold the spots of '{name}', found others. Run `mdata.update()`."
        raise ValueError(msg)
    return rows


def _coordinates(
    data: Data, adata: AnnData, rows: np.ndarray, spatial_key: str, section: np.ndarray, name: str
) -> np.ndarray:
    if isinstance(data, MuData) and spatial_key in data.obsm:
        coordinates = unmasked(data.obsm[spatial_key]).astype(np.float64)[rows]
    elif spatial_key in adata.obsm:
        coordinates = unmasked(adata.obsm[spatial_key]).astype(np.float64)
    else:
        where = "adata.obsm" if isinstance(data, AnnData) else f"mdata.obsm or mdata['{name}'].obsm"
        msg = (
            f"Expected coordinates of the spots in {where}, found none called {spatial_key!r}. Entries are "
            f"{list(adata.obsm)}. Name them with {argument('spatial_key')}."
        )
        raise KeyError(msg)
    if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
        msg = f"Expected 2 or 3 coordinates per spot in obsm['{spatial_key}'], found shape {coordinates.shape}."
        raise ValueError(msg)
    odd = ~np.isfinite(coordinates).all(1)
    if odd.any():
        msg = (
            f"Expected coordinates of every spot in obsm['{spatial_key}'], found {int(odd.sum())} without, in section "
            f"{first_of(sorted(set(section[odd])))}. Drop these spots."
        )
        raise ValueError(msg)
    return coordinates
