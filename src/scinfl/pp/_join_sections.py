"""Several sections as one AnnData."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl._checks import an_anndata, first_of, layers_of, missing, mixes_text, one_of, values_of, warn
from scinfl._coordinates import coordinates_of, in_tissue
from scinfl.pp._align_genes import align_genes


def join_sections(
    adatas: Mapping[str, AnnData] | Sequence[AnnData],
    *,
    section_key: str = "section",
    site_key: str | None = None,
    join: Literal["same", "inner", "outer"] = "same",
    spatial_key: str = "spatial",
    prefix: Literal["collisions", "always"] = "collisions",
) -> AnnData:
    """Put the spots of several sections into one new AnnData, as models take them.

    This pools what it is given: use it for the sections of one site, or to simulate several.

    The new AnnData holds X, and what every section has: columns of ``.obs`` (with the categories of all), layers,
    coordinates. Of ``.var`` it keeps columns that agree in all sections, of ``.uns`` images under
    ``spatial_key``: the one library of a section gets the name of the section, so that ``squidpy.pl.spatial_scatter``
    finds it with ``library_key=section_key``; others keep theirs, unless two sections use it for different ones. Spots
    outside of the tissue (``.obs["in_tissue"]`` is 0) are left out with a warning. Embeddings, pairwise distances and
    ``.raw`` stay behind: what was computed on each section alone cannot be compared between them. Nothing is changed in
    place.

    Spots keep their names where they are unique. Names that occur more than once become ``"{section}-{name}"``, in all
    sections in which they occur.

    Parameters
    ----------
    adatas
        AnnData by the name of their section; or a list of AnnData whose column ``section_key`` names it. Without this
        column in any of them, sections of a list are called ``"0"``, ``"1"``, … by their place.
    section_key
        Column of ``.obs`` for the section.
    site_key
        Column of ``.obs`` with the site, which every spot must then have. A section belongs to one site.
    join
        ``"same"`` expects the same features everywhere, in any order; the first section gives the order. ``"inner"``
        keeps the features in common. ``"outer"`` keeps all and writes 0 where a section did not measure one: to a model
        this looks like a feature that is absent from the tissue, so prefer the others. Which of the zeros are real
        is stored in ``.varm["infl_measured"]`` (features × sections, sections in the order of the categories).
    spatial_key
        Entry of ``.obsm`` with the coordinates, 2 or 3 columns.
    prefix
        ``"always"`` puts the section before every name. Modalities that are joined one by one then give a spot the same
        name, whichever sections measured them.

    Returns
    -------
    A new AnnData, sections in the order given.

    Raises
    ------
    KeyError
        If a section lacks a column or coordinates.
    ValueError
        If features, coordinates, spot names, sections or sites do not fit together.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).random((700, 2))
    >>> joined = si.pp.join_sections({"left": adata[:300], "right": adata[200:]})
    >>> joined.n_obs, joined.obs["section"].cat.categories.to_list(), joined.obs_names[250].split("-")[0]
    (800, ['left', 'right'], 'left')
    """
    one_of("join", join, ["same", "inner", "outer"])
    one_of("prefix", prefix, ["collisions", "always"])
    if isinstance(adatas, AnnData):
        msg = "Expected `adatas` to hold several AnnData, found one AnnData. Pass `{'name': adata, …}` or a list."
        raise TypeError(msg)
    if not len(adatas):
        msg = "Expected at least one section in `adatas`, found none."
        raise ValueError(msg)
    every = list(adatas.values()) if isinstance(adatas, Mapping) else list(adatas)
    for one in every:
        an_anndata(one, "adatas")
    if not isinstance(adatas, Mapping) and not any(section_key in one.obs for one in every):
        adatas = {str(number): one for number, one in enumerate(every)}
    every = _in_tissue(every)
    sections = _sections(adatas, every, section_key)
    where = ["section " + first_of(list(dict.fromkeys(names))) for names in sections]
    _check(every, where)
    if site_key is not None:
        _check_sites(every, where, sections, site_key)
    _check_features(every, where, join)
    coordinates = _coordinates(every, where, spatial_key)
    pieces = _pieces(every, _spot_names(every, sections, prefix), sections, spatial_key)
    align_genes(pieces[0], pieces[1:], how="union" if join == "outer" else "intersection")
    joined = ad.concat(pieces, merge="same", uns_merge="unique")
    del joined.uns[_names.UNS]  # what `align_genes` noted of the pieces
    for name in (column for column in joined.obs if mixes_text(joined.obs[column])):
        column = joined.obs[name].astype(object)
        joined.obs[name] = column.where(column.isna(), column.astype(str))
        warn(f"Made text of obs['{name}'], which is text in some sections and something else in others.")
    section = np.concatenate(sections)
    joined.obs[section_key] = pd.Categorical(section, list(dict.fromkeys(section)))
    joined.obsm[spatial_key] = np.concatenate(coordinates)
    if join == "outer":
        measured = [
            joined.var_names.isin(one.var_names)
            for one, names in zip(every, sections, strict=True)
            for _ in dict.fromkeys(names)
        ]
        joined.varm[_names.MEASURED] = np.stack(measured, axis=1)
    return joined


def _sections(
    adatas: Mapping[str, AnnData] | Sequence[AnnData], every: Sequence[AnnData], section_key: str
) -> list[np.ndarray]:
    """Section of every spot of each AnnData."""
    if isinstance(adatas, Mapping):
        sections = [np.full(one.n_obs, str(name), dtype=object) for name, one in zip(adatas, every, strict=True)]
        for one, names in zip(every, sections, strict=True):
            if (
                section_key in one.obs
                and (other := one.obs[section_key][one.obs[section_key].astype(str) != names]).size
            ):
                msg = (
                    f"Expected the section '{names[0]}' in adata.obs['{section_key}'], found {other.iloc[0]!r}. Pass a "
                    "list to use this column, or name another with `section_key`."
                )
                raise ValueError(msg)
    else:
        for number, one in enumerate(every):
            if section_key not in one.obs or missing(one.obs[section_key]).any():
                msg = (
                    f"Expected a section for every spot in adatas[{number}].obs['{section_key}'], found none. Pass a "
                    "dict of AnnData by section, or name the column with `section_key`."
                )
                raise KeyError(msg)
        sections = [one.obs[section_key].astype(str).to_numpy(dtype=object) for one in every]
    counts = Counter(name for names in sections for name in set(names))
    if twice := [name for name, count in counts.items() if count > 1]:
        msg = f"Expected each section in one AnnData, found {first_of(twice)} in several. Name sections differently."
        raise ValueError(msg)
    return sections


def _check(every: Sequence[AnnData], where: Sequence[str]) -> None:
    for number, (one, name) in enumerate(zip(every, where, strict=True)):
        if not one.n_obs:
            msg = f"Expected spots in every section, found none in number {number + 1} of `adatas`. Leave it out."
            raise ValueError(msg)
        if one.isbacked:
            msg = f"Expected data in memory, found {name} in a file. Read it with `adata = adata.to_memory()`."
            raise ValueError(msg)
        if (one.X is None) != (every[0].X is None):
            lacking = name if one.X is None else where[0]
            msg = f"Expected values in .X of all sections or of none, found none in {lacking}. Copy a layer there."
            raise ValueError(msg)
        if len(twice := one.var_names[one.var_names.duplicated()].unique()):
            msg = (
                f"Expected every feature once, found {len(twice)} twice in {name}: {first_of(list(twice))}. Sum or "
                "drop them, or name them apart with `adata.var_names_make_unique()` in all sections."
            )
            raise ValueError(msg)


def _check_sites(every: Sequence[AnnData], where: Sequence[str], sections: Sequence[np.ndarray], site_key: str) -> None:
    for one, name, section in zip(every, where, sections, strict=True):
        if site_key not in one.obs or missing(one.obs[site_key]).any():
            msg = (
                f"Expected a site for every spot in adata.obs['{site_key}'], found spots without in {name}. Write it, "
                f"for example `adata.obs['{site_key}'] = 'hospital_1'`."
            )
            raise KeyError(msg)
        n_sites = one.obs[site_key].groupby(section).nunique()
        if (n_sites > 1).any():
            msg = (
                f"Expected every section at one site, found section {n_sites.idxmax()} at {n_sites.max()}. Name "
                "sections of different sites differently."
            )
            raise ValueError(msg)


def _check_features(every: Sequence[AnnData], where: Sequence[str], join: str) -> None:
    expected = shared = every[0].var_names
    for one, name in zip(every, where, strict=True):
        lacking, more = expected.difference(one.var_names), one.var_names.difference(expected)
        if join == "same" and (len(lacking) or len(more)):
            msg = (
                f"Expected the {len(expected)} features of {where[0]} in every section, found {len(lacking)} missing "
                f"in {name} ({first_of(lacking, 3) or 'none'}) and {len(more)} others ({first_of(more, 3) or 'none'}). "
                "Keep the features in common with join='inner'."
            )
            raise ValueError(msg)
        shared = shared[shared.isin(one.var_names)]
        if not len(shared):
            msg = (
                f"Expected features in common, found none up to {name}: {where[0]} begins with "
                f"{first_of(expected, 2)}, {name} with {first_of(one.var_names, 2)}. Use the same kind of names "
                "(symbols or identifiers) in all sections."
            )
            raise ValueError(msg)


def _coordinates(every: Sequence[AnnData], where: Sequence[str], spatial_key: str) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for one, name in zip(every, where, strict=True):
        if spatial_key not in one.obsm:
            msg = (
                f"Expected coordinates in adata.obsm['{spatial_key}'] of {name}, found entries {list(one.obsm)}. Name "
                "one with `spatial_key`."
            )
            raise KeyError(msg)
        places = coordinates_of(one.obsm[spatial_key], f"adata.obsm['{spatial_key}'] of {name}")
        if places.shape[1] != (found or [places])[0].shape[1]:
            msg = (
                f"Expected as many coordinates of each spot in every section, found shape {places.shape} in {name} "
                f"after {found[0].shape[1]} columns in {where[0]}. Keep the same axes."
            )
            raise ValueError(msg)
        if odd := int((~np.isfinite(places)).any(1).sum()):
            msg = (
                f"Expected coordinates of every spot, found {odd} of {len(places)} without in {name}. Drop these spots."
            )
            raise ValueError(msg)
        found.append(places)
    return found


def _spot_names(every: Sequence[AnnData], sections: Sequence[np.ndarray], prefix: str) -> list[np.ndarray]:
    """Names of the spots of each AnnData, unique over all."""
    names = pd.Series(np.concatenate([one.obs_names.to_numpy(dtype=object) for one in every]))
    section = pd.Series(np.concatenate(sections))
    chosen = names.duplicated(keep=False) | (prefix == "always")
    names = names.where(~chosen, section + "-" + names)
    if (twice := names.duplicated()).any():
        which = section[twice].iloc[0]
        msg = (
            f"Expected spot names that are unique within a section, found {int(twice.sum())} repeated, the first in "
            f"section {which}. Number them with `adata.obs_names_make_unique()`."
        )
        raise ValueError(msg)
    return np.split(names.to_numpy(), np.cumsum([one.n_obs for one in every])[:-1])


def _in_tissue(every: Sequence[AnnData]) -> list[AnnData]:
    """Sections without the spots outside of their tissue."""
    inside = [in_tissue(one.obs) for one in every]
    if outside := sum(int((~spots).sum()) for spots in inside):
        warn(f"Left out {outside} spots outside of the tissue (obs['in_tissue'] is 0).")
    return [one if spots.all() else one[spots] for one, spots in zip(every, inside, strict=True)]


def _images(one: AnnData, section: np.ndarray, spatial_key: str) -> dict[str, object]:
    """Images of a section under its name, where that is clear."""
    if spatial_key not in one.uns:
        return {}
    images = one.uns[spatial_key]
    if len(images) == 1 and len(set(section)) == 1:
        images = {str(section[0]): next(iter(images.values()))}
    return {spatial_key: images}


def _pieces(
    every: Sequence[AnnData], names: Sequence[np.ndarray], sections: Sequence[np.ndarray], spatial_key: str
) -> list[AnnData]:
    """What all sections have, with new names of spots, as numbers; arrays are shared with the originals if possible."""
    columns = [name for name in every[0].obs if all(name in one.obs for one in every)]
    layers = [name for name in layers_of(every[0]) if all(name in one.layers for one in every)]
    return [
        AnnData(
            None if one.X is None else values_of(one, None),
            one.obs[columns].set_axis(index),
            one.var,
            layers={name: values_of(one, name) for name in layers},
            uns=_images(one, section, spatial_key),
        )
        for one, index, section in zip(every, names, sections, strict=True)
    ]
