"""What an embedding is to show: cells, niches or domains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tests.model.spamosaic.test_model import QUICK, make_sections

from scinfl.model import SpaMosaic
from scinfl.privacy import Key

SMALL = {"n_components": 8, "n_target": 5, "n_hidden": 16}


def trained(adata, *, key=None, **options):
    SpaMosaic.setup_anndata(adata, "section", site_key="section")
    model = SpaMosaic(adata, key_scheme=None if key is None else "coordinate", **{**SMALL, **options})
    model.train(key=key, run=None if key is None else "r", **QUICK)
    return model


def test_at_the_scale_of_cells_the_place_does_not_matter():
    adata, moved = make_sections(), make_sections()
    generator = np.random.default_rng(1)
    for section in moved.obs["section"].unique():
        rows = np.flatnonzero(moved.obs["section"] == section)
        moved.obsm["spatial"][rows] = moved.obsm["spatial"][generator.permutation(rows)]
    found = [trained(own, scale="cell").get_latent_representation() for own in (adata, moved)]
    np.testing.assert_allclose(*found, atol=1e-5)
    smoothed = [trained(own, scale="niche").get_latent_representation() for own in (adata, moved)]
    assert np.abs(smoothed[0] - smoothed[1]).max() > 0.1


def test_mixed_types_are_found_among_cells_and_stripes_among_domains():
    """Half of the cells of each stripe are of a type that is everywhere."""
    adata = make_sections(n_spots=300, n_sections=2)
    generator = np.random.default_rng(2)
    other = generator.random(adata.n_obs) < 0.5
    profile = generator.gamma(1.0, 2.0, adata.n_vars)
    X = adata.X.toarray()
    X[other] = generator.poisson(profile * 10, (int(other.sum()), adata.n_vars))
    adata.X, adata.obs["type"] = X, np.where(other, "other", adata.obs["domain"])
    agreement = {}
    for scale in ("cell", "domain"):
        x = trained(adata, scale=scale).get_latent_representation()
        for truth in ("type", "domain"):
            n = adata.obs[truth].nunique()
            clusters = KMeans(n, n_init=10, random_state=0).fit_predict(x)
            agreement[scale, truth] = adjusted_rand_score(adata.obs[truth], clusters)
    assert agreement["cell", "type"] > max(0.6, agreement["domain", "type"])
    assert agreement["domain", "domain"] > max(0.6, agreement["cell", "domain"])


def test_scales_are_neighbours_and_hops():
    adata = make_sections(n_spots=60)
    for scale, explicit in (("niche", {"n_neighbours": 6, "n_hops": 1}), (9, {"n_neighbours": 9, "n_hops": 2})):
        found = [trained(adata, **own).get_latent_representation() for own in ({"scale": scale}, explicit)]
        np.testing.assert_array_equal(*found)
    assert trained(adata, scale="niche", n_hops=2)._options.n_hops == 2


def test_the_key_and_a_file_change_nothing_at_the_scale_of_cells(tmp_path):
    adata, key = make_sections(n_spots=60), Key(bytes(range(32)), federation="mice")
    model = trained(adata, key=key, scale="cell")
    expected = model.get_latent_representation()
    model.save(tmp_path / "model")
    loaded = SpaMosaic.load(tmp_path / "model", adata)
    loaded.unlock(key)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-5)
    new = make_sections(n_spots=40, n_sections=1, rng=5)
    new.obs["section"] = pd.Categorical(["new"] * 40)
    assert loaded.get_latent_representation(new).shape == (40, expected.shape[1])


@pytest.mark.parametrize("scale", ["tissue", 0, True, 2.5, None])
def test_a_scale_that_is_none_is_refused(scale):
    adata = make_sections(n_spots=30)
    SpaMosaic.setup_anndata(adata, "section", site_key="section")
    with pytest.raises(ValueError, match="`scale`"):
        SpaMosaic(adata, scale=scale)
