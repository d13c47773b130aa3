"""One table of all modalities."""

from __future__ import annotations

from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from scinfl._checks import an_anndata, first_of, values_of
from scinfl._names import FEATURE_TYPES, GENES, PEAKS, PROTEINS

_USUAL = {
    **dict.fromkeys(("rna", "gex"), GENES),
    **dict.fromkeys(("atac", "peaks"), PEAKS),
    **dict.fromkeys(("protein", "prot", "adt"), PROTEINS),
}


def join_modalities(
    mdata: MuData, *, feature_types: Mapping[str, str] | None = None, layer: str | None = None
) -> AnnData:
    """One table of the counts of all modalities, as models of several modalities read them.

    Cells that lack a modality have zeros there, which ``MULTIVI`` takes for not measured. A feature whose name occurs
    in several modalities gets that of its modality before it.

    Parameters
    ----------
    mdata
        Modalities by name, raw counts. ``mdata.obs`` holds sites and labels.
    feature_types
        ``"Gene Expression"``, ``"Peaks"`` or ``"Antibody Capture"`` by modality; by default that of ``"rna"``,
        ``"gex"``, ``"atac"``, ``"peaks"``, ``"protein"``, ``"prot"`` and ``"adt"``.
    layer
        Layer of each modality to use in place of X.

    Returns
    -------
    Cells × features of all modalities (genes first, then peaks, then proteins; sparse), with
    ``.var["feature_types"]`` and the columns of ``mdata.obs``.

    Raises
    ------
    ValueError
        If a modality has no type, or two have the same.

    Examples
    --------
    >>> import anndata as ad, mudata as mu, numpy as np, scinfl as si
    >>> rna, protein = (ad.AnnData(np.ones((2, n), np.float32)) for n in (3, 2))
    >>> rna.var_names, protein.var_names = ["CD3D", "CD4", "ACTB"], ["CD3", "CD14"]
    >>> adata = si.pp.join_modalities(mu.MuData({"rna": rna, "protein": protein}))
    >>> list(adata.var_names)
    ['CD3D', 'CD4', 'ACTB', 'CD3', 'CD14']
    """
    an_anndata(mdata, "mdata", "MuData")
    types = {**_USUAL, **(feature_types or {})}
    if strange := sorted(set(mdata.mod) - set(types)):
        msg = (
            f"Expected a type for every modality, found none for {first_of(strange)}. Name it, for example "
            f"`feature_types={{'{strange[0]}': '{GENES}'}}`."
        )
        raise ValueError(msg)
    by_type = {types[name]: name for name in mdata.mod}
    if len(by_type) < len(mdata.mod) or (odd := sorted(set(by_type) - {GENES, PEAKS, PROTEINS})):
        found = "two of one type" if len(by_type) < len(mdata.mod) else first_of(odd)
        msg = f"Expected modalities of the types '{GENES}', '{PEAKS}' and '{PROTEINS}', found {found}."
        raise ValueError(msg)
    order = {what: by_type[what] for what in (GENES, PEAKS, PROTEINS) if what in by_type}
    counts = pd.Series(np.concatenate([mdata.mod[name].var_names for name in order.values()])).value_counts()
    twice = set(counts.index[counts > 1])
    tables = []
    for what, name in order.items():
        own = mdata.mod[name]
        var = pd.DataFrame(
            {FEATURE_TYPES: what}, index=[f"{name}:{gene}" if gene in twice else gene for gene in own.var_names]
        )
        values = sparse.csr_matrix(values_of(own, layer)).astype(np.float32)
        tables.append(AnnData(values, pd.DataFrame(index=own.obs_names), var))
    joined = ad.concat(tables, axis="var", join="outer", fill_value=0, merge="first")[mdata.obs_names].copy()
    joined.obs = mdata.obs.copy()
    return joined
