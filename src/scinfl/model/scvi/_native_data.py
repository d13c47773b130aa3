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


def native_form(adata: AnnData, modalities: Mapping[str, int], layer: str | None, *, in_mudata: bool) -> Any:
    """A copy of cells as scvi-tools reads them: one table, proteins in ``obsm``, or a table for each modality."""
    if not modalities:
        return adata.copy()
    values, own = values_of(adata, layer), slices_of(modalities)
    tables = {
        _NAMES[name]: AnnData(values[:, columns].copy(), adata.obs.copy(), adata.var.iloc[columns].copy())
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
    mdata.obs = adata.obs.copy()
    mdata.obs["_indices"] = np.arange(adata.n_obs)
    return mdata


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
        options["unlabeled_category"] = setup["unlabeled_category"]
    kind.setup_anndata(cells, **{name: value for name, value in options.items() if name in known})
