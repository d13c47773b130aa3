"""Data of any type, container and order give the answer of clean float32 rows, or an error that is ours."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scinfl as si
from scinfl._checks import values_of

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

N_CELLS, N_GENES = 36, 8
TYPES = ["f4", "f8", "f2", ">f4", ">f8", "u1", "i1", "i2", "u2", ">i2", "i4", ">i4", "i8", "?"]
CONTAINERS = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "csc array": sparse.csc_array,
    "masked": np.ma.masked_array,
}
TEXTS = {
    "object": lambda values: pd.Series(values, dtype=object),
    "string": lambda values: pd.Series(values, dtype="string"),
    "arrow": lambda values: pd.Series(values, dtype="string[pyarrow]"),
    "category": lambda values: pd.Series(pd.Categorical(values)),
    "unused category": lambda values: pd.Series(pd.Categorical(values, [*dict.fromkeys(values), "none of these"])),
}


@dataclass(frozen=True)
class Given:
    """What is odd about data."""

    dtype: str
    container: str
    column: str
    missing: bool
    view: bool
    backed: bool
    names: str
    seed: int


def clean(odd: Given) -> ad.AnnData:
    """The same values as float32 rows, in memory, with plain columns."""
    rng = np.random.default_rng(odd.seed)
    values = rng.poisson(1.5, (N_CELLS, N_GENES))
    values[np.arange(N_CELLS), np.arange(N_CELLS) % 2] += 2
    values[:, -1] = values[:, -1].clip(1)
    values = values.astype(odd.dtype).astype(np.float32)
    if odd.missing:
        values[3, 2] = np.nan
    obs = {
        "label": np.array(["one", "two"])[np.arange(N_CELLS) % 2],
        "site": np.array(["a", "b", "c"])[np.arange(N_CELLS) // 2 % 3],
        "section": np.array(["s1", "s2", "s3"])[np.arange(N_CELLS) // 2 % 3],
        "condition": np.array(["ctrl", "g1+ctrl", "g2+ctrl"])[np.arange(N_CELLS) // 6 % 3],
    }
    adata = ad.AnnData(
        sparse.csr_matrix(values),
        pd.DataFrame(obs, index=[f"{odd.names}{i}" for i in range(N_CELLS)]),
        pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]),
    )
    adata.obsm["spatial"] = rng.random((N_CELLS, 2))
    return adata


def with_oddities(odd: Given, folder: Path, start: ad.AnnData | None = None) -> ad.AnnData:
    adata = clean(odd) if start is None else start
    values = adata.X.toarray()
    hole = np.isnan(values)
    wanted = np.dtype(odd.dtype)
    if wanted.kind == "f" or odd.container == "masked" or not odd.missing:
        filled = np.where(hole, 0, values).astype(wanted)
        if wanted.kind == "f":
            filled[hole] = np.nan
    else:
        filled = values  # whole numbers have no NaN
    make = CONTAINERS[odd.container]
    if odd.container == "masked":
        adata.X = np.ma.masked_array(filled, hole)
    elif odd.container in {"dense", "fortran"}:
        adata.X = make(filled)
    else:
        matrix = make(filled.astype("f8"))
        matrix.data = matrix.data.astype(filled.dtype)  # scipy itself refuses some types, files do not
        adata.X = matrix
    for column in adata.obs:
        # a label that is declared is one of the model's, with cells or without
        kind = "category" if column == "label" and odd.column == "unused category" else odd.column
        values = TEXTS[kind](adata.obs[column].tolist())
        adata.obs[column] = values.to_numpy() if kind == "object" else values.array
    in_file_only = sparse.issparse(adata.X) and (adata.X.dtype == np.float16 or not adata.X.dtype.isnative)
    if odd.view and not in_file_only:  # anndata itself refuses to take rows of such types
        adata = adata[:]
    if odd.backed and odd.container != "masked":  # a file has no masks
        path = folder / "data.h5ad"
        (adata.copy() if adata.is_view else adata).write_h5ad(path)
        adata = ad.read_h5ad(path, backed="r")
    return adata


def outcome(run: Callable[[ad.AnnData], Any], adata: ad.AnnData) -> Any:
    """An array, or an error that is ours; other errors are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = run(adata)
        except Exception as error:
            text = str(error.args[0] if error.args else error)
            if text.startswith("Expected"):
                return text
            raise
    return np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64)


