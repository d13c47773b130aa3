"""SHAP values add up, know the key, and need no cell of another site."""

from __future__ import annotations

import itertools
import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import make_cells
from tests.model.test_classifier import fit

from scinfl import pp, tl
from scinfl.model import Classifier
from scinfl.privacy import Key
from scinfl.tl import _explain, _shap_values

SMALL = {"n_hidden": 16, "n_layers": 2}


def trained(adata, *, key=None, n_rounds=4, **options):
    train = {"share": options.pop("share")} if "share" in options else {}
    Classifier.setup_anndata(adata, labels_key="label", site_key="site")
    model = Classifier(adata, **SMALL, **({} if key else {"key_scheme": None}), **options)
    model.train(n_rounds, key=key, progress=False, **train)
    return model


@pytest.fixture
def model(cells, key):
    pp.federated_class_means(cells, "label", site_key="site", key=key)
    return trained(cells, key=key)


def centred_logits(model, x):
    with torch.inference_mode():
        logits = model.module(torch.as_tensor(x, dtype=torch.float32)).double().numpy()
    return logits - logits.mean(1, keepdims=True)


def naive_shapley(f, x, background):
    """Every subset of the features (Shapley 1953), absent ones from each profile in turn."""
    n, features = len(x), range(len(x))

    def value(subset):
        rows = background.copy()
        rows[:, list(subset)] = x[list(subset)]
        return f(rows).mean(0)

    shares = np.zeros((n, f(background).shape[1]))
    for feature in features:
        others = [other for other in features if other != feature]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for subset in itertools.combinations(others, size):
                shares[feature] += weight * (value((*subset, feature)) - value(subset))
    return shares


