"""Spots of an AnnData or a MuData: sections, sites, coordinates, and what each modality measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from anndata import AnnData
from mudata import MuData

from scinfl._checks import complete, first_of, looks_like_counts, obs_column, told_apart, values_of
from scinfl._coordinates import coordinates_of, in_tissue
from scinfl._spelling import argument
from scinfl.model.base._cells import Matrix, owned
from scinfl.model.spamosaic import _spot_checks as check
from scinfl.model.spamosaic._given_graph import given_graph
from scinfl.model.spamosaic._measured import Measured
from scinfl.pp import joined_column, unique_spots

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
        found = joined_column(data, column, setting)
    where = f"{'adata' if isinstance(data, AnnData) else 'mdata'}.obs['{column}']"
    complete(found, "a value for every spot", where, "Drop these spots.")
    return told_apart(found, where).astype(str).to_numpy()


def read_spots(
    data: Data,
    *,
    section_key: str,
    site_key: str | None,
    spatial_key: str,
    layers: Mapping[str, str | None],
    normalise: Mapping[str, str] | None = None,
    graph: str | None = None,
    train: bool = True,
    elsewhere: bool = False,
) -> dict[str, Measured]:
    """What each modality measured in tissue, once it is known that it can be joined; spots in the order of names.

    Where other sites are ``elsewhere``, some modalities may have been measured there alone: they have no spots here.
    """
    section = column_of(data, section_key, "section_key")
    site = np.full(len(section), "all") if site_key is None else column_of(data, site_key, "site_key")
    if train and site_key is not None:
        check.several_sites(site, site_key)
    if train:
        check.sections_of_several(section, section_key)
    check.one_site_per_section(section, site)
    rank = np.empty(len(section), np.int64)
    rank[np.argsort(data.obs_names.to_numpy(str))] = np.arange(len(section))
    found = {}
    for name, adata in modalities_of(data).items():
        modality, of = (None, "") if isinstance(data, AnnData) else (name, f" of '{name}'")
        if not train and modality and not adata.n_obs:
            continue  # left over in a part of a MuData
        if train and (adata.n_obs or not elsewhere):
            owned(adata, of_mudata=isinstance(data, MuData))
        rows = _rows(data, name, adata)
        inside = np.flatnonzero(in_tissue(data.obs)[rows] & in_tissue(adata.obs))
        rows, matrix = rows[inside], _values(data, name, adata, layers.get(name))
        matrix = matrix if len(inside) == adata.n_obs else matrix[inside]
        check.known_values(matrix, adata, of)
        check.same_features(adata, of, section_key)
        first = np.argsort(rank[rows])[:_HEAD]
        is_theirs = elsewhere and not len(first)  # what they measured is counts, or they name how it is normalised
        how = (normalise or {}).get(name) or ("lognorm" if is_theirs else normalisation_of(name, matrix[first]))
        check.fits_normalisation(matrix, of, how)
        own = Measured(
            modality=modality,
            matrix=matrix,
            normalise=how,
            rows=rows,
            coordinates=_coordinates(data, adata, rows, inside, spatial_key, section[rows], name),
            section=section[rows],
            site=site[rows].astype(str),
            rank=rank[rows],
        )
        found[name] = own if graph is None else replace(own, graph=given_graph(adata, graph, inside, own.section, name))
    if isinstance(data, MuData):
        check.paired(data, found)
        check.same_places(found, spatial_key)
    if train:
        check.enough_spots({name: own for name, own in found.items() if len(own.rows) or not elsewhere})
    if train and not elsewhere:
        check.linked({name: set(own.section) for name, own in found.items()})
    return {name: own.take(np.argsort(own.rank)) for name, own in found.items()}


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
    unique_spots(adata, "" if isinstance(data, AnnData) else f" in '{name}'")
    if isinstance(data, AnnData):
        return np.arange(adata.n_obs)
    rows = data.obs_names.get_indexer(adata.obs_names)
    if (rows < 0).any():
        msg = f"Expected mdata.obs_names to hold the spots of '{name}', found others. Run `mdata.update()`."
        raise ValueError(msg)
    return rows


def _coordinates(
    data: Data,
    adata: AnnData,
    rows: np.ndarray,
    inside: np.ndarray,
    spatial_key: str,
    section: np.ndarray,
    name: str,
) -> np.ndarray:
    where = f"obsm['{spatial_key}']"
    if isinstance(data, MuData) and spatial_key in data.obsm:
        coordinates = coordinates_of(data.obsm[spatial_key], f"mdata.{where}")[rows]
    elif spatial_key in adata.obsm:
        at = "adata" if isinstance(data, AnnData) else f"mdata['{name}']"
        coordinates = coordinates_of(adata.obsm[spatial_key], f"{at}.{where}")[inside]
    else:
        places = "adata.obsm" if isinstance(data, AnnData) else f"mdata.obsm or mdata['{name}'].obsm"
        msg = (
            f"Expected coordinates of the spots in {places}, found none called {spatial_key!r}. Entries are "
            f"{list(adata.obsm)}. Name them with {argument('spatial_key')}."
        )
        raise KeyError(msg)
    odd = ~np.isfinite(coordinates).all(1)
    if odd.any():
        msg = (
            f"Expected coordinates of every spot in {where}, found {int(odd.sum())} without, in section "
            f"{first_of(sorted(set(section[odd])))}. Drop these spots."
        )
        raise ValueError(msg)
    return coordinates