def classified(adata: ad.AnnData) -> Any:
    si.model.Classifier.setup_anndata(adata, labels_key="label", site_key="site")
    model = si.model.Classifier(adata, n_hidden=4, key_scheme=None)
    model.train(1, protections=(), progress=False)
    return np.hstack([model.predict(soft=True), model.get_latent_representation()])


def perturbed(adata: ad.AnnData) -> Any:
    si.model.GEARS.setup_anndata(adata, condition_key="condition", site_key=None)
    model = si.model.GEARS(adata, n_hidden=4, key_scheme=None)
    model.train(1, protections=(), progress=False, loss="squared")
    return model.predict(["g1", "g1+g2"]).X


def embedded(adata: ad.AnnData) -> Any:
    si.model.SpaMosaic.setup_anndata(adata, section_key="section", site_key="site", normalise="none")
    model = si.model.SpaMosaic(adata, n_components=3, n_latent=2, n_hidden=4, n_neighbours=4, key_scheme=None)
    model.train(1, protections=(), progress=False)
    return model.get_latent_representation()


def counted(adata: ad.AnnData) -> Any:
    labels = {"labels_key": "label", "unlabeled_category": "none"}
    model = si.model.from_scvi("SCANVI", adata, site_key="site", **labels, n_hidden=4, n_latent=2, key_scheme=None)
    model.train(1, protections=(), progress=False)
    return np.hstack([model.get_latent_representation(), model.predict(soft=True)])


def prepared(function: Callable[..., None], found: Callable[[ad.AnnData], Any], **options: Any) -> Callable[..., Any]:
    def run(adata: ad.AnnData) -> Any:
        function(adata, **options)
        return found(adata)

    run.__name__ = function.__name__
    return run


SITES = {"site_key": "site", "protections": (), "min_cells": 2}


def aligned(adata: ad.AnnData) -> Any:
    other = ad.AnnData(np.ones((2, 3), np.float32), var=pd.DataFrame(index=["g5", "g1", "g9"]))
    si.pp.align_genes(adata, [other], how="union")
    first = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    third = ad.AnnData(np.ones((2, 2), np.float32), var=pd.DataFrame(index=["g5", "g1"]))
    si.pp.align_genes(adata, [third])
    return np.hstack([first, adata.X.toarray() if sparse.issparse(adata.X) else adata.X])


def chosen(adata: ad.AnnData) -> Any:
    adata.obs["condition"] = [*adata.obs["condition"].astype(str)][:-6] + ["nowhere+ctrl"] * 6
    si.pp.perturbations(adata, condition_key="condition", unknown="drop")
    return adata.X


def joined(adata: ad.AnnData) -> Any:
    memory = adata.to_memory() if adata.isbacked else adata
    memory.obs["section"] = "one"
    found = si.pp.join_sections([memory, clean(Given("f4", "csr", "object", False, False, False, "other ", 9))])
    return found.X


def shifted(adata: ad.AnnData) -> Any:
    names = pd.Series(adata.obs["condition"])
    return si.metrics.mean_changes(given_values(adata), names, adata.var_names)


def imputed(adata: ad.AnnData) -> Any:
    other = np.random.default_rng(0).poisson(2.0, adata.shape).astype(np.float32)
    return si.metrics.imputation_features(given_values(adata), other, threshold=1)


def given_values(adata: ad.AnnData) -> Any:
    """X as it was given; of a file as the package reads it, since anndata reads no half precision."""
    return values_of(adata, None) if adata.isbacked else adata.X


def clustered(adata: ad.AnnData) -> Any:
    adata.obsm["X_infl"] = np.asarray(adata.obsm["spatial"])
    si.tl.cluster(adata, 2, section_key="section", n_init=1)
    return adata.obs["infl_domain"].cat.codes


