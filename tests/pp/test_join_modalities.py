"""One table of all modalities."""

from __future__ import annotations

import anndata as ad
import mudata as mu
import numpy as np
import pandas as pd
import pytest

from scinfl.pp import join_modalities

pytestmark = pytest.mark.filterwarnings("ignore:.*var_names are")


def make_mdata():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    cells = [f"cell_{i}" for i in range(4)]
    protein = ad.AnnData(values[1:], pd.DataFrame(index=cells[1:]), pd.DataFrame(index=["CD4", "CD8", "IgG"]))
    rna = ad.AnnData(values[:3], pd.DataFrame(index=cells[:3]), pd.DataFrame(index=["CD4", "ACTB", "GAPDH"]))
    mdata = mu.MuData({"protein": protein, "rna": rna})
    mdata.obs["site"] = ["a", "a", "b", "b"]
    return mdata


def test_genes_come_first_and_cells_that_lack_a_modality_have_zeros():
    mdata = make_mdata()
    joined = join_modalities(mdata)
    assert list(joined.var_names) == ["rna:CD4", "ACTB", "GAPDH", "protein:CD4", "CD8", "IgG"]
    assert list(joined.var["feature_types"]) == ["Gene Expression"] * 3 + ["Antibody Capture"] * 3
    assert list(joined.obs_names) == list(mdata.obs_names)
    pd.testing.assert_series_equal(joined.obs["site"], mdata.obs["site"])
    dense = joined.to_df()
    for name, own in mdata.mod.items():
        columns = [f"{name}:CD4", *own.var_names[1:]]
        np.testing.assert_array_equal(dense.loc[own.obs_names, columns], own.X)
        assert not dense.loc[~dense.index.isin(own.obs_names), columns].to_numpy().any()


def test_modalities_without_a_type_or_of_one_type_are_refused():
    mdata = make_mdata()
    with pytest.raises(ValueError, match="two of one type"):
        join_modalities(mdata, feature_types={"protein": "Gene Expression"})
    with pytest.raises(ValueError, match="found Lipids"):
        join_modalities(mdata, feature_types={"protein": "Lipids"})
    with pytest.raises(ValueError, match="found none for spots"):
        join_modalities(mu.MuData({"spots": mdata["rna"]}))
