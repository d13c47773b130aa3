"""A watching server finds the key in open updates and nothing under keyed sums."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conftest import make_cells

from scinfl.datasets import tcga_proteins
from scinfl.model import Classifier
from scinfl.privacy import KeyedSum
from scinfl.privacy.attacks import Watcher, match_features

N_GENES = 40


def correlated_cells(n_cells, rng):
    """Genes that go together in programmes of different strength, as in real data."""
    generator = np.random.default_rng(7)
    loadings = generator.normal(size=(6, N_GENES)) * generator.gamma(1.0, 1.0, (6, N_GENES))
    generator = np.random.default_rng(rng)
    return generator.normal(size=(n_cells, 6)) @ loadings + generator.normal(size=(n_cells, N_GENES))


@pytest.fixture(scope="module")
def hospitals(shared):
    """Real proteins: what the sites train on, and what anybody may know."""
    adata = tcga_proteins(shared("bulk/tcga_rppa.h5ad"))
    public = np.random.default_rng(0).random(adata.n_obs) < 0.3
    return adata[~public].copy(), adata[public].X


def recovered(hospitals, key, protections):
    train, public = hospitals
    Classifier.setup_anndata(train, "cancer", site_key="region")
    watcher = Watcher()
    model = Classifier(train, n_hidden=64, dropout=0.1, input_dropout=0.0)
    model.train(25, key=key, protections=[*protections, watcher], lr=3e-3, progress=False)
    true = np.argsort(key.coordinates("encoder.1/permutation", (120,)))
    seen = watcher.mean("encoder.1.weight", (64, 120))
    assert len(seen) == 25
    return (match_features(seen, public) == true).mean(), watcher


@pytest.mark.slow
def test_offsets_of_rounds_hide_the_permutation_in_updates_in_the_open(hospitals, key):
    assert recovered(hospitals, key, [])[0] < 0.1


@pytest.mark.slow
def test_keyed_sums_give_nothing_away(hospitals, key):
    share, watcher = recovered(hospitals, key, [KeyedSum(key)])
    assert share < 0.1
    assert all(set(upload.state) == {"masked"} for uploads in watcher.seen.values() for upload in uploads)


class WithoutMasks(KeyedSum):
    """Packs and adds as a keyed sum does, with masks of zeros."""

    def _stream(self, context, update, site, nonce, n, dtype):
        return np.zeros(n, dtype), 0


@pytest.mark.parametrize("bits", [None, 64, 32], ids=["in the open", "64 bits", "32 bits"])
def test_a_server_reads_each_parameter_at_its_place_in_the_sum(key, bits):
    adata, watcher = make_cells(), Watcher()
    adata = adata[adata.obs["site"].ne("hospital_0") | (np.arange(adata.n_obs) % 2 == 0)].copy()  # of different sizes
    Classifier.setup_anndata(adata, "label", site_key="site")
    model = Classifier(adata, n_hidden=16, key_scheme=None)
    guards = [watcher] if bits is None else [WithoutMasks(key, bits=bits), watcher]
    model.train(1, protections=guards, validation_size=0, progress=False)
    assert (bits is None) == ("encoder.1.weight" in watcher.seen[1][0].state)
    for name, parameter in model.module.named_parameters():
        (mean,) = watcher.mean(name, tuple(parameter.shape))
        np.testing.assert_allclose(mean, parameter.detach(), atol=1e-6)


def test_a_server_that_adds_what_keyed_sums_mask_reads_noise(key):
    adata, watcher = make_cells(), Watcher()
    Classifier.setup_anndata(adata, "label", site_key="site")
    model = Classifier(adata, n_hidden=16)
    model.train(1, key=key, protections=[KeyedSum(key), watcher], validation_size=0, progress=False)
    (mean,) = watcher.mean("encoder.1.weight", (16, 30))
    assert abs(np.corrcoef(mean.ravel(), model.module.encoder[1].weight.detach().ravel())[0, 1]) < 0.2
    with pytest.raises(KeyError, match=r"found 'encoder.1.weight' of shape \(30, 16\)"):
        watcher.mean("encoder.1.weight", (30, 16))


def test_what_is_not_hidden_at_all_is_matched_exactly():
    public = correlated_cells(600, 1)
    order = np.random.default_rng(3).permutation(N_GENES)
    signs = np.random.default_rng(4).choice([-1, 1], N_GENES)
    assert (match_features([correlated_cells(600, 2)[:, order] * signs], public) == order).mean() > 0.9


@pytest.mark.parametrize("constant", [0, 5])
def test_a_feature_that_never_changes_is_no_error(constant):
    public = correlated_cells(100, 1)
    public[:, constant] = 0
    assert sorted(match_features([public], public, n_restarts=2)) == list(range(N_GENES))
