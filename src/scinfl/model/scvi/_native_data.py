"""Tables of cells in the form that a class of scvi-tools asks for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from scinfl._checks import values_of
from scinfl._names import GENES, PEAKS, PROTEINS
from scinfl.model.scvi._features import slices_of

_OBSM = "protein_expression"
_NAMES = {GENES: "rna", PEAKS: "atac", PROTEINS: "protein"}


def native_form(
    adata: AnnData, modalities: Mapping[str, int], setup: Mapping[str, Any], *, in_mudata: bool
) -> AnnData | MuData:
    """A copy of cells as scvi-tools reads them: one table, proteins in ``obsm``, or a table for each modality.

    Sites and labels are text in it, cells without a column of labels count as unlabelled, and counts are in memory.
    """
    layer, obs = setup["layer"], _text_columns(adata.obs, setup)
    values = values_of(adata, layer)
    values = sparse.csr_matrix(values, copy=True) if sparse.issparse(values) else np.array(values)
    if not modalities:
        cells = adata.to_memory() if adata.isbacked else adata.copy()
        cells.obs = obs
        if layer is None:
            cells.X = values
        else:
            cells.layers[layer] = values
        return cells
    own = slices_of(modalities)
    tables = {
        _NAMES[name]: AnnData(values[:, columns].copy(), obs.copy(), adata.var.iloc[columns].copy())
        for name, columns in own.items()
    }
    if not in_mudata:
        cells, proteins = tables["rna"], tables["protein"]
        dense = proteins.X.toarray() if sparse.issparse(proteins.X) else np.asarray(proteins.X)
        cells.obsm[_OBSM] = pd.DataFrame(dense, cells.obs_names, proteins.var_names)
        return cells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of mudata, on columns that it will no longer copy
        mdata = MuData(tables)
    mdata.obs = obs
    mdata.obs["_indices"] = np.arange(adata.n_obs)
    return mdata


def _text_columns(obs: pd.DataFrame, setup: Mapping[str, Any]) -> pd.DataFrame:
    """Columns of cells, with sites and labels as the text that networks know them by."""
    obs, labels_key, unlabeled = obs.copy(), setup["labels_key"], setup["unlabeled_category"]
    if unlabeled is not None and labels_key not in obs:
        obs[labels_key] = unlabeled
    for column in (setup["site_key"], labels_key):
        if column is not None:
            obs[column] = obs[column].astype(str)
    return obs


def register(kind: Any, cells: Any, setup: Mapping[str, Any], modalities: Mapping[str, int]) -> None:
    """Set cells up for a class of scvi-tools; in the names of its own setup."""
    if isinstance(cells, MuData):
        layers = {f"{_NAMES[name]}_layer": _NAMES[name] for name in modalities}
        kind.setup_mudata(cells, batch_key=setup["site_key"], modalities=layers)
        return
    known = signature(kind.setup_anndata).parameters
    options: dict[str, Any] = {
        "batch_key": setup["site_key"],
        "labels_key": setup["labels_key"],
        "layer": None if modalities else setup["layer"],
        "protein_expression_obsm_key": _OBSM,
    }
    if setup["unlabeled_category"] is not None:
        options["unlabeled_category"] = str(setup["unlabeled_category"])
    kind.setup_anndata(cells, **{name: value for name, value in options.items() if name in known})
