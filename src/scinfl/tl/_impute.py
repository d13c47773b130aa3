"""Impute modalities that a section did not measure from those that it did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from sklearn.neighbors import NearestNeighbors

from scinfl import _names
from scinfl._checks import first_of, one_of, whole_number
from scinfl._spelling import argument
from scinfl.model import SpaMosaic

_METHODS = ("auto", "decoder", "neighbours")


def impute(
    mdata: MuData,
    model: SpaMosaic,
    *,
    modality: str,
    sections: Sequence[str] | None = None,
    method: str = "auto",
    n_neighbours: int = 10,
) -> AnnData:
    """Impute a modality for sections that did not measure it.

    ``"decoder"``
        Predicted from the other modalities of a spot, by the components that all sites share. No spot of another site
        is used.
    ``"neighbours"``
        The mean of the nearest spots in the embedding, among spots of the same site that measured the modality.
    ``"auto"``
        Neighbours for a section whose site has enough of them, the decoder for others.

    A new AnnData, because the spots are others than those of ``mdata[modality]``; ``mdata`` is left as it is.

    Parameters
    ----------
    mdata
        Sections with the modalities that the model was trained on.
    model
        Trained and unlocked :class:`scinfl.model.SpaMosaic`.
    modality
        What to impute.
    sections
        Which sections; by default all that lack the modality. One that has it is imputed from its other modalities.
    method
        See above.
    n_neighbours
        For ``"neighbours"``.

    Returns
    -------
    Spots × features: ``X`` on the scale of the modality's normalisation, ``layers["std"]`` its standard error (the root
    mean square error of the feature in training for the decoder, the deviation among the neighbours otherwise; NaN
    where it is not known), ``obs`` of the spots and the method (``"infl_imputed_by"``), ``obsm["spatial"]``.

    Raises
    ------
    ValueError
        If an argument cannot be used, no section lacks the modality, or a section has nothing to impute it from.

    Examples
    --------
    >>> import scinfl as si
    >>> mdata = si.datasets.mosaic_simulated(n_spots=200)
    >>> si.model.SpaMosaic.setup_mudata(mdata, section_key="section", site_key="site")
    >>> model = si.model.SpaMosaic(mdata, n_components=10, key_scheme=None)
    >>> model.train(n_rounds=2, progress=False)
    >>> imputed = si.tl.impute(mdata, model, modality="adt")
    >>> imputed.shape, imputed.obs["section"].unique().tolist()
    ((200, 40), ['section_2'])
    """
    one_of("method", method, _METHODS)
    whole_number("n_neighbours", n_neighbours, 1)
    one_of("modality", modality, list(model.feature_names))
    spots = model.spots(mdata)
    section, site = spots["section"].to_numpy(), spots["site"].to_numpy()
    has = spots[modality].to_numpy()
    if sections is None:
        sections = sorted(set(section[~has]))
        if not sections:
            msg = f"Expected a section that lacks '{modality}', found none. Name sections to impute nevertheless."
            raise ValueError(msg)
    if unknown := [name for name in sections if name not in set(section)]:
        msg = f"Expected {argument('sections')} among {first_of(sorted(set(section)))}, found {first_of(unknown)}."
        raise ValueError(msg)
    names = model.feature_names[modality]
    values = np.full((len(section), len(names)), np.nan, np.float32)
    std = np.full_like(values, np.nan)
    by = np.full(len(section), "", dtype=object)
    near = {
        name: np.flatnonzero(has & (site == site[section == name][0]) & (section != name))
        for name in dict.fromkeys(sections)
    }
    by_neighbours = [name for name, rows in near.items() if method != "decoder" and len(rows) >= n_neighbours]
    by_decoder = [name for name in near if name not in by_neighbours]
    if method == "neighbours" and by_decoder:
        msg = (
            f"Expected at least {n_neighbours} spots that measured '{modality}' at the site of section "
            f"'{by_decoder[0]}', found {len(near[by_decoder[0]])}. Lower `n_neighbours`, or use `method='decoder'`."
        )
        raise ValueError(msg)
    if by_neighbours:
        others = [name for name in model.feature_names if name != modality]
        embedding, own = model.get_latent_representation(mdata), model.get_latent_representation(mdata, modality=others)
    for name in by_neighbours:
        rows = np.flatnonzero((section == name) & np.isfinite(own).all(1))
        measured = model.normalised(modality, mdata, near[name])
        values[rows], std[rows] = _of_neighbours(own[rows], embedding[near[name]], measured, n_neighbours)
        by[rows] = "neighbours"
    if by_decoder:
        rows = np.flatnonzero(np.isin(section, by_decoder))
        values[rows] = model.impute(modality, mdata)[rows]
        std[rows], by[rows] = model.imputation_error(modality), "decoder"
    inside = spots[list(model.feature_names)].any(axis=1).to_numpy()  # not outside of the tissue
    chosen = np.flatnonzero(np.isin(section, list(sections)) & inside)
    if lacking := sorted(set(section[chosen[np.isnan(values[chosen]).any(1)]])):
        msg = (
            f"Expected another modality of every spot to impute '{modality}' from, found none for spots of section "
            f"{first_of(lacking)}. Leave them out with `sections`."
        )
        raise ValueError(msg)
    obs = mdata.obs.iloc[chosen].copy()
    obs["section"], obs["site"] = pd.Categorical(section[chosen]), pd.Categorical(site[chosen])
    obs[_names.IMPUTED_BY] = pd.Categorical(by[chosen])
    imputed = AnnData(values[chosen], obs, pd.DataFrame(index=names), layers={"std": std[chosen]})
    imputed.obsm["spatial"] = np.stack(spots["spatial"].to_numpy()[chosen])
    imputed.uns[_names.UNS] = {"impute": {"modality": modality, "method": method, "n_neighbours": n_neighbours}}
    return imputed


def _of_neighbours(
    codes: np.ndarray, measured_codes: np.ndarray, measured: np.ndarray, n_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a modality among the nearest spots that measured it."""
    if not len(codes):
        return np.empty((0, measured.shape[1])), np.empty((0, measured.shape[1]))
    nearest = NearestNeighbors(n_neighbors=n_neighbours).fit(measured_codes).kneighbors(codes)[1]
    found = measured[nearest.ravel()].reshape(len(codes), n_neighbours, -1)
    # of a new value around a mean that was estimated itself
    return found.mean(1), found.std(1, ddof=min(1, n_neighbours - 1)) * np.sqrt(1 + 1 / n_neighbours)
