"""Every form in which users of scvi-tools bring cells: trained on alike, or refused with the cure."""

from __future__ import annotations

import anndata as ad
import mudata as mu
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy import sparse
from tests.model.scvi.test_scvi_models import KEY, make, make_counts, trained

from scinfl.model import from_scvi, map_query

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:scvi")


def in_layer(cells):
    cells.layers["counts"], cells.X = cells.X, np.log1p(cells.X)
    return cells


def as_values(form):
    def changed(cells):
        cells.X = form(cells.X)
        return cells

    return changed


def of_two_batches(cells):
    scvi.model.SCVI.setup_anndata(cells, batch_key="site")
    return cells


def with_unused_category(cells):
    cells.obs["site"] = pd.Categorical(cells.obs["site"], [*sorted(cells.obs["site"].unique()), "hospital_9"])
    return cells


@pytest.mark.parametrize(
    "change",
    [
        in_layer,
        as_values(lambda x: x.astype(np.int64)),
        as_values(lambda x: x.astype(np.uint16)),
        as_values(lambda x: x.astype(np.float64)),
        as_values(sparse.csc_matrix),
        as_values(sparse.csc_array),
        as_values(sparse.csr_array),
        of_two_batches,
        with_unused_category,
    ],
    ids=["layer", "int64", "uint16", "float64", "csc matrix", "csc array", "csr array", "set up before", "unused site"],
)
def test_forms_of_the_same_counts_train_and_export_the_same(change):
    cells = change(make_counts())
    model = make(cells=cells, layer="counts" if cells.layers else None)
    expected = trained().get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    np.testing.assert_allclose(model.to_scvi().get_latent_representation(), expected, atol=1e-6)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_counts_in_a_file_train_and_export_the_same(form, tmp_path):
    as_values(form)(make_counts()).write_h5ad(tmp_path / "cells.h5ad")
    model = make(cells=ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))
    expected = trained().get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    np.testing.assert_allclose(model.to_scvi().get_latent_representation(), expected, atol=1e-6)


@pytest.mark.parametrize("form", [int, lambda text: text == "0"], ids=["whole numbers", "booleans"])
def test_sites_and_labels_need_not_be_text(form):
    cells = make_counts()
    for column, made in (("site", int), ("label", form)):
        cells.obs[column] = [made(name[-1]) for name in cells.obs[column]]
    model = make("CondSCVI", cells, n_rounds=1)
    assert model.sites == sorted({str(site) for site in cells.obs["site"]})
    assert model.labels == sorted({str(label) for label in cells.obs["label"]})
    native = model.to_scvi()
    np.testing.assert_allclose(native.get_latent_representation(), model.get_latent_representation(), atol=1e-6)
    assert cells.obs["site"].dtype != object  # the user's own column stays


def test_cells_without_a_label_are_named_in_the_type_and_spelling_of_the_column():
    cells = make_counts()
    hidden = np.arange(120) % 4 == 0
    cells.obs["number"] = np.where(hidden, -1, cells.obs["label"].str[-1].astype(int))
    model = make("SCANVI", cells, n_rounds=1, labels_key="number", unlabeled_category=-1)
    assert model.labels == ["0", "1", "2"]
    assert set(model.to_scvi().predict()) <= {"0", "1", "2"}
    for name in ("-1", "unknown"):
        with pytest.raises(ValueError, match=r"type of the labels.*astype\(str\)"):
            make("SCANVI", cells, labels_key="number", unlabeled_category=name)
    cells.obs["label"] = np.where(hidden, "Unknown", cells.obs["label"])
    with pytest.raises(ValueError, match="found Unknown, which would be learned"):
        make("SCANVI", cells)


@pytest.mark.parametrize("n", [1, 2])
def test_a_site_of_one_or_two_cells_takes_part(n):
    cells = make_counts()
    cells.obs.loc[cells.obs_names[:n], "site"] = "tiny"
    model = make(cells=cells)
    assert model.sites[-1] == "tiny"
    assert np.isfinite(model.history["train_loss"]).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_empty_cells_and_genes_and_huge_counts_give_finite_codes():
    cells = make_counts()
    cells.X[0], cells.X[:, 0], cells.X[1, 1] = 0, 0, 3e6
    model = make(cells=cells)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.history["train_loss"]).all()


