"""SpaMosaic where sections measured different modalities."""

from __future__ import annotations

import mudata as md
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import scinfl as si
from scinfl._data_files import without_pull
from scinfl.datasets import mosaic_simulated
from scinfl.federation import FedAdam, FedAvgM, Median
from scinfl.model import SpaMosaic
from scinfl.model.base._local_training import LocalSite
from scinfl.model.spamosaic._batches import centred
from scinfl.model.spamosaic._normalise import normalised
from scinfl.nn import keyed_layers
from scinfl.privacy import Key

pytestmark = pytest.mark.filterwarnings("ignore:(One site|Two sites) alone measured:UserWarning")

KEY = Key(bytes(range(32)), federation="mosaic")
TWO = {"n_spots": 300, "n_genes": 150, "section_effect": 0.1, "rng": 1}
THREE = {**TWO, "n_sections": 4, "modalities": ("rna", "adt", "atac"), "n_peaks": 300, "section_effect": 0.4, "rng": 2}
SMALL = {"n_spots": 60, "n_genes": 30, "n_proteins": 12, "n_peaks": 40}
QUICK = {"n_rounds": 2, "progress": False}


def set_up(mdata, **arguments):
    SpaMosaic.setup_mudata(mdata, **{"section_key": "section", "site_key": "site", **arguments})


def make_model(mdata, *, site_key="site", **arguments) -> SpaMosaic:
    set_up(mdata, site_key=site_key)
    return SpaMosaic(mdata, **{"n_components": 8, "n_target": 5, "n_hidden": 16, **arguments})


def sections_of(mdata, *names, modalities=None) -> md.MuData:
    """Some sections as a MuData of their own."""
    mods = {
        name: adata[adata.obs["section"].isin(names).to_numpy()].copy()
        for name, adata in mdata.mod.items()
        if modalities is None or name in modalities
    }
    with without_pull():
        part = md.MuData({name: adata for name, adata in mods.items() if adata.n_obs})
    rows = mdata.obs_names.get_indexer(part.obs_names)
    part.obs, part.obsm["spatial"] = mdata.obs.iloc[rows].copy(), np.asarray(mdata.obsm["spatial"])[rows]
    return part


def agreement(embedding, domains) -> float:
    return adjusted_rand_score(domains, KMeans(6, n_init=5, random_state=0).fit_predict(embedding))


def of_one_modality(truth, name, how) -> float:
    """Agreement of the components of one modality that was measured in all sections."""
    adata = truth[name]
    x = centred(normalised(adata.X, how).toarray(), adata.obs["section"].to_numpy())
    return agreement(PCA(15, random_state=0).fit_transform(x / np.maximum(x.std(0), 1e-6)), adata.obs["domain"])


@pytest.fixture(scope="module")
def two():
    mdata = mosaic_simulated(**TWO)
    set_up(mdata)
    model = SpaMosaic(mdata, n_components=20)
    model.train(key=KEY, progress=False)
    return mdata, model


@pytest.fixture(scope="module")
def three():
    mdata = mosaic_simulated(**THREE)
    set_up(mdata)
    model = SpaMosaic(mdata, n_components=20)
    model.train(key=KEY, progress=False)
    return mdata, model


@pytest.fixture(scope="module")
def small():
    mdata = mosaic_simulated(**SMALL)
    model = make_model(mdata, key_scheme=None)
    model.train(**QUICK)
    return mdata, model


# ---- from start to end


@pytest.mark.parametrize("case", ["two", "three"])
def test_all_spots_get_one_embedding_that_separates_more_than_any_modality(case, request):
    mdata, model = request.getfixturevalue(case)
    si.tl.embed(mdata, model)
    code = mdata.obsm["X_infl"]
    assert code.shape == (mdata.n_obs, 20 * len(mdata.mod))
    assert code.dtype == np.float32
    assert np.isfinite(code).all()
    si.tl.cluster(mdata, 6)
    assert mdata.obs["infl_domain"].notna().all()
    found = adjusted_rand_score(mdata.obs["domain"], mdata.obs["infl_domain"])
    truth = mosaic_simulated(**(TWO if case == "two" else THREE), complete=True)
    alone = [of_one_modality(truth, name, "tfidf" if name == "atac" else "clr") for name in mdata.mod]
    assert found > max(alone) + 0.03
    assert list(model.n_neighbours) == list(mdata.mod)
    assert {name: len(features) for name, features in model.feature_names.items()} == {
        name: adata.n_vars for name, adata in mdata.mod.items()
    }
    assert model.var_names[0] == "rna:GENE1"


