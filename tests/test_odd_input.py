"""What users pass by mistake is refused in words of ours by every function that would read it, and never guessed at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import matplotlib as mpl
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scinfl as si

mpl.use("agg")
N = 36
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def cells(counts: bool = True) -> ad.AnnData:
    generator = np.random.default_rng(0)
    X = generator.poisson(2, (N, 8)).astype(np.float32)
    obs = {
        "site": ["a", "b", "c"] * (N // 3),
        "label": ["one", "two"] * (N // 2),
        "condition": np.repeat(["ctrl", "g0+ctrl", "g1+ctrl"], N // 3),
        "covariate": ["x", "y"] * (N // 2),
        "section": np.repeat(["s1", "s2"], N // 2),
    }
    index = [f"c{i}" for i in range(N)]
    adata = ad.AnnData(X if counts else np.log1p(X), pd.DataFrame(obs, index), pd.DataFrame(index=list("abcdefgh")))
    adata.var_names = [f"g{i}" for i in range(8)]
    adata.obsm["spatial"], adata.obsm["X_pca"] = generator.random((2, N, 2))
    return adata


def mdata() -> md.MuData:
    rna, protein = cells(), cells()
    protein.var_names = [f"p{i}" for i in range(8)]
    return md.MuData({"rna": rna, "adt": protein})


SUMS = {"site_key": "site", "protections": (), "min_cells": 2}
KINDS = {
    "Classifier": lambda a: si.model.Classifier.setup_anndata(a, "label", site_key="site"),
    "GEARS": lambda a: si.model.GEARS.setup_anndata(a, site_key="site", covariate_keys="covariate"),
    "SpaMosaic": lambda a: si.model.SpaMosaic.setup_anndata(a, "section"),
    "SCVI": lambda a: si.model.from_scvi("SCVI", a, site_key="site", labels_key="label", key_scheme=None),
    "clr": si.pp.clr,
    "scale": lambda a: si.pp.federated_scale(a, **SUMS),
    "hvg": lambda a: si.pp.federated_highly_variable_genes(a, 2, **SUMS),
    "pca": lambda a: si.pp.federated_pca(a, 2, **SUMS),
    "lsi": lambda a: si.pp.federated_lsi(a, 2, **SUMS),
    "class_means": lambda a: si.pp.federated_class_means(a, "label", **SUMS),
    "offsets": lambda a: si.pp.federated_offsets(a, site_key="site", protections=()),
    "split_sites": lambda a: si.pp.split_sites(a, 2),
    "perturbations": si.pp.perturbations,
    "align_genes": lambda a: si.pp.align_genes(cells(), [a]),
    "join_sections": lambda a: si.pp.join_sections([a]),
    "confusion": lambda a: si.pl.confusion(a, "label", predicted_key="label"),
    "sections": lambda a: si.pl.sections(a, "label", section_key="section"),
}
COLUMNS = {
    "site": ["Classifier", "GEARS", "SCVI", "scale", "hvg", "pca", "lsi", "class_means", "offsets"],
    "label": ["Classifier", "SCVI", "confusion"],
    "section": ["SpaMosaic"],
    "condition": ["GEARS", "perturbations"],
    "covariate": ["GEARS"],
}


def gaps(values: list[str], what: str) -> Any:
    if what == "spaces":
        return [*values[:-2], f"{values[0]} ", f" {values[1]}"]
    if what == "mixed":
        return pd.Series([*values[:-1], 1], dtype=object).to_numpy()
    odd = {"None": None, "NA": pd.NA, "NaN": np.nan}.get(what, what)
    column = [*values[:-1], odd]
    return pd.array(column, dtype="string") if what == "NA" else pd.Series(column, dtype=object).to_numpy()


@pytest.mark.parametrize("what", ["None", "NA", "NaN", "", "nan", "<NA>", "mixed", "spaces"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_with_gaps_or_of_two_types_is_refused_by_all_that_read_it(column, what):
    for name in COLUMNS[column]:
        if what == "spaces" and (column == "condition" or name == "confusion"):
            continue  # a condition is read without them
        adata = cells(counts=name not in {"GEARS", "hvg", "perturbations"})
        adata.obs[column] = gaps(adata.obs[column].tolist(), what)
        with pytest.raises(ValueError, match=r"^Expected .*(found [0-9]+ without|of one type|more than spaces)"):
            KINDS[name](adata)


@pytest.mark.parametrize("values", [[0, 1, 2], [2.0, 0.0, 1.0], [True, False, True]])
def test_numbers_and_booleans_name_sites_and_labels_as_text_does(values):
    found = []
    for as_text in (False, True):
        adata = cells()
        adata.obs["site"] = values * (N // 3)
        adata.obs["label"] = values * (N // 3)
        if as_text:
            adata.obs[["site", "label"]] = adata.obs[["site", "label"]].astype(str)
        model = si.model.from_scvi("SCVI", adata, site_key="site", labels_key="label", key_scheme=None, n_latent=2)
        model.train(1, protections=(), progress=False)
        si.model.Classifier.setup_anndata(adata, "label", site_key="site")
        classifier = si.model.Classifier(adata, n_hidden=4, key_scheme=None)
        classifier.train(1, protections=(), progress=False, min_cells=2)
        found.append((model.sites, classifier.labels, model.get_latent_representation(), classifier.predict(soft=True)))
    assert found[0][:2] == found[1][:2]
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_anndata_is_refused(name):
    for wrong in ("cells.h5ad", cells().to_df(), *([] if name == "join_sections" else [None])):
        with pytest.raises(TypeError, match=r"^Expected an AnnData (as|of) "):
            KINDS[name](wrong)


@pytest.mark.parametrize(
    "call",
    [
        lambda: si.model.SpaMosaic.setup_mudata(cells(), "section"),
        lambda: si.pp.lift(cells()),
        lambda: si.pp.join_modalities(cells()),
        lambda: si.model.SpaMosaic.setup_anndata(mdata(), "section"),
        lambda: si.model.Classifier.setup_anndata(mdata(), "label"),
        lambda: si.tl.annotate(cells(), "run"),
        lambda: si.tl.embed(cells(), "run"),
        lambda: si.pl.compare({"method": ["keyed"]}),
    ],
)
def test_the_wrong_kind_of_object_is_refused_with_what_was_found(call):
    with pytest.raises(TypeError, match=r"^Expected .* found a (AnnData|MuData|str|dict)"):
        call()


def test_spots_of_one_name_in_several_modalities_are_refused():
    data = mdata()
    for adata in data.mod.values():
        adata.obs_names = ["spot"] * N
    with pytest.raises(ValueError, match="unique spot names in 'rna'"):
        si.model.SpaMosaic.setup_mudata(md.MuData(dict(data.mod)), "section")


def test_columns_that_hold_no_groups_are_named():
    adata = cells(counts=False)
    adata.obs["covariate"] = np.random.default_rng(0).random(N)
    with pytest.raises(ValueError, match=r"levels that many cells share in adata.obs\['covariate'\]"):
        KINDS["GEARS"](adata)
    adata.obs["section"] = adata.obs_names
    with pytest.raises(ValueError, match="sections of several spots"):
        KINDS["SpaMosaic"](adata)


def test_data_that_were_not_set_up_or_were_copied_since_are_named():
    adata = cells(counts=False)
    with pytest.raises(ValueError, match=r"Expected data that went through `Classifier.setup_anndata`"):
        si.model.Classifier(adata)
    KINDS["Classifier"](adata)
    with pytest.raises(ValueError, match="or a copy made since"):
        si.model.Classifier(adata[:20].copy())


def test_counts_in_place_of_logarithms_are_told_apart_before_anything_overflows():
    adata = cells()
    adata.X *= 400
    with pytest.raises(ValueError, match="Expected logarithms for flavor='seurat', found what looks like raw counts"):
        KINDS["hvg"](adata)
    logs = cells(counts=False)
    KINDS["Classifier"](logs)
    model = si.model.Classifier(logs, n_hidden=4, key_scheme=None)
    model.train(1, protections=(), progress=False)
    with pytest.warns(UserWarning, match="looks like raw counts"):
        model.predict(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(logs)


def test_names_of_another_kind_and_repeated_ones_are_told_from_missing_features():
    adata = cells(counts=False)
    KINDS["Classifier"](adata)
    model = si.model.Classifier(adata, n_hidden=4, key_scheme=None)
    model.train(1, protections=(), progress=False)
    other = adata.copy()
    other.var_names = other.var_names.str.upper()
    with pytest.raises(ValueError, match="begin with G0, G1, G2"):
        model.predict(other)
    with pytest.raises(ValueError, match=r"feature once .* found 1 several times: g0"):
        model.predict(ad.concat([adata, adata[:, :1]], axis=1))


@pytest.mark.parametrize(
    ("spelled", "meant"), [("Ctrl", "ctrl"), ("G0", "g0"), ("g0_g1", "g0+g1"), ("g0,ctrl", "ctrl")]
)
def test_a_condition_that_is_spelled_otherwise_has_its_spelling_in_the_error(spelled, meant):
    adata = cells(counts=False)
    adata.obs["condition"] = [*adata.obs["condition"][:-3], *[f"{spelled}+g2"] * 3]
    with pytest.raises(ValueError, match=f"For example '.*{meant.replace('+', '.')}.*' for '{spelled}'"):
        si.pp.perturbations(adata)


NAMES = pd.Series(["ctrl"] * 3 + ["g0"] * 3, dtype=object)
VALUES = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: si.metrics.mean_changes(VALUES, NAMES.where(NAMES.index != 1), ["a", "b"]), "found 1 without"),
        (lambda: si.metrics.mean_changes(VALUES, NAMES, ["a", "a"]), "unique `genes`"),
        (lambda: si.metrics.mean_changes(VALUES * np.nan, NAMES, ["a", "b"]), "finite values in `cells`"),
        (lambda: si.metrics.mean_changes(VALUES, NAMES, ["a", "b"], control="none"), "control cells"),
        (lambda: si.metrics.classification(NAMES, NAMES, groups=NAMES.where(NAMES.index != 1)), "found 1 without"),
        (lambda: si.metrics.classification(NAMES, NAMES[::-1]), "in one order"),
        (lambda: si.metrics.imputation(pd.DataFrame(VALUES), pd.DataFrame(VALUES)[[1, 0]]), "in one order"),
    ],
)
def test_scores_of_rows_without_a_value_or_in_another_order_are_refused(call: Callable[[], Any], message):
    with pytest.raises(ValueError, match=f"^Expected .*{message}"):
        call()


def test_scores_of_half_precision_are_those_of_floats():
    half = sparse.csr_matrix(VALUES)
    half.data = half.data.astype(np.float16)
    pd.testing.assert_frame_equal(si.metrics.imputation(half, half), si.metrics.imputation(VALUES, VALUES))


def test_an_empty_folder_may_hold_a_model(tmp_path):
    adata = cells(counts=False)
    KINDS["Classifier"](adata)
    model = si.model.Classifier(adata, n_hidden=4, key_scheme=None)
    model.train(1, protections=(), progress=False)
    model.save(tmp_path)
    assert si.model.Classifier.load(tmp_path, adata).labels == ["one", "two"]
    with pytest.raises(FileExistsError, match="Expected nothing"):
        model.save(tmp_path)