def test_minified_data_are_refused_and_an_exported_model_minifies():
    native = trained().to_scvi()
    before = native.get_latent_representation()
    mean, variance = native.get_latent_representation(return_dist=True)
    native.adata.obsm["X_latent_qzm"], native.adata.obsm["X_latent_qzv"] = mean, variance
    native.minify_adata()
    assert native.minified_data_type == "latent_posterior_parameters"
    np.testing.assert_allclose(native.get_latent_representation(), before, atol=1e-6)
    assert native.get_normalized_expression(n_samples=1).shape == (120, 20)
    for use in (trained().get_latent_representation, trained().to_scvi, lambda cells: make(cells=cells)):
        with pytest.raises(ValueError, match="scvi-tools minified"):
            use(native.adata.copy())


def test_cells_of_some_sites_and_genes_in_another_order_are_exported():
    model, cells = trained(), make_counts()
    own = (cells.obs["site"] == "hospital_1").to_numpy()
    native = model.to_scvi(cells[own, ::-1].copy())
    np.testing.assert_allclose(native.get_latent_representation(), model.get_latent_representation()[own], atol=1e-5)
    whole = model.to_scvi()
    found = []
    for one, data in ((native, None), (whole, whole.adata[own].copy())):
        scvi.settings.seed = 0
        found.append(one.get_normalized_expression(data, n_samples=1)[list(cells.var_names)].to_numpy())
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_export_says_which_sites_and_labels_it_does_not_know():
    cells = make_counts()
    cells.obs["site"] = "elsewhere"
    with pytest.raises(ValueError, match=r"found elsewhere.*map_query"):
        trained().to_scvi(cells)
    with pytest.raises(KeyError, match="site_key"):
        trained().to_scvi(ad.AnnData(cells.X, var=cells.var))
    cells = make_counts()
    cells.obs["label"] = "type_9"
    with pytest.raises(ValueError, match="found 1 others"):
        trained("SCANVI").to_scvi(cells)
    del cells.obs["label"]
    assert set(trained("SCANVI").to_scvi(cells).predict()) <= {"type_0", "type_1", "type_2"}


def test_an_exported_model_is_saved_loaded_and_trained_on_by_scvi_tools(tmp_path):
    expected = trained("SCANVI").get_latent_representation()
    trained("SCANVI").to_scvi().save(tmp_path / "native", save_anndata=True)
    loaded = scvi.model.SCANVI.load(tmp_path / "native")
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-6)
    query = make_counts(n_cells=30, rng=4)
    query.obs["site"] = "hospital_new"
    mapped = scvi.model.SCVI.load_query_data(query, trained().to_scvi())
    assert mapped.adata_manager.get_state_registry("batch").categorical_mapping[-1] == "hospital_new"


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"batch_key": "kit"}, "The site is the batch"),
        ({"categorical_covariate_keys": ["kit"]}, "Other covariates than the site"),
        ({"continuous_covariate_keys": ["age"]}, "Other covariates than the site"),
        ({"size_factor_key": "size"}, "Library sizes are the observed ones"),
        ({"protein_expression_obsm_key": "p"}, "join_modalities"),
    ],
)
def test_arguments_of_the_setup_of_scvi_tools_are_refused_with_what_to_do(options, cure):
    with pytest.raises(ValueError, match=cure):
        from_scvi("SCVI", make_counts(), site_key="site", **options)


def test_what_is_no_table_of_counts_is_refused():
    cells = make_counts()
    for data in (mu.MuData({"rna": cells}), "cells.h5ad"):
        with pytest.raises(TypeError, match="Expected an AnnData of counts"):
            from_scvi("SCVI", data, site_key="site")
    with pytest.raises(TypeError, match="Pass its class"):
        from_scvi(trained().to_scvi(), cells, site_key="site")
    with pytest.raises(ValueError, match="found a view"):
        from_scvi("SCVI", cells[:60], site_key="site")
    cells.X[0, 0] = -1
    with pytest.raises(ValueError, match="name their layer"):
        from_scvi("SCVI", cells, site_key="site")
    cells.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="gene_0"):
        from_scvi("SCVI", cells, site_key="site")
    new = make_counts(n_sites=1)
    new.obs["site"] = "hospital_new"
    with pytest.raises(ValueError, match="features"):
        map_query(trained(), new[:, :5].copy(), KEY)