def test_modalities_of_a_spot_agree_and_sections_mix(two):
    mdata, model = two
    both = (mdata.obs["section"] == "section_1").to_numpy()
    codes = [model.get_latent_representation(modality=name)[both] for name in ("rna", "adt")]
    together = model.get_latent_representation()
    # what is predicted from a code is linear in it, and the code of a spot is the mean over its modalities
    np.testing.assert_allclose(together[both], (codes[0] + codes[1]) / 2, atol=1e-4)
    distances = np.linalg.norm(codes[0][:, None] - codes[1][None], axis=2)
    rank = (distances < np.diag(distances)[:, None]).mean()  # share of spots nearer than the spot itself
    assert rank < 0.3
    table = si.metrics.integration(together, batch=mdata.obs["section"], labels=mdata.obs["domain"], n_neighbours=60)
    assert table.set_index("metric")["value"]["mixing"] > 0.5


def test_embedding_of_one_modality_is_missing_where_it_was_not_measured(two):
    mdata, model = two
    adt = model.get_latent_representation(modality="adt")
    lacks = (mdata.obs["section"] == "section_2").to_numpy()
    assert np.isnan(adt[lacks]).all()
    assert np.isfinite(adt[~lacks]).all()
    np.testing.assert_allclose(
        model.get_latent_representation(modality=["rna", "adt"]), model.get_latent_representation(), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"`modality` to be one of \['rna', 'adt'\], found 'atac'"):
        model.get_latent_representation(modality="atac")
    with pytest.raises(ValueError, match=r"Expected spots that measured adt, found rna\. Add their sections"):
        model.get_latent_representation(sections_of(mdata, "section_2"), modality="adt")


def test_sites_of_their_own_do_nearly_as_well_as_one_pooled_site(two):
    mdata, model = two
    set_up(mdata, site_key=None)
    pooled = SpaMosaic(mdata, n_components=20, key_scheme=None)
    pooled.train(progress=False)
    set_up(mdata)
    scores = [agreement(m.get_latent_representation(), mdata.obs["domain"]) for m in (model, pooled)]
    assert scores[0] > scores[1] - 0.1


# ---- who owns what


def test_a_site_sends_back_what_it_did_not_measure_as_it_came(monkeypatch):
    sent, fit = [], LocalSite.fit

    def spy(self, number, state):
        update = fit(self, number, state)
        sent.append((update, {name: array.copy() for name, array in state.items()}))
        return update

    monkeypatch.setattr(LocalSite, "fit", spy)
    owners = {"hospital_1": {"rna", "adt"}, "hospital_2": {"rna"}, "hospital_3": {"adt"}}
    for key, atol in ((None, 0), (KEY, 1e-6)):
        sent.clear()
        make_model(mosaic_simulated(**SMALL), key_scheme=None if key is None else "coordinate").train(**QUICK, key=key)
        assert len(sent) == 6
        for update, before in sent:
            assert {name: update.metrics[f"has_{name}"] for name in ("rna", "adt")} == {
                name: float(name in owners[update.site]) for name in ("rna", "adt")
            }
            for name, array in update.state.items():
                moved = np.abs(array - before[name]).max()
                if name.split(".")[1] in owners[update.site]:
                    assert moved > 1e-4, name
                else:
                    assert moved <= atol, name


def test_the_shared_encoder_is_the_mean_over_its_owners(monkeypatch):
    sent, fit = {}, LocalSite.fit
    monkeypatch.setattr(LocalSite, "fit", lambda self, *a: sent.setdefault(self.name, fit(self, *a)))
    model = make_model(mosaic_simulated(**SMALL), key_scheme=None)
    model.train(1, progress=False)
    for modality, sites in (("rna", ("hospital_1", "hospital_2")), ("adt", ("hospital_1", "hospital_3"))):
        weights = np.array([sent[site].n_obs for site in sites], float)
        for name, parameter in model.module.named_parameters():
            if f".{modality}." in name:
                mean = sum(w * sent[s].state[name] for w, s in zip(weights / weights.sum(), sites, strict=True))
                np.testing.assert_allclose(parameter.detach().numpy(), mean, atol=1e-6, err_msg=name)


def test_masked_training_ends_where_open_training_does():
    codes = []
    for protections in ("default", ()):
        model = make_model(mosaic_simulated(**SMALL))
        model.train(3, key=KEY, protections=protections, progress=False)
        codes.append(model.get_latent_representation())
    np.testing.assert_allclose(*codes, atol=2e-3)


