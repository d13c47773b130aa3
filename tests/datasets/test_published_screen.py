"""From the published archive to a figure: the lines of the guide, on a file in the published layout."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl.datasets import _public

GUIDE = Path(__file__).parents[2] / "docs" / "gears.md"


def published(adata):
    """Cells in the layout of the files that GEARS published: ids as index, names beside, rankings by id."""
    names = adata.var_names.to_numpy()
    ids = np.array([f"ENSG{number:011d}" for number in range(adata.n_vars)])
    condition = adata.obs["condition"].astype(str)
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(condition),
            "cell_type": pd.Categorical(["A549"] * adata.n_obs),
            "dose_val": pd.Categorical(condition.map(lambda name: "+".join("1" for _ in name.split("+")))),
            "control": (condition == "ctrl").astype(int),
        }
    )
    obs["condition_name"] = pd.Categorical("A549_" + condition + "_" + obs["dose_val"].astype(str))
    made = type(adata)(adata.X, obs, pd.DataFrame({"gene_name": names}, index=pd.Index(ids, name="gene_id")))
    made.layers["counts"] = adata.layers["counts"]
    keys = [name for name in obs["condition_name"].cat.categories if "_ctrl_" not in name]
    made.uns["rank_genes_groups_cov_all"] = {key: ids[::-1].copy() for key in keys}
    for name in ("top_non_dropout_de_20", "top_non_zero_de_20"):
        made.uns[name] = {key: ids[:20].copy() for key in keys}
    for name in ("non_dropout_gene_idx", "non_zeros_gene_idx"):
        made.uns[name] = {key: np.arange(20) for key in keys}
    return made


@pytest.mark.filterwarnings("ignore:Left out:UserWarning")
def test_the_lines_of_the_guide_lead_from_the_archive_to_a_figure(server, tmp_path):
    adata = si.datasets.perturbseq_simulated(60, n_singles=14, n_doubles=12, n_cells=8, n_controls=80)
    published(adata).write_h5ad(tmp_path / "screen.h5ad")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("norman/perturb_processed.h5ad", (tmp_path / "screen.h5ad").read_bytes())
    genes = list(adata.uns["gene_terms"])
    table = pd.DataFrame([(a, b, 0.5 if a != b else 1.0) for a in genes for b in genes[:6]])
    text = table.to_csv(index=False, header=["source", "target", "importance"]).encode()
    ontology = io.BytesIO()
    with tarfile.open(fileobj=ontology, mode="w:gz") as file:
        member = tarfile.TarInfo("go_essential_all/go_essential_all.csv")
        member.size = len(text)
        file.addfile(member, io.BytesIO(text))
    server.files = {str(_public._SCREENS["norman"]): archive.getvalue(), str(_public._ONTOLOGY): ontology.getvalue()}
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)[1]
    assert "si.datasets.norman()" in code
    assert "si.pl.perturbation(" in code
    held_out = genes[:2]
    for published_gene, gene in zip(("KLF1", "BAK1"), held_out, strict=True):
        code = code.replace(published_gene, gene)
    pair = next(name for name in adata.obs["condition"].unique() if len(set(name.split("+")) - {"ctrl"}) == 2)
    code = code.replace("+".join(reversed(held_out)), pair)
    found = {}
    exec(code, found)
    assert list(found["adata"].var_names) == list(adata.var_names)
    assert not [name for name in found["adata"].uns if name.startswith(("rank", "top_", "non_"))]
    table = found["table"]
    assert {"GEARS", "additive", "train mean"} <= set(table["method"])
    assert table.loc[(table["metric"] == "mse_de"), "value"].notna().all()
    assert [text.get_text() for text in found["ax"].get_legend().get_texts()][-1] == "GEARS"
