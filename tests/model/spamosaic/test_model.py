"""SpaMosaic: sections of several sites in one embedding."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import scinfl as si
from scinfl.model import SpaMosaic
from scinfl.model.base._local_training import LocalSite
from scinfl.model.spamosaic._normalise import normalised
from scinfl.nn import keyed_layers
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
    combine = si.privacy.aggregation.Aggregator.combine

    def spy(self, encoded):
        seen.extend((update.purpose, update.state["masked"]) for update in encoded)
        return combine(self, encoded)

    monkeypatch.setattr(si.privacy.aggregation.Aggregator, "combine", spy)
    model = make_model(sections)
    model.train(key=Key.generate(), **QUICK)
    purposes = {"moments of features", "PCA, around the mean", "directions of the tissue", "members of prototypes"}
    assert purposes | {"training", "evaluation"} <= {purpose for purpose, _ in seen}
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
    other.save(tmp_path / "copy")
    copied = SpaMosaic.load(tmp_path / "copy")
    copied.unlock(key)
    np.testing.assert_allclose(copied.get_latent_representation(one), expected, atol=1e-4)


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


@pytest.mark.parametrize("form", ["dense", "float64", "csc", "layer", "normalised"])
def test_forms_of_values_give_the_same_embedding(sections, form):
    adata = sections.copy()
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "float64":
        adata.X = adata.X.astype(np.float64)
    elif form == "csc":
        adata.X = adata.X.tocsc()
    elif form == "layer":
        adata.layers["counts"], adata.X = adata.X, None
    else:
        adata.X = normalised(adata.X, "lognorm")
    codes = []
    for data in (sections, adata):
        SpaMosaic.setup_anndata(data, "section", layer="counts" if "counts" in data.layers else None)
        model = SpaMosaic(data, n_components=8, n_target=5, n_neighbours=8, n_hidden=16, key_scheme=None)
        model.train(**QUICK)
        codes.append(model.get_latent_representation())
    assert codes[0].dtype == codes[1].dtype == np.float32
    np.testing.assert_allclose(*codes, atol=1e-3)


def test_personal_parameters_stay_at_a_site(sections):
    model = make_model(sections, train_meta=True)
    model.train(key=Key.generate(), share="meta", **QUICK)
    one, other = (model.get_latent_representation(site=site) for site in ("mouse_0", "mouse_1"))
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match="each has a model of its own"):
        model.get_latent_representation()


# ---- what leaves a site, and what reaches a disk


def test_the_payload_lists_every_sum_and_the_server_can_read_none(sections):
    model = make_model(sections)
    model.train(key=Key.generate(), **QUICK)
    payload = model.payload
    assert set(payload["site"]) == {"mouse_0", "mouse_1", "mouse_2"}
    assert payload["masked"].all()
    assert payload["bytes"].sum() > 0
    largest = payload.loc[payload["purpose"] != "training", "bytes"].max()
    assert largest < sections.n_obs * 30  # nothing as large as the values of the spots
    open_model = make_model(sections, key_scheme=None)
    open_model.train(**QUICK)
    assert not open_model.payload["masked"].any()
    assert set(open_model.payload["purpose"]) <= set(payload["purpose"])


def test_a_rehearsal_lists_the_same_and_trains_nothing(sections):
    model, key = make_model(sections), Key.generate()
    model.train(key=key, dry_run=True, **QUICK)
    planned = model.payload
    assert not model.is_trained_
    assert model.n_neighbours == {}
    model.train(key=key, **QUICK)
    columns = ["site", "purpose", "array"]
    left = set(map(tuple, model.payload[columns].to_numpy()))
    named = set(map(tuple, planned[columns].to_numpy()))
    assert {row for row in left if "training" in row[1]} <= named


def test_neither_the_key_nor_what_follows_from_it_nor_a_place_reaches_the_disk(keyed, sections, tmp_path):
    model, key = keyed
    labels = [
        (label, shape)
        for name, layer in keyed_layers(model.module).items()
        for label, shape in layer.labels(name).values()
    ]
    secrets = [key._secret, key._secret.hex().encode()]
    for label, shape in labels:
        values = key.coordinates(label, shape)
        secrets += [values.astype(kind).tobytes()[:64] for kind in (np.float64, np.float32)]
    places = [sections.obsm["spatial"].astype(kind).tobytes()[:64] for kind in (np.float64, np.float32)]
    for name, sealed in (("sealed", None), ("locked", False)):
        model.save(tmp_path / name, sealed=sealed)
        content = b"".join(path.read_bytes() for path in (tmp_path / name).iterdir())
        assert not any(secret in content for secret in [*secrets, *places])
        assert b"spot_0" not in content
        weights = next((tmp_path / name).glob("weights-*")).read_bytes()
        assert (b"X/components" in weights) == (sealed is False)  # the basis is sealed with the weights
    assert b"gene_0" in content


def test_a_run_that_was_cut_resumes_to_the_same_model(sections, tmp_path, monkeypatch):
    run = {"n_rounds": 4, "key": Key(bytes(range(32)), federation="sections"), "progress": False}
    straight = make_model(sections)
    straight.train(**run)
    fits, fit = [], LocalSite.fit

    def cut(self, number, state):
        fits.append(number)
        if len(fits) == 8:
            raise InterruptedError
        return fit(self, number, state)

    monkeypatch.setattr(LocalSite, "fit", cut)
    with pytest.raises(InterruptedError):
        make_model(sections).train(**run, journal=tmp_path / "run")
    resumed = make_model(sections)
    resumed.train(**run, journal=tmp_path / "run")
    assert fits == [1, 1, 1, 2, 2, 2, 3, 3, *([3] * 3), *([4] * 3)]
    np.testing.assert_array_equal(resumed.get_latent_representation(), straight.get_latent_representation())
    with pytest.raises(ValueError, match="to hold this run, found one with other settings"):
        make_model(sections, n_hidden=20).train(**run, journal=tmp_path / "run")


# ---- sections and sites as they come


def test_views_and_new_sections_are_embedded(keyed, sections):
    model, _ = keyed
    every = model.get_latent_representation()
    own = (sections.obs["section"] == "mouse_1").to_numpy()
    np.testing.assert_allclose(model.get_latent_representation(sections[own]), every[own], atol=1e-5)
    new = make_sections(rng=0, n_sections=4)[450:].copy()  # of the same tissue
    del new.obs["domain"]
    code = model.get_latent_representation(new)
    assert code.shape == (150, every.shape[1])
    assert np.isfinite(code).all()


def test_a_section_of_one_spot_and_sections_smaller_than_the_neighbourhood_work(sections):
    adata = sections.copy()
    section = adata.obs["section"].astype(object).to_numpy(copy=True)
    section[:1], section[1:6] = "one", "few"
    adata.obs["section"], adata.obs["hospital"] = section, sections.obs["section"]
    SpaMosaic.setup_anndata(adata, "section", site_key="hospital")
    model = SpaMosaic(adata, n_components=8, n_target=5, n_neighbours=12, key_scheme=None)
    model.train(**QUICK)
    assert np.isfinite(model.get_latent_representation()).all()
    alone = model.get_latent_representation(adata[:1])
    np.testing.assert_allclose(alone, model.get_latent_representation()[:1], atol=1e-5)


def test_empty_categories_and_the_order_of_spots_do_not_matter(sections):
    adata = sections.copy()
    adata.obs["section"] = adata.obs["section"].astype("category").cat.add_categories("mouse_9")
    order = np.random.default_rng(0).permutation(adata.n_obs)
    codes = []
    for data in (adata, adata[order].copy()):
        model = make_model(data, key_scheme=None)
        model.train(**QUICK, validation_size=0)
        codes.append(model.get_latent_representation())
    # spots come in other batches, so networks differ a little and the basis not at all
    assert np.corrcoef(codes[0][order].ravel(), codes[1].ravel())[0, 1] > 0.97


def test_a_pooled_site_may_be_keyed_too(sections):
    model, key = make_model(sections, site_key=None), Key.generate()
    model.train(key=key, **QUICK)
    before = model.get_latent_representation()
    model.lock()
    with pytest.raises(RuntimeError, match="locked"):
        model.get_latent_representation()
    model.unlock(key)
    np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_two_sites_are_told_that_they_see_each_other_and_one_is_refused(sections):
    adata = sections[sections.obs["section"] != "mouse_2"].copy()
    with pytest.warns(UserWarning, match="each site can subtract its own from the sum and sees the other's"):
        make_model(adata).train(key=Key.generate(), **QUICK)
    one = sections[sections.obs["section"] == "mouse_0"].copy()
    with pytest.raises(ValueError, match=r"at least 2 sites, found 1\. Train one pooled site with `site_key=None`"):
        SpaMosaic.setup_anndata(one, "section", site_key="section")


@pytest.mark.parametrize("how", [{"radius": 200.0}, {"delaunay": True}, {"compat": True}, {"n_hops": 1}], ids=str)
def test_who_is_a_neighbour_changes_the_embedding(how, sections):
    usual = make_model(sections, site_key=None, key_scheme=None)
    usual.train(**QUICK)
    arguments = how if "radius" not in how and "delaunay" not in how else {**how, "n_neighbours": None}
    model = make_model(sections, site_key=None, key_scheme=None, **arguments)
    model.train(**QUICK)
    code = model.get_latent_representation()
    assert np.isfinite(code).all()
    assert np.abs(code - usual.get_latent_representation()).max() > 1e-2
    assert model.n_neighbours == {"X": 8 if "n_neighbours" not in arguments else 0}


@pytest.mark.parametrize("how", ["clr", "lognorm", "log1p", "tfidf", "none"])
def test_every_normalisation_finds_the_stripes(how, sections, tmp_path):
    SpaMosaic.setup_anndata(sections, "section", normalise=how)
    model = SpaMosaic(sections, n_components=8, n_target=5, n_neighbours=8, key_scheme=None)
    model.train(12, progress=False)
    code = model.get_latent_representation()
    found = KMeans(3, n_init=5, random_state=0).fit_predict(code)
    assert adjusted_rand_score(sections.obs["domain"], found) > 0.5
    model.save(tmp_path / "run")
    loaded = SpaMosaic.load(tmp_path / "run", sections)
    np.testing.assert_allclose(loaded.get_latent_representation(), code, atol=1e-5)


def test_an_untrained_model_says_so(sections):
    model = make_model(sections)
    for ask in (model.get_latent_representation, lambda: model.normalised("X"), lambda: model.imputation_error("X")):
        with pytest.raises(RuntimeError, match="Call `train` first"):
            ask()


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
    with pytest.raises(KeyError, match=r"coordinates of the spots in adata.obsm, found none called 'nothing'"):
        SpaMosaic.setup_anndata(sections, "section", spatial_key="nothing")
    with pytest.raises(KeyError, match="section_key"):
        SpaMosaic.setup_anndata(sections, "nothing")
    adata = sections.copy()
    adata.obs.loc["spot_3", "section"] = np.nan
    with pytest.raises(ValueError, match=r"a value for every spot in adata.obs\['section'\], found 1 without"):
        SpaMosaic.setup_anndata(adata, "section")


def test_features_in_another_order_are_taken_by_name(keyed, sections):
    found = keyed[0].get_latent_representation(sections[:, ::-1].copy())
    np.testing.assert_allclose(found, keyed[0].get_latent_representation(sections), rtol=1e-5, atol=1e-6)


def test_bad_settings_are_refused(sections):
    with pytest.raises(ValueError, match="`n_hops`"):
        make_model(sections, n_hops=-1)
    with pytest.raises(ValueError, match="`graph_weight` to be a number from 0 to 1"):
        make_model(sections).train(graph_weight=2)
    with pytest.raises(ValueError, match="no first layer that reads cells"):
        make_model(sections).train(key=Key.generate(), share="projected", **QUICK)


def test_values_and_settings_that_do_not_fit_are_refused_before_training(sections):
    def broken(change):
        adata = sections.copy()
        adata.X = adata.X.toarray()
        change(adata)
        SpaMosaic.setup_anndata(adata, "section")

    def missing(adata):
        adata.X[3, 4] = np.nan

    with pytest.raises(ValueError, match=r"every feature in every spot, found 1 that are missing \(NaN\).*in gene_4"):
        broken(missing)
    with pytest.raises(KeyError, match="`layer` to name a layer of adata, found 'nothing'"):
        SpaMosaic.setup_anndata(sections, "section", layer="nothing")
    with pytest.raises(ValueError, match="`normalise` to be one of"):
        SpaMosaic.setup_anndata(sections, "section", normalise="nothing")
    negative = sections.copy()
    negative.X = negative.X - sparse.csr_matrix(([50.0], ([449], [3])), shape=negative.shape)
    with pytest.raises(ValueError, match=r"Expected counts to normalise by 'clr', found values down to -"):
        SpaMosaic.setup_anndata(negative, "section", normalise="clr")
    with pytest.raises(ValueError, match=r"an AnnData that owns its data, found a view. Run `adata = adata.copy\(\)`"):
        SpaMosaic.setup_anndata(sections[:100], "section")
    with pytest.raises(ValueError, match=r"at least 10 spots at every site that measured it, found 9 at site 'all'"):
        SpaMosaic.setup_anndata(sections[:9].copy(), "section")


def test_spots_that_do_not_differ_are_refused(sections):
    adata = sections.copy()
    adata.X = sparse.csr_matrix(np.ones(adata.shape, np.float32))
    with pytest.raises(ValueError, match="values that differ between the spots of a section, found none"):
        make_model(adata, site_key=None, key_scheme=None).train(**QUICK)


def test_features_that_some_sections_did_not_measure_are_refused(sections):
    parts = {name: sections[(sections.obs["section"] == name).to_numpy()].copy() for name in ("mouse_0", "mouse_1")}
    parts["mouse_1"] = parts["mouse_1"][:, 3:].copy()
    joined = si.pp.join_sections(parts, join="outer")
    with pytest.raises(ValueError, match=r"same features, found 3 that some did not: section mouse_1\. Join them with"):
        SpaMosaic.setup_anndata(joined, "section")
    SpaMosaic.setup_anndata(si.pp.join_sections(parts, join="inner"), "section")
