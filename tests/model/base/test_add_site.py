"""A site that comes later."""

from __future__ import annotations

import numpy as np
import pytest

import scinfl as si


@pytest.fixture
def cells():
    adata = si.datasets.pbmc()
    si.pp.split_sites(adata, n_sites=4, rng=0)
    return adata


@pytest.fixture
def trained(cells):
    first = cells[cells.obs["site"] != "site_3"].copy()
    si.model.Classifier.setup_anndata(first, "bulk_labels", site_key="site")
    model, key = si.model.Classifier(first, n_hidden=16), si.privacy.Key.generate()
    model.train(4, key=key, progress=False)
    return model, key, cells[cells.obs["site"] == "site_3"].copy()


def test_training_goes_on_from_the_present_state_with_the_new_site(trained):
    model, key, later = trained
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    first, *_, last = model.history["train_loss"]
    model.add_site(later)
    assert all((before[name] == tensor).all() for name, tensor in model.module.state_dict().items())
    model.train(2, key=key, progress=False)
    assert set(model.site_history.reset_index()["site"]) == {f"site_{i}" for i in range(1, 5)}
    assert model.history["train_loss"].iloc[0] < (first + last) / 2  # far from a new start


def test_a_new_site_may_be_named_and_may_lack_labels(trained):
    model, key, later = trained
    label = later.obs["bulk_labels"].value_counts().index[0]
    few = later[later.obs["bulk_labels"] == label].copy()
    del few.obs["site"]
    few.obs_names = "west-" + few.obs_names
    model.add_site(few, site="west")
    model.train(1, key=key, progress=False)
    assert "west" in set(model.site_history.reset_index()["site"])


def test_a_site_that_cannot_be_added_is_refused(trained):
    model, _, later = trained
    with pytest.raises(ValueError, match=r"takes no part yet, found site_1"):
        model.add_site(later, site="site_1")
    with pytest.raises(ValueError, match="in another order"):
        model.add_site(later[:, ::-1].copy())
    again = model.adata[:5].copy()
    with pytest.raises(ValueError, match="names of cells that occur once"):
        model.add_site(again, site="west")
    odd = later.copy()
    odd.obs["bulk_labels"] = odd.obs["bulk_labels"].astype(str)
    odd.obs.iloc[0, list(odd.obs).index("bulk_labels")] = "Martian"
    with pytest.raises(ValueError, match="Martian"):
        model.add_site(odd)
    assert model.adata.n_obs == sum(model.adata.obs["site"] != "site_3")


def test_an_untrained_model_and_one_without_cells_are_refused(trained, tmp_path):
    model, _, later = trained
    model.save(tmp_path / "model")
    for other in (si.model.Classifier(model.adata, n_hidden=4), si.model.Classifier.load(tmp_path / "model")):
        with pytest.raises(RuntimeError, match="trained model with the cells"):
            other.add_site(later)


def test_perturbations_of_a_new_site_are_trained_on():
    adata = si.datasets.perturbseq_simulated(60, n_singles=10, n_doubles=6, n_cells=24)
    number = adata.obs.groupby("condition", observed=True).cumcount()
    adata.obs["site"] = [f"site_{n % 4}" for n in number]
    first, later = (adata[(adata.obs["site"] == "site_3") == which].copy() for which in (False, True))
    si.model.GEARS.setup_anndata(first, site_key="site")
    model = si.model.GEARS(first, gene_ontology=adata.uns["gene_terms"], n_hidden=8)
    key = si.privacy.Key.generate()
    model.train(2, key=key, batch_size=8, loss="squared", progress=False)
    model.add_site(later)
    model.train(1, key=key, batch_size=8, loss="squared", progress=False)
    assert "site_3" in set(model.site_history.reset_index()["site"])
    assert np.isfinite(model.predict_change(list(adata.uns["gene_terms"])[:2])).all(axis=None)


def test_sections_are_not_added_to_a_trained_spamosaic():
    with pytest.raises(NotImplementedError, match="Embed the new sections"):
        si.model.SpaMosaic.add_site(None, None)