@pytest.mark.parametrize("strategy", [FedAvgM(), FedAdam()], ids=repr)
def test_other_strategies_of_sums_work(strategy):
    model = make_model(mosaic_simulated(**SMALL), key_scheme=None)
    model.train(**QUICK, strategy=strategy)
    assert np.isfinite(model.get_latent_representation()).all()


def test_strategies_that_compare_sites_are_refused():
    model = make_model(mosaic_simulated(**SMALL), key_scheme=None)
    with pytest.raises(ValueError, match="sites have different modalities, found Median"):
        model.train(**QUICK, strategy=Median())
    assert not model.is_trained_


def test_some_sites_a_round_are_enough():
    model = make_model(mosaic_simulated(4, **SMALL))
    model.train(4, key=KEY, fraction=0.75, progress=False)
    assert set(model.history["n_sites"]) == {3}
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_modality_of_few_sites_is_reported_and_the_server_reads_no_sum_of_several():
    mdata = mosaic_simulated(**SMALL, modalities=("rna", "adt", "atac"))
    model = make_model(mdata)
    with pytest.warns(UserWarning, match="alone measured") as caught:
        model.train(key=KEY, **QUICK)
    text = " ".join(str(warning.message) for warning in caught)
    assert "One site alone measured 'atac' (hospital_2): what is agreed on for it" in text
    assert "Two sites alone measured 'rna' (hospital_1, hospital_2), 'adt' (hospital_1, hospital_3)" in text
    read = model.payload[~model.payload["masked"]]
    assert read["purpose"].str.startswith("atac: ").all()
    assert not read["purpose"].str.contains("error").any()  # masked though one site alone knows it


# ---- the lock


def test_a_wrong_key_is_no_better_than_no_training(two):
    mdata, model = two
    set_up(mdata)
    untrained = SpaMosaic(mdata, n_components=20, key_scheme=None)
    untrained.train(1, lr=1e-9, progress=False)
    chance = agreement(untrained.get_latent_representation(), mdata.obs["domain"])
    right = agreement(model.get_latent_representation(), mdata.obs["domain"])
    wrong = []
    for number in range(5):
        model.unlock(Key(bytes(range(100 + number, 132 + number)), federation="mosaic"), force=True)
        wrong.append(agreement(model.get_latent_representation(), mdata.obs["domain"]))
    model.unlock(KEY)
    assert np.mean(wrong) < chance + 0.05
    assert right > np.mean(wrong) + 0.15


def test_files_keep_the_embedding_and_the_lock_and_nothing_secret(two, tmp_path):
    mdata, model = two
    expected, error = model.get_latent_representation(), model.imputation_error("adt")
    model.save(tmp_path / "run")
    loaded = SpaMosaic.load(tmp_path / "run", mdata)
    for ask in (
        loaded.get_latent_representation,
        lambda: loaded.impute("adt"),
        lambda: loaded.normalised("rna"),
        lambda: si.tl.impute(mdata, loaded, modality="adt"),
    ):
        with pytest.raises(RuntimeError, match="locked"):
            ask()
    loaded.unlock(KEY)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.imputation_error("adt"), error)
    assert loaded.n_neighbours == model.n_neighbours
    content = b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir())
    secrets = [KEY._secret, KEY._secret.hex().encode(), np.asarray(mdata.obsm["spatial"]).tobytes()[:64]]
    for name, layer in keyed_layers(model.module).items():
        for label, shape in layer.labels(name).values():
            secrets.append(KEY.coordinates(label, shape).astype(np.float32).tobytes()[:64])
    assert not any(secret in content for secret in secrets)
    assert b"section_1_spot" not in content


def test_sites_that_have_a_part_of_the_data_load_and_embed_it(small, tmp_path):
    mdata, model = small
    model.save(tmp_path / "run")
    expected = model.get_latent_representation()
    for part in (
        sections_of(mdata, "section_2"),
        sections_of(mdata, "section_2", "section_3"),
        mdata[(mdata.obs["section"] == "section_3").to_numpy()],
        mdata,
    ):
        loaded = SpaMosaic.load(tmp_path / "run", part)
        rows = mdata.obs_names.get_indexer(part.obs_names)
        np.testing.assert_allclose(loaded.get_latent_representation(), expected[rows], atol=1e-4)
    loaded.train(**QUICK)
    lone = SpaMosaic.load(tmp_path / "run", sections_of(mdata, "section_2"))
    with pytest.raises(
        ValueError, match="sections to train on, found none, or a view, or some without the model's modalities"
    ):
        lone.train(**QUICK)


