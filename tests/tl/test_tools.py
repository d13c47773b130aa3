"""What is written into AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from tests.conftest import make_cells
from tests.model.test_classifier import fit

from scinfl import tl
from scinfl.model import Classifier


def test_annotate_writes_ordered_labels_probabilities_and_colours(cells, key):
    cells.uns["label_colors"] = ["#000001", "#000002", "#000003", "#000004"]
    model = fit(cells, key=key)
    tl.annotate(cells, model)
    assert list(cells.obs["infl_label"].cat.categories) == model.labels
    assert (cells.obs["infl_label"].astype(str) == model.predict()).all()
    np.testing.assert_array_equal(cells.obsm["infl_probability"], model.predict(soft=True))
    assert cells.uns["infl_label_colors"] == ["#000001", "#000002", "#000003", "#000004"]
    assert cells.uns["infl"]["annotate"]["key_fingerprint"] == key.fingerprint


def test_doubtful_cells_are_unassigned_in_grey(cells):
    model = fit(cells, 1)
    tl.annotate(cells, model, min_confidence=0.999)
    assert "unassigned" in set(cells.obs["infl_label"])
    assert cells.obs["infl_label"].cat.categories[-1] == "unassigned"
    assert cells.uns["infl_label_colors"][-1] == "#bdbdbd"
    assert len(set(cells.uns["infl_label_colors"])) == 5


def test_embed_is_ready_for_scanpy_and_all_survives_a_file(cells, key, tmp_path):
    model = fit(cells, key=key)
    query = make_cells(rng=0)
    del query.obs["label"], query.obs["site"]
    tl.annotate(query, model, min_confidence=0.5)
    tl.embed(query, model)
    assert query.obsm["X_infl"].shape == (360, 24)
    query.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["X_infl"], query.obsm["X_infl"])
    assert list(again.obs["infl_label"].cat.categories) == [*model.labels, "unassigned"]
    assert list(again.uns["infl"]["annotate"]["labels"]) == model.labels
    assert again.uns["infl"]["embed"]["key_fingerprint"] == key.fingerprint


def test_a_view_is_annotated_and_a_locked_model_refused(cells, key):
    model = fit(cells, key=key)
    view = cells[:50]
    with pytest.warns(ad.ImplicitModificationWarning):
        tl.annotate(view, model)
    assert "infl_label" in view.obs
    assert "infl_label" not in cells.obs
    model.lock()
    for tool in (tl.annotate, tl.embed):
        with pytest.raises(RuntimeError, match="unlock"):
            tool(cells, model)
    assert "infl_label" not in cells.obs


def test_names_of_data_format_nothing_in_a_report_as_markdown():
    from scinfl.tl._audit_report import _plain

    assert _plain("a|b\n# title") == r"a\|b # title"
    assert _plain("![x](http://example.org) <b>") == r"\!\[x\](http://example.org) \<b\>"


def test_a_label_may_be_called_unassigned_and_data_may_be_empty(cells):
    cells.obs["label"] = cells.obs["label"].astype(str).replace("type_0", "unassigned")
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_hidden=8, key_scheme=None)
    model.train(1, progress=False)
    tl.annotate(cells, model, min_confidence=0.9)
    assert list(cells.obs["infl_label"].cat.categories) == model.labels
    none = cells[:0].copy()
    assert model.predict(none).shape == (0,)
    tl.annotate(none, model)
    tl.embed(none, model)
    assert none.obsm["X_infl"].shape == (0, 8)
    with pytest.raises(ValueError, match="Expected rows and features, found 0 rows"):
        Classifier.setup_anndata(none, "label")


@pytest.mark.parametrize("column", ["n_counts", "barcode"])
def test_a_column_that_does_not_look_like_labels_is_warned_of(cells, column):
    cells.obs["n_counts"] = np.random.default_rng(0).random(cells.n_obs)
    cells.obs["barcode"] = cells.obs_names
    with pytest.warns(UserWarning, match="Expected labels that many rows share"):
        Classifier.setup_anndata(cells, column, site_key="site")


def test_labels_of_several_types_are_refused(cells):
    cells.obs["label"] = [1 if number % 2 else "b" for number in range(cells.n_obs)]
    with pytest.raises(ValueError, match=r"Expected values of one type in adata.obs\['label'\], found int, str"):
        Classifier.setup_anndata(cells, "label")