QUICK = [
    prepared(si.pp.clr, lambda adata: adata.X),
    prepared(si.pp.federated_scale, lambda adata: adata.X, **SITES),
    prepared(si.pp.federated_scale, lambda adata: adata.X, **SITES, zero_mean=False),
    prepared(si.pp.federated_highly_variable_genes, lambda a: a.var["dispersions_norm"], **SITES, n_top_genes=3),
    prepared(si.pp.federated_pca, lambda adata: adata.obsm["X_pca"], **SITES, n_comps=2),
    prepared(si.pp.federated_class_means, lambda a: a.varm["infl_class_means"], labels_key="label", **SITES),
    prepared(si.pp.federated_lsi, lambda adata: np.abs(adata.obsm["X_lsi"]), **SITES, n_comps=2),
    aligned,
    chosen,
    joined,
    shifted,
    imputed,
    clustered,
]
TRAINED = [classified, perturbed, embedded, counted]
oddities = st.builds(
    Given,
    dtype=st.sampled_from(TYPES),
    container=st.sampled_from(list(CONTAINERS)),
    column=st.sampled_from(list(TEXTS)),
    missing=st.sampled_from([False, False, False, True]),
    view=st.sampled_from([False, False, False, True]),
    backed=st.sampled_from([False, False, False, True]),
    names=st.sampled_from(["c", "", "Zelle ä", "a/b-"]),
    seed=st.integers(0, 3),
)


def check(run: Callable[[ad.AnnData], Any], odd: Given) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = outcome(run, clean(odd))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given_data = with_oddities(odd, Path(folder))
        found = outcome(run, given_data)
        if given_data.isbacked:
            given_data.file.close()
    if isinstance(found, str):
        return
    assert not isinstance(expected, str), f"clean data were refused ({expected}), these were not"
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def example(n: int) -> Any:
    return settings(max_examples=n, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("run", QUICK, ids=lambda run: run.__name__)
@example(8)
@given(odd=oddities)
def test_preprocessing_of_any_data_is_that_of_clean_data(run, odd):
    check(run, odd)


@pytest.mark.parametrize("run", TRAINED, ids=lambda run: run.__name__)
@example(3)
@given(odd=oddities)
def test_training_on_any_data_is_that_on_clean_data(run, odd):
    check(run, odd)


@pytest.mark.slow
@pytest.mark.parametrize("run", [*QUICK, *TRAINED], ids=lambda run: run.__name__)
@example(150)
@given(odd=oddities)
def test_many_kinds_of_data_are_read_as_clean_data(run, odd):
    check(run, odd)


@pytest.fixture(scope="module")
def model():
    adata = clean(Given("f4", "csr", "object", False, False, False, "c", 0))
    si.model.Classifier.setup_anndata(adata, labels_key="label", site_key="site")
    found = si.model.Classifier(adata, n_hidden=4, key_scheme=None)
    found.train(1, protections=(), progress=False)
    return found


@example(8)
@given(odd=oddities, genes=st.permutations(range(N_GENES)), cells=st.permutations(range(N_CELLS)))
def test_predictions_follow_names_whatever_the_order_and_type(model, odd, genes, cells):
    def predicted(adata: ad.AnnData) -> Any:
        si.tl.annotate(adata, model)
        si.tl.embed(adata, model)
        return np.hstack([adata.obsm["infl_probability"], adata.obsm["X_infl"]])

    check(predicted, odd)
    start = clean(odd)[list(cells)][:, list(genes)].copy()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = outcome(predicted, clean(odd)), outcome(predicted, with_oddities(odd, Path(folder), start))
    if not isinstance(found, str):
        np.testing.assert_allclose(found, expected[list(cells)], rtol=2e-3, atol=2e-4)


def test_most_data_have_an_answer():
    """Errors alone would pass every test above."""
    n_answers = 0
    for number, dtype in enumerate(TYPES):
        odd = Given(dtype, list(CONTAINERS)[number % len(CONTAINERS)], "category", False, False, False, "c", number)
        with tempfile.TemporaryDirectory() as folder:
            run = QUICK[number % len(QUICK)]
            n_answers += not isinstance(outcome(run, with_oddities(odd, Path(folder))), str)
    assert n_answers > 0.8 * len(TYPES)
