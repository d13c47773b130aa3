"""SpaMosaic: sections of several sites in one embedding."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scinfl as si
from scinfl.model import SpaMosaic
from scinfl.privacy import Key

QUICK = {"n_rounds": 3, "progress": False}


def make_sections(n_spots: int = 150, n_sections: int = 3, n_genes: int = 30, rng: int = 0) -> ad.AnnData:
    """Three stripes in every section, seen through counts with an effect of the section."""
    generator = np.random.default_rng(rng)
    profiles = generator.gamma(1.0, 2.0, (3, n_genes))
    blocks, obs, coordinates = [], [], []
    for number in range(n_sections):
        xy = generator.random((n_spots, 2))
        domain = np.minimum((xy[:, 0] * 3).astype(int), 2)
        effect = np.exp(generator.normal(0, 0.3, n_genes))
        blocks.append(generator.poisson(profiles[domain] * effect * generator.gamma(5, 0.2, (n_spots, 1)) * 10))
        obs.append(pd.DataFrame({"section": f"mouse_{number}", "domain": domain.astype(str)}))
        coordinates.append(xy * 1000)
    obs = pd.concat(obs, ignore_index=True)
    obs.index = [f"spot_{number}" for number in range(len(obs))]
    X = sparse.csr_matrix(np.concatenate(blocks).astype(np.float32))
    adata = ad.AnnData(X, obs, pd.DataFrame(index=[f"gene_{number}" for number in range(n_genes)]))
    adata.obsm["spatial"] = np.concatenate(coordinates)
    return adata


@pytest.fixture(scope="module")
def sections() -> ad.AnnData:
    return make_sections()


def make_model(adata, *, site_key="section", **arguments) -> SpaMosaic:
    SpaMosaic.setup_anndata(adata, "section", site_key=site_key)
    return SpaMosaic(adata, **{"n_components": 8, "n_target": 5, "n_neighbours": 8, "n_hidden": 16, **arguments})


@pytest.fixture(scope="module")
def keyed(sections):
    model, key = make_model(sections), Key(bytes(range(32)), federation="sections")
    model.train(20, key=key, progress=False)
    return model, key


def test_domains_of_all_sections_are_found_without_pooling(keyed, sections):
    model, _ = keyed
    si.tl.embed(sections, model)
    si.tl.cluster(sections, 3)
    table = si.metrics.integration(
        sections.obsm["X_infl"],
        batch=sections.obs["section"],
        labels=sections.obs["domain"],
        clusters=sections.obs["infl_domain"],
        n_neighbours=60,
    ).set_index("metric")["value"]
    assert table["ari"] > 0.6
    assert table["mixing"] > 0.6


def test_federated_training_is_as_good_as_pooled(keyed, sections):
    pooled = make_model(sections, site_key=None, key_scheme=None)
    pooled.train(20, progress=False)
    scores = []
    for model in (keyed[0], pooled):
        sections.obsm["X_infl"] = model.get_latent_representation()
        si.tl.cluster(sections, 3)
        table = si.metrics.integration(
            sections.obsm["X_infl"], batch=sections.obs["section"], labels=sections.obs["domain"],
            clusters=sections.obs["infl_domain"],
        )  # fmt: skip
        scores.append(table.set_index("metric")["value"]["ari"])
    assert min(scores) > 0.7


def test_what_leaves_a_site_is_masked_sums(sections, monkeypatch):
    seen = []
    combine = si.privacy.BlindServer.combine

    def spy(self, encoded):
        seen.extend((update.purpose, update.state["masked"]) for update in encoded)
        return combine(self, encoded)

    monkeypatch.setattr(si.privacy.BlindServer, "combine", spy)
    model = make_model(sections)
    model.train(key=Key.generate(), **QUICK)
    assert {"PCA", "scale", "training", "evaluation"} <= {purpose for purpose, _ in seen}
    for purpose, masked in seen:
        if len(masked) > 200:
            assert abs(np.unpackbits(masked.view(np.uint8)).mean() - 0.5) < 0.03, purpose


def test_save_and_load_bring_the_same_embedding_and_a_lock(keyed, sections, tmp_path):
    model, key = keyed
    model.save(tmp_path / "run")
    loaded = SpaMosaic.load(tmp_path / "run", sections)
    with pytest.raises(RuntimeError, match="locked"):
        loaded.get_latent_representation()
    loaded.unlock(key)
    np.testing.assert_allclose(loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5)
    other = SpaMosaic.load(tmp_path / "run")
    other.unlock(key)
    one = sections[(sections.obs["section"] == "mouse_1").to_numpy()].copy()
    expected = model.get_latent_representation()[(sections.obs["section"] == "mouse_1").to_numpy()]
    np.testing.assert_allclose(other.get_latent_representation(one), expected, atol=1e-4)


def test_a_section_of_few_counts_is_read_as_counts_too(keyed, sections):
    model, _ = keyed
    one = sections[(sections.obs["section"] == "mouse_0").to_numpy()].copy()
    expected = model.get_latent_representation()[(sections.obs["section"] == "mouse_0").to_numpy()]
    order = np.argsort(one.X.max(1).toarray().ravel(), kind="stable")  # the first rows look like logs
    found = model.get_latent_representation(one[order].copy())
    np.testing.assert_allclose(found, expected[order], atol=1e-4)


def test_a_wrong_key_gives_another_embedding_and_the_right_one_comes_back(keyed):
    model, key = keyed
    before = model.get_latent_representation()
    model.unlock(Key.generate(), force=True)
    assert np.abs(model.get_latent_representation() - before).max() > 0.1
    model.unlock(key)
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-6)


@pytest.mark.parametrize("form", ["dense", "float64", "log"])
def test_forms_of_values_give_the_same_embedding(sections, form):
    adata = sections.copy()
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "float64":
        adata.X = adata.X.astype(np.float64)
    else:
        totals = np.asarray(adata.X.sum(1)).ravel()
        adata.X = (sparse.diags(1e4 / totals) @ adata.X).log1p().astype(np.float32).tocsr()
    codes = []
    for data in (sections, adata):
        model = make_model(data, site_key=None, key_scheme=None)
        model.train(**QUICK)
        codes.append(model.get_latent_representation())
    np.testing.assert_allclose(*codes, atol=5e-2)


def test_personal_parameters_stay_at_a_site(sections):
    model = make_model(sections, train_meta=True)
    model.train(key=Key.generate(), share="meta", **QUICK)
    one, other = (model.get_latent_representation(site=site) for site in ("mouse_0", "mouse_1"))
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match="each has a model of its own"):
        model.get_latent_representation()


# ---- mistakes


def test_a_section_at_two_sites_is_refused(sections):
    adata = sections.copy()
    adata.obs["hospital"] = np.where(np.arange(adata.n_obs) % 2, "x", "y")
    with pytest.raises(ValueError, match="every section at one site, found 3 at several"):
        SpaMosaic.setup_anndata(adata, "section", site_key="hospital")


def test_missing_coordinates_and_sections_are_named(sections):
    adata = sections.copy()
    adata.obsm["spatial"][7, 0] = np.nan
    with pytest.raises(ValueError, match="found 1 without, in section mouse_0"):
        SpaMosaic.setup_anndata(adata, "section")
    with pytest.raises(ValueError, match="`spatial_key` to be one of"):
        SpaMosaic.setup_anndata(sections, "section", spatial_key="nothing")
    with pytest.raises(KeyError, match="section_key"):
        SpaMosaic.setup_anndata(sections, "nothing")
    adata = sections.copy()
    adata.obs.loc["spot_3", "section"] = np.nan
    with pytest.raises(ValueError, match="a section for every spot"):
        SpaMosaic.setup_anndata(adata, "section")


def test_features_in_another_order_are_refused(keyed, sections):
    with pytest.raises(ValueError, match="in another order"):
        keyed[0].get_latent_representation(sections[:, ::-1].copy())


def test_bad_settings_are_refused(sections):
    with pytest.raises(ValueError, match="`n_hops`"):
        make_model(sections, n_hops=0)
    with pytest.raises(ValueError, match="`graph_weight` to be a number from 0 to 1"):
        make_model(sections).train(graph_weight=2)
    with pytest.raises(ValueError, match="no first layer that reads cells"):
        make_model(sections).train(key=Key.generate(), share="projected", **QUICK)
