"""Names of perturbations and the genes they change."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.pp import perturbations

GENES = [f"G{i}" for i in range(12)]
CONDITIONS = ["ctrl", "G0+ctrl", "ctrl+G0", "G1", "G1+G0", "G0+G1", "G2+ctrl"]


def screen(n_each=8, conditions=CONDITIONS, *, form=np.asarray, dtype=np.float32, rng=0):
    """Cells whose perturbed genes are 3 higher."""
    generator = np.random.default_rng(rng)
    names = np.repeat(np.array(conditions, dtype=object), n_each)
    X = generator.gamma(2, 0.5, (len(names), len(GENES)))
    for row, name in enumerate(names):
        X[row, [GENES.index(gene) for gene in name.split("+") if gene in GENES]] += 3
    obs = pd.DataFrame({"condition": names}, index=[f"cell_{i}" for i in range(len(names))])
    return ad.AnnData(form(X.astype(dtype)), obs, pd.DataFrame(index=GENES))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_perturbation_has_one_name_and_its_genes_come_first(form, dtype):
    adata = screen(form=form, dtype=dtype)
    before = adata.X.copy()
    perturbations(adata, n_top=2)
    assert list(adata.obs["infl_perturbation"].cat.categories) == ["ctrl", "G0", "G0+G1", "G1", "G2"]
    assert adata.obs["infl_perturbation"].value_counts()["G0+G1"] == 16
    record = adata.uns["infl"]["perturbations"]
    assert (record["control"], record["condition_key"]) == ("ctrl", "condition")
    assert record["conditions"].tolist() == ["G0", "G0+G1", "G1", "G2"]
    assert record["n_cells"].tolist() == [16, 16, 8, 8]
    top = record["top_de"]
    assert (top[0, 0], set(top[1]), top[2, 0], top[3, 0]) == ("G0", {"G0", "G1"}, "G1", "G2")
    assert abs(adata.X - before).sum() == 0


def test_the_tables_leave_out_genes_that_are_not_expressed():
    for form in (np.asarray, sparse.csr_matrix):
        adata = screen()
        adata.X[adata.obs["condition"] == "G2+ctrl", 5] = 0  # a dropout: only the control expresses it
        adata.X[np.isin(adata.obs["condition"], ["G2+ctrl", "ctrl"]), 6] = 0
        adata.X = form(adata.X)
        perturbations(adata, n_top=14)
        record = adata.uns["infl"]["perturbations"]
        row = record["conditions"].tolist().index("G2")
        assert set(record["top_de"][row]) == {*GENES, ""}
        assert set(record["top_non_zero_de"][row]) == {*GENES, ""} - {"G5", "G6"}
        assert set(record["top_non_dropout_de"][row]) == {*GENES, ""} - {"G5"}
        assert record["top_de"].shape == (4, 14)


def test_the_record_survives_a_file(tmp_path):
    adata = screen()
    adata.uns["infl"] = {"other": "kept"}
    perturbations(adata, n_top=15)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert back.uns["infl"]["other"] == "kept"
    for name, value in adata.uns["infl"]["perturbations"].items():
        found = back.uns["infl"]["perturbations"][name]
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    pd.testing.assert_series_equal(back.obs["infl_perturbation"], adata.obs["infl_perturbation"])


def test_a_control_and_column_of_any_name_will_do():
    adata = screen()
    adata.obs["guide"] = adata.obs["condition"].str.replace("ctrl", "non-targeting").astype("category")
    perturbations(adata, "guide", control="non-targeting")
    assert adata.obs["infl_perturbation"].cat.categories[0] == "non-targeting"
    assert adata.uns["infl"]["perturbations"]["condition_key"] == "guide"


def test_genes_may_be_named_in_a_column_and_expression_lie_in_a_layer():
    adata = screen()
    adata.var["symbol"] = GENES
    adata.var_names = [f"ENSG{i}" for i in range(12)]
    adata.layers["logs"], adata.X = adata.X.copy(), np.full(adata.shape, np.nan)
    perturbations(adata, gene_key="symbol", layer="logs", n_top=1)
    record = adata.uns["infl"]["perturbations"]
    assert record["gene_key"] == "symbol"
    assert record["top_de"][0, 0] == "G0"


def test_unknown_genes_are_refused_or_dropped_but_never_controls(caplog):
    adata = screen(conditions=[*CONDITIONS, "multi", "G0+NEW"])
    with pytest.raises(ValueError, match=r"found 2 that are not, in 16 cells: NEW, multi\. .*unknown='drop'"):
        perturbations(adata)
    assert "infl_perturbation" not in adata.obs
    with pytest.raises(ValueError, match="in 8 cells: multi"):
        perturbations(adata, known_genes={"NEW"})
    with caplog.at_level(logging.INFO, "scinfl"):
        perturbations(adata, unknown="drop")
    assert "Dropped 16 cells whose perturbed genes are unknown: NEW, multi" in caplog.text
    other = screen()
    perturbations(other)
    assert adata.obs["infl_perturbation"].tolist() == other.obs["infl_perturbation"].tolist()
    known = screen(conditions=[*CONDITIONS, "G0+NEW"])
    perturbations(known, known_genes=iter(["NEW"]))
    assert "G0+NEW" in known.obs["infl_perturbation"].cat.categories
    kept = screen(conditions=[*CONDITIONS, "multi", "G0+NEW"])
    with caplog.at_level(logging.INFO, "scinfl"):
        perturbations(kept, unknown="keep")
    assert "Kept 16 cells whose perturbed genes are not measured: NEW, multi" in caplog.text
    assert {"multi", "G0+NEW"} <= set(kept.obs["infl_perturbation"])


def test_a_backed_file_is_named_too_and_drops_nothing(tmp_path):
    screen(conditions=[*CONDITIONS, "G0+NEW"]).write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    perturbations(backed, known_genes=["NEW"])
    memory = backed.to_memory()
    perturbations(memory, known_genes=["NEW"])
    assert (backed.uns["infl"]["perturbations"]["top_de"] == memory.uns["infl"]["perturbations"]["top_de"]).all()
    with pytest.raises(ValueError, match="backed"):
        perturbations(backed, unknown="drop")
    backed.file.close()


def spoil(adata, what):
    if what == "nan in X":
        adata.X[3, 4] = np.nan
    elif what == "inf in X":
        adata.X[3, 4] = np.inf
    elif what == "no X":
        del adata.X
    elif what == "missing":
        adata.obs["condition"] = adata.obs["condition"].where(adata.obs["condition"] != "G1")
    elif what == "malformed":
        adata.obs.iloc[0, 0] = "G0++G1"
    elif what == "no control":
        adata.obs["condition"] = adata.obs["condition"].str.replace("ctrl", "G3")
    elif what == "only control":
        adata.obs["condition"] = "ctrl"
    elif what == "twice":
        adata.var["symbol"] = ["A", "A", *GENES[2:]]
    return adata


@pytest.mark.parametrize(
    ("what", "arguments", "error", "message"),
    [
        ("", {"condition_key": "guide"}, KeyError, "Columns are condition"),
        ("", {"layer": "logs"}, KeyError, "layer"),
        ("", {"gene_key": "symbol"}, KeyError, "adata.var"),
        ("", {"unknown": "ignore"}, ValueError, "one of"),
        ("", {"n_top": 0}, ValueError, "from 1"),
        ("", {"known_genes": "genes.csv"}, TypeError, "Pass a list"),
        ("nan in X", {}, ValueError, "1 missing .NaN. in 1 features: G4"),
        ("inf in X", {}, ValueError, "1 infinite in 1 features: G4"),
        ("no X", {}, ValueError, "Name a layer"),
        ("missing", {}, ValueError, "found 8 without"),
        ("malformed", {}, ValueError, r"'G0\+\+G1'"),
        ("no control", {}, ValueError, r"== 'ctrl', found none. The commonest conditions are G.* as `control`"),
        ("only control", {}, ValueError, "perturbed cells in addition to the control"),
        (
            "twice",
            {"gene_key": "symbol"},
            ValueError,
            "found 1 that occur more than once: A. Rename",
        ),
    ],
)
def test_impossible_data_are_refused(what, arguments, error, message):
    adata = spoil(screen(), what)
    with pytest.raises(error, match=message):
        perturbations(adata, **arguments)
    assert "infl" not in adata.uns


def test_repeated_var_names_and_views_are_refused():
    adata = screen()
    with pytest.raises(ValueError, match=r"adata.copy\(\)"):
        perturbations(adata[:20])
    adata.var_names = [*GENES[:11], "G2"]
    with pytest.raises(ValueError, match=r"found 1 that occur more than once: G2\. Make them unique"):
        perturbations(adata)


def test_weak_data_are_warned_of():
    adata = screen()
    adata.X = np.round(adata.X * 20)
    with pytest.warns(UserWarning, match="looks like raw counts"):
        perturbations(adata)
    adata = screen()
    adata.X[:, [3, 4]] = 0
    with pytest.warns(UserWarning, match="found 2 that are zero in all cells: G3, G4. Remove them with"):
        perturbations(adata)
    adata = screen()
    adata.obs.iloc[-1, 0] = "G7+G1"
    with pytest.warns(UserWarning, match=r"found 1 of G1\+G7") as caught:
        perturbations(adata)
    assert caught[0].filename == __file__


def test_real_cells_are_named(shared):
    adata = ad.read_h5ad(shared("perturb/cropseq_mcf10a_28genes.h5ad"))
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match="found 1 of"), pytest.warns(UserWarning, match="zero in all cells: CDKN2A"):
        perturbations(adata, unknown="drop")
    assert {"unassigned", "multi"}.isdisjoint(adata.obs["infl_perturbation"])
    assert (adata.obs["infl_perturbation"] == "ctrl").sum() == 409
    record = adata.uns["infl"]["perturbations"]
    assert len(record["conditions"]) == adata.obs["infl_perturbation"].nunique() - 1
    assert record["n_cells"].sum() == adata.n_obs - 409