def test_modalities_may_come_in_another_order(small, tmp_path):
    mdata, model = small
    model.save(tmp_path / "run")
    with without_pull():
        turned = md.MuData({name: mdata[name].copy() for name in ("adt", "rna")})
    turned.obs = mdata.obs.loc[turned.obs_names].copy()
    rows = mdata.obs_names.get_indexer(turned.obs_names)
    expected = model.get_latent_representation()[rows]
    np.testing.assert_allclose(model.get_latent_representation(turned), expected, atol=1e-5)
    loaded = SpaMosaic.load(tmp_path / "run", turned)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-5)


def test_a_run_that_was_cut_resumes_to_the_same_model(tmp_path, monkeypatch):
    run = {"n_rounds": 3, "key": KEY, "progress": False}
    straight = make_model(mosaic_simulated(**SMALL))
    straight.train(**run)
    fits, fit = [], LocalSite.fit

    def cut(self, number, state):
        fits.append(number)
        if len(fits) == 5:
            raise InterruptedError
        return fit(self, number, state)

    monkeypatch.setattr(LocalSite, "fit", cut)
    with pytest.raises(InterruptedError):
        make_model(mosaic_simulated(**SMALL)).train(**run, journal=tmp_path / "run")
    resumed = make_model(mosaic_simulated(**SMALL))
    resumed.train(**run, journal=tmp_path / "run")
    assert fits == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(resumed.get_latent_representation(), straight.get_latent_representation())


def test_another_key_takes_over(small):
    mdata = mosaic_simulated(**SMALL)
    model = make_model(mdata)
    model.train(key=KEY, **QUICK)
    before, imputed = model.get_latent_representation(), model.impute("adt")
    new = Key(bytes(range(1, 33)), federation="mosaic", version=2)
    model.rekey(KEY, new)
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-5)
    np.testing.assert_allclose(model.impute("adt"), imputed, atol=1e-5, equal_nan=True)


# ---- data as they come


def test_results_survive_an_update_and_a_file(two, tmp_path):
    mdata, model = two
    si.tl.embed(mdata, model)
    si.tl.cluster(mdata, 6)
    code, domains = mdata.obsm["X_infl"].copy(), mdata.obs["infl_domain"].copy()
    with without_pull():
        mdata.update()
        mdata.write(tmp_path / "mosaic.h5mu")
        again = md.read_h5mu(tmp_path / "mosaic.h5mu")
    for data in (mdata, again):
        np.testing.assert_array_equal(data.obsm["X_infl"], code)
        assert data.obs["infl_domain"].tolist() == domains.tolist()
    np.testing.assert_allclose(model.get_latent_representation(again), code, atol=1e-5)
    spots = model.spots(again)
    assert spots["rna"].tolist() == again.obs_names.isin(again["rna"].obs_names).tolist()
    np.testing.assert_array_equal(np.stack(spots["spatial"]), again.obsm["spatial"])


def test_new_sections_are_embedded_like_old_ones(two):
    _, model = two
    new = mosaic_simulated(5, **TWO)
    part = sections_of(new, "section_4", "section_5")  # of the same tissue, measured elsewhere
    code = model.get_latent_representation(part)
    assert np.isfinite(code).all()
    assert agreement(code, part.obs["domain"]) > 0.2
    del part.obs["site"]
    for adata in part.mod.values():
        del adata.obs["site"]
    np.testing.assert_array_equal(model.get_latent_representation(part), code)


def test_one_modality_in_a_mudata_is_the_same_as_an_anndata():
    adata = mosaic_simulated(**SMALL)["rna"].copy()
    SpaMosaic.setup_anndata(adata, "section", site_key=None)
    options = {"n_components": 8, "n_hidden": 16, "key_scheme": None}
    one = SpaMosaic(adata, **options)
    mdata = md.MuData({"rna": adata.copy()})
    set_up(mdata, site_key=None)
    other = SpaMosaic(mdata, **options)
    for model in (one, other):
        model.train(**QUICK)
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())


@pytest.mark.parametrize("form", ["dense", "float64", "mixed"])
def test_forms_of_values_give_the_same_embedding(form, small):
    mdata, model = small
    changed = mdata.copy()
    for name, adata in changed.mod.items():
        if form == "float64":
            adata.X = adata.X.astype(np.float64)
        elif form == "dense" or name == "rna":
            adata.X = adata.X.toarray()
    again = make_model(changed, key_scheme=None)
    again.train(**QUICK)
    np.testing.assert_allclose(again.get_latent_representation(), model.get_latent_representation(), atol=2e-3)
    np.testing.assert_allclose(model.get_latent_representation(changed), model.get_latent_representation(), atol=1e-3)


