"""What spots must be like before a model reads them, in terms of the experiment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from scinfl import _names
from scinfl._checks import first_of, warn
from scinfl._coordinates import elsewhere, in_tissue
from scinfl._spelling import argument
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._measured import Measured
from scinfl.privacy import Key

_LEAST_SPOTS = 10  # what sums of a site are taken over at least


def several_sites(site: np.ndarray, site_key: str) -> None:
    """Refuse a single site."""
    if (n := len(np.unique(site))) < 2:
        msg = (
            f"Expected obs['{site_key}'] to name at least 2 sites, found {n}. Train one pooled site with "
            "`site_key=None`; sections that simulate sites can be named by `site_key`."
        )
        raise ValueError(msg)


def one_site_per_section(section: np.ndarray, site: np.ndarray) -> None:
    """Refuse a section that is at several sites."""
    pairs = pd.DataFrame({"section": section, "site": site.astype(str)}).drop_duplicates()
    if (twice := pairs["section"][pairs["section"].duplicated()].unique()).size:
        msg = (
            f"Expected every section at one site, found {len(twice)} at several: {first_of(twice)}. Name sections "
            "of different sites differently."
        )
        raise ValueError(msg)


def known_values(matrix: Matrix, adata: AnnData, of: str) -> None:
    """Refuse missing and infinite values."""
    odd = ~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)
    if odd.any():
        columns = np.unique(matrix.indices[odd]) if sparse.issparse(matrix) else np.flatnonzero(odd.any(0))
        msg = (
            f"Expected a value of every feature{of} in every spot, found {int(odd.sum())} that are missing (NaN) or "
            f"infinite, in {first_of(adata.var_names[columns])}. Drop these features or spots."
        )
        raise ValueError(msg)


def same_features(adata: AnnData, of: str, section_key: str) -> None:
    """Refuse a modality of which some sections measured other features."""
    if _names.MEASURED not in adata.varm:
        return
    lacking = ~np.asarray(adata.varm[_names.MEASURED], dtype=bool)
    if lacking.any():
        sections = adata.obs[section_key].astype("category").cat.categories if section_key in adata.obs else []
        names = [str(section) for section, lacks in zip(sections, lacking.sum(0).tolist(), strict=False) if lacks]
        msg = (
            f"Expected all sections to measure the same features{of}, found {int(lacking.any(1).sum())} that some did "
            f"not: section {first_of(names)}. Join them with `scinfl.pp.join_sections(join='inner')`, or keep what all "
            "have with `scinfl.pp.align_genes`."
        )
        raise ValueError(msg)


def fits_normalisation(matrix: Matrix, of: str, how: str) -> None:
    """Refuse negative values where logarithms are taken."""
    if how != "none" and min(matrix.shape) and (least := matrix.min()) < 0:
        msg = (
            f"Expected counts{of} to normalise by '{how}', found values down to {least:g}. Name a layer with counts, "
            "or set `normalise` to 'none' for values that are normalised already."
        )
        raise ValueError(msg)


def enough_spots(found: Mapping[str, Measured]) -> None:
    """Refuse a site with so few spots of a modality that its sums would be almost theirs."""
    for modality, own in found.items():
        sites, sizes = np.unique(own.site, return_counts=True)
        few = sizes < _LEAST_SPOTS
        if few.any() or not len(sizes):
            of = f" of '{modality}'" if own.modality else ""
            what = [f"{n} at site '{site}'" for site, n in zip(sites[few], sizes[few], strict=True)]
            msg = (
                f"Expected at least {_LEAST_SPOTS} spots{of} at every site that measured it, found "
                f"{first_of(what) or 'none'}. Leave their sections out: a trained model embeds them nevertheless."
            )
            raise ValueError(msg)


def sections_of_several(section: np.ndarray, section_key: str) -> None:
    """Refuse a column that names spots in place of sections."""
    if (n := len(np.unique(section))) > len(section) / 2:
        msg = (
            f"Expected sections of several spots in obs['{section_key}'], found {n} sections of {len(section)} spots. "
            f"Name the column of sections with {argument('section_key')}."
        )
        raise ValueError(msg)


def paired(mdata: MuData, found: Mapping[str, Measured]) -> None:
    """Refuse sections in which modalities hold other spots, or the same in another order."""
    names = mdata.obs_names.to_numpy()
    seen: dict[str, tuple[str, np.ndarray]] = {}
    for modality, own in found.items():
        for section in np.unique(own.section):
            rows = own.rows[own.section == section]
            other, expected = seen.setdefault(section, (modality, rows))
            if np.array_equal(rows, expected):
                continue
            if len(rows) != len(expected) or set(rows) != set(expected):
                odd = names[np.setxor1d(rows, expected)]
                msg = (
                    f"Expected '{other}' and '{modality}' to measure the same spots of section '{section}', found "
                    f"{len(odd)} in one alone: {first_of(list(odd))}. Drop these spots from both."
                )
            else:
                msg = (
                    f"Expected the spots of section '{section}' in the same order in '{other}' and '{modality}', found "
                    "another order. If the names are right, sort both: `mdata.mod[name] = "
                    "mdata.mod[name][mdata.mod[name].obs_names.sort_values()].copy()`."
                )
            raise ValueError(msg)


def same_places(found: Mapping[str, Measured], spatial_key: str) -> None:
    """Refuse a spot that two modalities put at different places."""
    first: dict[str, tuple[str, np.ndarray]] = {}
    for modality, own in found.items():
        for section in np.unique(own.section):
            at = own.section == section
            other, expected = first.setdefault(section, (modality, own.coordinates[at]))
            if not elsewhere(own.coordinates[at], expected).any():
                continue
            msg = (
                f"Expected '{other}' and '{modality}' to put the spots of section '{section}' at the same places, "
                f"found other coordinates in obsm['{spatial_key}']. Correct them, or write those that hold to "
                f"mdata.obsm['{spatial_key}']."
            )
            raise ValueError(msg)


def linked(sections: Mapping[str, Collection[str]]) -> None:
    """Refuse modalities that no section links, given the sections that measured each."""
    groups: list[set[str]] = []
    for modality in sections:
        near = [group for group in groups if any(set(sections[modality]) & set(sections[own]) for own in group)]
        groups = [group for group in groups if group not in near] + [set().union({modality}, *near)]
    if len(groups) < 2:
        return
    shown = [f"{sorted(group)} (of {first_of(sorted(set().union(*(sections[m] for m in group))))})" for group in groups]
    one, other = sorted(groups[0])[0], sorted(groups[1])[0]
    msg = (
        f"Expected sections that link all modalities, found none that links {' with '.join(shown)}. Add a section that "
        f"measured both '{one}' and '{other}', or integrate these groups one by one."
    )
    raise ValueError(msg)


def warn_of_background(data: AnnData | MuData) -> None:
    """Warn of spots that are left out because they lie outside of the tissue."""
    parts = [data] if isinstance(data, AnnData) else [data, *data.mod.values()]
    if outside := max(int((~in_tissue(part.obs)).sum()) for part in parts):
        warn(
            f"{outside} spots are outside of the tissue (obs['in_tissue'] is 0) and left out: their embedding is NaN. "
            "Drop them with `adata = adata[adata.obs['in_tissue'] == 1].copy()`."
        )


def warn_of_pairs(owners: Mapping[str, Sequence[str]], n_sites: int, key: Key | None) -> None:
    """Warn of sums that show a single site, where one or two of more sites measured a modality."""
    alone, pairs = (
        [f"'{modality}' ({first_of(sites)})" for modality, sites in owners.items() if len(sites) == n < n_sites]
        for n in (1, 2)
    )
    if key is not None and alone:
        warn(
            f"One site alone measured {', '.join(alone)}: what is agreed on for it before the first round (components, "
            "means, scales) is that of this site, and nothing hides it. Let others measure it if that matters."
        )
    if key is not None and pairs:
        warn(
            f"Two sites alone measured {', '.join(pairs)}: the server cannot read their sums, but each of the two can "
            "subtract its own and sees the other's. Let a third site measure it if that matters."
        )