def test_values_are_those_of_all_subsets(key):
    cells = make_cells(n_cells=240, n_genes=5)
    pp.federated_class_means(cells, "label", site_key="site", key=key)
    model, few = trained(cells, key=key), cells[:2].copy()
    background = cells.varm["infl_class_means"].T
    tl.explain(few, model, n_draws=60)
    for x, shap in zip(few.X, few.obsm["infl_shap"], strict=True):
        expected = naive_shapley(lambda rows: centred_logits(model, rows), x, background)
        np.testing.assert_allclose(shap, expected, atol=0.08 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", [None, "coordinate", "permuted", "pooled"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_values_add_up_to_the_prediction_under_every_key_scheme(cells, key, scheme, output):
    pp.federated_class_means(cells, "label", site_key="site", key=key)
    model = trained(cells, key=key if scheme else None, **({"key_scheme": scheme} if scheme else {}))
    few = cells[:8].copy()
    tl.explain(few, model, output=output, n_draws=1)
    found = few.uns["infl"]["explain"]
    predicted = centred_logits(model, few.X) if output == "logit" else model.predict(few, soft=True).to_numpy()
    np.testing.assert_allclose(few.obsm["infl_shap"].sum(1) + found["expected"], predicted, atol=1e-5)
    assert found["additivity_gap"] < 1e-6


def test_gradients_add_up_roughly_and_find_the_same_features(cells, model):
    by_orders, by_paths = cells[:15].copy(), cells[:15].copy()
    tl.explain(by_orders, model)
    tl.explain(by_paths, model, method="gradient", n_draws=200)
    assert 1e-4 < by_paths.uns["infl"]["explain"]["additivity_gap"] < 0.2
    shap, paths = (part.obsm["infl_shap"].ravel() for part in (by_orders, by_paths))
    assert np.corrcoef(shap, paths)[0, 1] > 0.9


def test_a_wrong_key_explains_something_else(cells, model, key):
    right, wrong = cells[:40].copy(), cells[:40].copy()
    tl.explain(right, model, n_draws=1)
    found = []
    for number in range(3):
        model.unlock(Key(bytes(range(100 + number, 132 + number)), federation="test-federation"), force=True)
        tl.explain(wrong, model, n_draws=1)
        found.append(np.corrcoef(right.obsm["infl_shap"].ravel(), wrong.obsm["infl_shap"].ravel())[0, 1])
    assert np.abs(found).max() < 0.3
    model.unlock(key)
    tl.explain(wrong, model, n_draws=1)
    np.testing.assert_array_equal(wrong.obsm["infl_shap"], right.obsm["infl_shap"])


def test_features_that_make_a_class_come_first():
    cells = make_cells(n_genes=12, noise=0.5)
    cells.X[:, 2:] = np.random.default_rng(0).normal(size=(cells.n_obs, 10))
    cells.X[:, 0] = 4.0 * (cells.obs["label"] == "type_0")
    cells.X[:, 1] = -4.0 * (cells.obs["label"] == "type_1")
    pp.federated_class_means(cells, "label", site_key="site")
    tl.explain(few := cells[:60].copy(), trained(cells, n_rounds=8))
    top = few.uns["infl"]["explain"]["top"]
    first = top[top["rank"] == 1].set_index("label")
    assert list(first.loc[["type_0", "type_1"], "feature"]) == ["gene_0", "gene_1"]
    assert first.loc["type_0", "direction"] > 0.8
    assert first.loc["type_1", "direction"] < -0.8


def test_what_is_written_survives_a_file(cells, model, tmp_path):
    cells.obs["label"] = cells.obs["label"].cat.rename_categories({"type_0": "CD4+/CD25"})  # a path, to hdf5
    few = cells[:6].copy()
    tl.explain(few, model, n_top=3)
    few.write_h5ad(tmp_path / "few.h5ad")
    read = ad.read_h5ad(tmp_path / "few.h5ad")
    np.testing.assert_array_equal(read.obsm["infl_shap"], few.obsm["infl_shap"])
    np.testing.assert_allclose(read.varm["infl_shap"], np.abs(few.obsm["infl_shap"]).mean(0))
    before, after = few.uns["infl"]["explain"], read.uns["infl"]["explain"]
    pd.testing.assert_frame_equal(before["top"], after["top"], check_dtype=False)
    assert list(after["labels"]) == model.labels
    assert list(after["features"]) == list(cells.var_names)
    assert set(before) == set(after)
    assert read[:2].copy().obsm["infl_shap"].shape == (2, 30, 4)


def test_means_of_the_sites_suffice_without_their_cells(cells, model, tmp_path, key):
    mine = cells[cells.obs["site"] == "hospital_0"].copy()
    model.save(tmp_path / "model")
    alone = Classifier.load(tmp_path / "model")  # at a site, with no data
    alone.unlock(key)
    elsewhere = mine.copy()
    del elsewhere.varm["infl_class_means"]
    with pytest.raises(KeyError, match="federated_class_means"):
        tl.explain(elsewhere, alone)
    tl.explain(elsewhere, alone, background=cells.varm["infl_class_means"])
    tl.explain(mine, model)
    np.testing.assert_allclose(elsewhere.obsm["infl_shap"], mine.obsm["infl_shap"], atol=1e-5)
    alone.lock()
    with pytest.raises(RuntimeError, match=r"Call `model.unlock\(key\)` first"):
        tl.explain(mine, alone)


def test_every_site_is_explained_by_its_own_parameters(cells):
    pp.federated_class_means(cells, "label", site_key="site")
    model = trained(cells, share=["encoder"])
    few = cells[:9].copy()
    tl.explain(few, model, n_draws=1)
    one = few[few.obs["site"] == "hospital_1"].copy()
    tl.explain(one, model, n_draws=1, site="hospital_1")
    rows = (few.obs["site"] == "hospital_1").to_numpy()
    np.testing.assert_allclose(few.obsm["infl_shap"][rows].sum(1), one.obsm["infl_shap"].sum(1), atol=1e-5)
    assert few.uns["infl"]["explain"]["additivity_gap"] < 1e-6


def test_sparse_layers_missing_values_and_one_cell_are_explained(cells):
    from scipy import sparse

    cells.layers["sparse"] = sparse.csr_matrix(cells.X)
    cells.layers["sparse"][0, 0] = np.nan
    background = np.asarray(cells.X[:3].T)
    Classifier.setup_anndata(cells, labels_key="label", site_key="site", layer="sparse", missing="zero")
    model = Classifier(cells, **SMALL, key_scheme=None)
    model.train(1, progress=False)
    one = cells[:1].copy()
    tl.explain(one, model, background=background)
    assert np.isfinite(one.obsm["infl_shap"]).all()
    assert one.uns["infl"]["explain"]["layer"] == "sparse"
    assert one.uns["infl"]["explain"]["top"]["direction"].isna().all()  # there is nothing to correlate
    with pytest.raises(ValueError, match="Expected cells to explain, found none"):
        tl.explain(cells[:0].copy(), model, background=background)


def test_the_seed_is_ours_and_numpys_own_is_left_alone(cells, model):
    a, b, c = (cells[:5].copy() for _ in range(3))
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    tl.explain(a, model, n_draws=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    tl.explain(b, model, n_draws=1)
    tl.explain(c, model, n_draws=1, rng=1)
    np.testing.assert_array_equal(a.obsm["infl_shap"], b.obsm["infl_shap"])
    assert np.abs(a.obsm["infl_shap"] - c.obsm["infl_shap"]).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": np.zeros((4, 30))}, "Transpose it"),
        ({"background": np.full((30, 2), np.nan)}, "finite values in `background`, found 60"),
        ({"output": "odds"}, "`output` to be one of"),
        ({"method": "deep"}, "`method` to be one of"),
        ({"n_draws": 0}, "n_draws"),
        ({"n_top": 0}, "n_top"),
        ({"rng": -1}, "rng"),
    ],
)
def test_arguments_that_make_no_sense_are_named(cells, model, options, message):
    with pytest.raises(ValueError, match=message):
        tl.explain(cells, model, **options)


def test_other_models_and_a_missing_shap_are_named(cells, monkeypatch):
    with pytest.raises(TypeError, match=r"scinfl.model.Classifier, found Linear"):
        tl.explain(cells, torch.nn.Linear(2, 2))
    Classifier.setup_anndata(cells, labels_key="label")
    with pytest.raises(RuntimeError, match="Call `train` first"):
        tl.explain(cells, Classifier(cells))
    with pytest.raises(ValueError, match="Reorder"):
        tl.explain(cells[:, ::-1].copy(), fit(cells, 1))
    monkeypatch.setattr(_shap_values, "find_spec", lambda _: None)
    assert _explain.require_shap is _shap_values.require_shap
    with pytest.raises(ImportError, match=r"pip install 'shap>=0\.51'"):
        tl.explain(cells, Classifier(cells))