@pytest.mark.parametrize(
    "how",
    [{"radius": 250.0}, {"delaunay": True}, {"compat": True}, {"n_hops": 1}, {"n_neighbours": 4}],
    ids=lambda how: next(iter(how)),
)
def test_who_is_a_neighbour_changes_the_embedding(how, small):
    mdata, usual = small
    model = make_model(mdata, key_scheme=None, **how)
    model.train(**QUICK)
    code = model.get_latent_representation()
    assert np.isfinite(code).all()
    assert np.abs(code - usual.get_latent_representation()).max() > 1e-2


@pytest.mark.parametrize("weights", [{"graph_weight": 0.5}, {"contrast_weight": 0.5}], ids=str)
def test_every_part_of_the_loss_counts(weights, small):
    mdata, usual = small
    model = make_model(mdata, key_scheme=None)
    model.train(**QUICK, **weights)
    assert np.isfinite(model.history["train_loss"]).all()
    assert np.abs(model.get_latent_representation() - usual.get_latent_representation()).max() > 1e-4


def test_contrast_brings_modalities_of_a_spot_together():
    mdata = mosaic_simulated(**{**TWO, "n_spots": 200})
    both = (mdata.obs["section"] == "section_1").to_numpy()
    gaps = []
    for weight in (0.0, 1.0):
        model = make_model(mdata, key_scheme=None)
        model.train(15, contrast_weight=weight, progress=False)
        rna, adt = (model.get_latent_representation(modality=name)[both] for name in ("rna", "adt"))
        distances = np.linalg.norm(rna[:, None] - adt[None], axis=2)
        gaps.append((distances < np.diag(distances)[:, None]).mean())
    assert gaps[1] < gaps[0]


def test_personal_parameters_stay_at_a_site():
    model = make_model(mosaic_simulated(**SMALL), train_meta=True)
    model.train(key=KEY, share="meta", **QUICK)
    one, other = (model.get_latent_representation(site=site) for site in ("hospital_1", "hospital_2"))
    assert np.abs(one - other).max() > 1e-3


# ---- mistakes


def test_an_anndata_is_not_a_mudata_and_the_other_way_round(small, tmp_path):
    mdata, model = small
    adata = mdata["rna"].copy()
    with pytest.raises(TypeError, match=r"a MuData of \['rna', 'adt'\], as the model was trained on, found AnnData"):
        model.get_latent_representation(adata)
    model.save(tmp_path / "run")
    with pytest.raises(TypeError, match=r"Pass `mudata.MuData\(\{modality: adata\}\)`"):
        SpaMosaic.load(tmp_path / "run", adata)
    SpaMosaic.setup_anndata(adata, "section")
    other = SpaMosaic(adata, n_components=8, key_scheme=None)
    other.train(**QUICK)
    with pytest.raises(TypeError, match=r"an AnnData as `adata`, found a MuData. Take one modality"):
        other.get_latent_representation(mdata)
    with pytest.raises(ValueError, match="a model of several modalities to impute one from the others, found one"):
        other.impute("X")


def test_other_features_and_modalities_are_named(small):
    mdata, model = small
    mods = {name: adata.copy() for name, adata in mdata.mod.items()}
    with pytest.raises(
        ValueError, match=r"30 features of 'rna' in their order, found .*Reorder with `mdata.mod\['rna'\] ="
    ):
        model.get_latent_representation(md.MuData({"rna": mods["rna"][:, ::-1].copy(), "adt": mods["adt"]}))
    with pytest.raises(ValueError, match=r"in mdata\['adt'\].var_names, found 2 of them missing: PROTEIN1, PROTEIN2"):
        model.get_latent_representation(md.MuData({"rna": mods["rna"], "adt": mods["adt"][:, 2:].copy()}))
    with pytest.raises(ValueError, match=r"modalities among \['rna', 'adt'\], found 'atac'. Leave out"):
        model.get_latent_representation(md.MuData({"rna": mods["rna"], "atac": mods["adt"]}))


def test_bad_settings_of_training_are_refused_before_it():
    model = make_model(mosaic_simulated(**SMALL), key_scheme=None)
    for wrong, named in (
        ({"contrast_weight": -1}, "`contrast_weight` to be a number from 0"),
        ({"temperature": 0}, "`temperature` to be a number above 0"),
        ({"graph_weight": 1.5}, "`graph_weight` to be a number from 0 to 1"),
        ({"key": KEY}, "no key with `key_scheme=None`"),
    ):
        with pytest.raises(ValueError, match=named):
            model.train(**QUICK, **wrong)
        assert not model.is_trained_
