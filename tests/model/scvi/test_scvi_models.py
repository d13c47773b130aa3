"""Models of scvi-tools over sites: keyed, deterministic, exported, saved, and mapped onto."""

from __future__ import annotations

import copy
import json
from functools import cache

import anndata as ad
import mudata as mu
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from torch.overrides import TorchFunctionMode

import scinfl as si
from scinfl.model import ScviModel, from_scvi, map_query
from scinfl.model.base import ModelView
from scinfl.model.scvi._classes import REFUSED, SUPPORTED
from scinfl.model.scvi._options import ScviOptions
from scinfl.privacy import Key, KeyedSum, PairwiseSum, SampleDP, Shuffle, UpdateDP
from scinfl.privacy.attacks import Watcher
from scinfl.privacy.dp._per_unit import clipped_sum

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:scvi")
KEY = Key(bytes(range(32)), federation="test-federation")
WRONG = Key(bytes(range(1, 33)), federation="test-federation")
SCANVI = {"labels_key": "label", "unlabeled_category": "unknown"}
OPTIONS = {"SCANVI": SCANVI, "CondSCVI": {"labels_key": "label"}}
TYPES = {"TOTALVI": {"rna": 20, "protein": 5}, "MULTIVI": {"rna": 20, "atac": 30, "protein": 5}}


def make_counts(n_cells=120, n_genes=20, n_sites=3, *, rng=0, labels_rng=None) -> ad.AnnData:
    """Counts around three profiles, with a site-specific factor of every gene."""
    generator = np.random.default_rng(rng)
    by_label = generator if labels_rng is None else np.random.default_rng(labels_rng)
    labels, sites = by_label.integers(3, size=n_cells), np.arange(n_cells) % n_sites
    profiles = np.exp(np.random.default_rng(1).normal(0.5, 1.0, (3, n_genes)))
    factors = np.exp(np.random.default_rng(2).normal(0, 0.3, (n_sites, n_genes)))
    X = generator.poisson(profiles[labels] * factors[sites]).astype(np.float32)
    obs = pd.DataFrame(
        {"site": [f"hospital_{i}" for i in sites], "label": [f"type_{i}" for i in labels]},
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    return ad.AnnData(X, obs, pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def make_modalities(kind, *, rng=0, **options) -> ad.AnnData:
    """Counts of several modalities around the profiles of the same labels."""
    mods = {name: make_counts(n_genes=n, rng=rng + n, labels_rng=rng, **options) for name, n in TYPES[kind].items()}
    for name, own in mods.items():
        own.var_names = [f"{name}_{i}" for i in range(own.n_vars)]
    mdata = mu.MuData(mods)
    mdata.obs = mods["rna"].obs.copy()
    return si.pp.join_modalities(mdata)


def cells_of(kind, **options) -> ad.AnnData:
    return make_modalities(kind, **options) if kind in TYPES else make_counts(**options)


def make(kind="SCVI", cells=None, *, key=KEY, n_rounds=2, train=None, **options) -> ScviModel:
    cells = cells_of(kind) if cells is None else cells
    options = {"n_hidden": 16, "n_latent": 4, **OPTIONS.get(kind, {}), **options}
    model = from_scvi(kind, cells, site_key="site", key_scheme=None if key is None else "coordinate", **options)
    model.train(n_rounds, key=key, progress=False, **(train or {}))
    return model


@cache
def trained(kind="SCVI", **options) -> ScviModel:
    return make(kind, **options)


def fresh(kind="SCVI") -> ScviModel:
    """A copy of a trained model that a test may change."""
    model = copy.copy(trained(kind))
    model._keyed = trained(kind)._keyed.copy()
    return model


# ---- training


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
def test_the_exported_model_is_scvi_tools_own_with_these_weights(kind):
    model = trained(kind)
    native = model.to_scvi()
    assert type(native).__name__ == kind
    np.testing.assert_allclose(native.get_latent_representation(), model.get_latent_representation(), atol=1e-6)
    for name, tensor in native.module.state_dict().items():
        assert torch.equal(tensor, model._plain_network().native_state()[name]), name


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
def test_the_locked_model_computes_what_was_trained(kind):
    """Locking and unlocking are exact: a run without key from the same weights gives the same codes to 1e-5."""
    model = fresh(kind)
    network = model._plain_network()
    again = keyed_round_trip(model)
    for (name, one), (_, two) in zip(network.state_dict().items(), again.items(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5, msg=name)


def keyed_round_trip(model):
    plain = model._plain_network().state_dict()
    return {name: si.nn.unlock(model.module, si.nn.lock(model.module, plain))[name] for name in plain}


def test_a_keyed_run_trains_what_a_plain_run_from_the_same_weights_does():
    cells = make_counts()
    model = from_scvi("SCVI", cells, site_key="site", n_hidden=16, n_latent=4)
    model.train(2, key=KEY, progress=False, validation_size=0, protections=())
    plain = from_scvi("SCVI", cells, site_key="site", n_hidden=16, n_latent=4, key_scheme=None)
    start = ModelView(from_scvi("SCVI", cells, site_key="site", n_hidden=16, n_latent=4)).start_of(KEY)
    plain.module.load_state_dict(start.state_dict())
    plain.train(2, progress=False, validation_size=0, protections=())
    found, expected = model.get_latent_representation(), plain.get_latent_representation()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("PEAKVI", "region_factors", 0.0), ("TOTALVI", "background_pro_alpha", 3.0), ("TOTALVI", "py_r", None)],
)
def test_a_keyed_run_starts_from_initial_values_of_the_class(kind, name, value):
    """Background priors of proteins that start at random cost a tenth of the bound."""
    model = from_scvi(kind, cells_of(kind), site_key="site", n_hidden=16, n_latent=4)
    found = ModelView(model).start_of(KEY).native_state()[name]
    plain = model.module.native_state()[name]
    if value is not None:
        np.testing.assert_allclose(plain, value)
        np.testing.assert_allclose(found, value, atol=1e-5)
    assert float(found.mean()) == pytest.approx(float(plain.mean()), abs=0.6)
    assert not torch.equal(found, plain) or value is not None


def test_two_runs_with_one_key_and_seed_are_the_same_to_the_last_bit():
    one, two = (make().get_latent_representation() for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI"])
def test_the_order_of_categories_in_a_file_means_nothing(kind):
    """Each machine sees the sites and labels in an order of its own: the model must be that of one process."""
    cells = make_counts()
    states = []
    for backwards in (False, True):
        own = cells.copy()
        for column in ("site", "label"):
            names = sorted(own.obs[column].unique(), reverse=backwards)
            own.obs[column] = pd.Categorical(own.obs[column], names)
        states.append(ModelView(make(kind, own, train={"run": "r"})).state_without_offsets)
    one, two = states
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("protections", [(), (KeyedSum(KEY),), (PairwiseSum(KEY),)], ids=["plain", "keyed", "pairwise"])
def test_sums_of_all_kinds_give_the_same_model(protections):
    model = make(train={"protections": protections})
    expected = trained().get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-3)


def test_loss_falls_and_the_validated_round_is_kept():
    model = make(n_rounds=8, train={"lr": 0.01})
    losses = model.history["validation_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert model.history.attrs["best_round"] == losses.idxmin()


def test_sparse_counts_train_the_same():
    cells = make_counts()
    cells.X = sparse.csr_matrix(cells.X)
    np.testing.assert_array_equal(make(cells=cells).get_latent_representation(), trained().get_latent_representation())


def test_a_column_of_a_site_is_trained_at_that_site_alone_and_in_full():
    """Without hospital_2 its column stays, and that of hospital_1 moves as far as with it, not by its share."""
    cells, options = make_counts(), {"validation_size": 0, "protections": (), "progress": False}
    two = from_scvi("SCVI", cells, site_key="site", n_hidden=16, n_latent=4)
    view = ModelView(two)
    start = view.start_of(KEY).state_dict()
    view.attach(cells[cells.obs["site"] != "hospital_2"].copy(), view.setup)
    two.train(1, key=KEY, **options)
    three = make(n_rounds=1, train={"validation_size": 0, "protections": ()})
    names = [f"site_columns.0.columns.{site}.weight" for site in range(3)]
    moved = [
        [(m._plain_network().state_dict()[name] - start[name]).norm().item() for name in names] for m in (two, three)
    ]
    assert moved[0][2] < 1e-5
    assert min(moved[1]) > 1e-3
    assert 0.8 < moved[0][1] / moved[1][1] < 1.25


def test_the_warm_up_counts_epochs_of_the_whole_run():
    network = trained(key=None)._plain_network()
    cells = trained(key=None)._training_cells(torch.device("cpu"))
    (batch,) = cells.batches(1000)
    found = []
    network.n_epochs_kl_warmup = 10
    for epochs in (0, 5, 10, 20):
        network.schedule(epochs)
        torch.manual_seed(0)
        found.append(network.loss(batch).item())
    assert found[0] < found[1] < found[2] == found[3]


def test_unused_and_personal_parameters_do_not_leave_a_site():
    model = trained()
    sent = set(model.payload.query("purpose == 'training'")["array"].dropna())
    assert not any("l_encoder" in name for name in sent)
    assert {"rows.px_r.weight", "site_columns.0.columns.2.weight"} <= sent


def test_a_dry_run_trains_nothing_and_lists_the_payload():
    model = from_scvi("SCVI", make_counts(), site_key="site", n_hidden=16)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.train(2, key=KEY, dry_run=True)
    assert not model.is_trained_
    assert len(model.payload)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_a_journal_is_resumed(tmp_path):
    options = {"journal": tmp_path / "journal"}
    first = make(n_rounds=1, train=options)
    assert len(first.history) == 1
    resumed = make(n_rounds=2, train=options)
    np.testing.assert_array_equal(resumed.get_latent_representation(), trained().get_latent_representation())


# ---- noise


class Still(TorchFunctionMode):
    """Latent codes at their means."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        drawn = func(*args, **(kwargs or {}))
        return drawn.zero_() if func in (torch.Tensor.normal_, torch.randn) else drawn


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI", "TOTALVI", "PEAKVI", "CondSCVI"])
def test_gradients_of_single_cells_and_donors_are_clipped_as_one_by_one(kind):
    """Of SCANVI some donors have labels, some cells of a donor have, and some have none."""
    cells = cells_of(kind)
    if kind == "SCANVI":
        cells.obs["label"] = np.where(np.arange(120) % 5 < 3, "unknown", cells.obs["label"])
    network = make(kind, cells, key=None, n_rounds=1)._plain_network()  # without dropout
    network.train_parts([0, 1, 2], list(network.modalities), None)
    batch = next(iter(make(kind, cells, key=None, n_rounds=1)._training_cells(torch.device("cpu")).batches(12)))
    for unit in (np.arange(12), np.arange(12) % 5):
        with Still():
            found = clipped_sum(network, batch, unit, 2.0)
        expected = {name: torch.zeros_like(g) for name, g in found.items()}
        for one in np.unique(unit):
            network.zero_grad()
            with Still():
                network.loss(tuple(tensor[unit == one] for tensor in batch)).backward()
            gradients = {name: network.get_parameter(name).grad for name in found}
            norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
            for name, g in gradients.items():
                expected[name] += g * min(1.0, 2.0 / float(norm))
        for name, g in found.items():
            torch.testing.assert_close(g, expected[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.filterwarnings("ignore:Noise on the updates of")
@pytest.mark.parametrize(
    "noise", [SampleDP(noise_multiplier=50.0, delta=1e-3), UpdateDP(max_norm=1.0, noise_multiplier=50.0)]
)
def test_noise_is_on_what_a_site_trains_and_not_on_the_columns_of_others(noise):
    cells, watcher = make_counts(), Watcher()
    model = from_scvi("SCVI", cells, site_key="site", n_hidden=16, n_latent=4, key_scheme=None)
    start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model.train(1, key=None, protections=[noise, watcher], validation_size=0, progress=False)
    assert model.history["epsilon"].iloc[-1] == noise.epsilon() > 0
    for update in watcher.seen[1]:
        for number, other in enumerate(model.sites):
            name = f"site_columns.0.columns.{number}.weight"
            moved = np.abs(update.state[name] - start[name].numpy()).max()
            assert (moved > 1e-3) == (update.site == other), (update.site, other)


def test_donors_are_guarded_as_a_whole_and_set_aside_together():
    cells = make_counts()
    cells.obs["donor"] = [f"donor_{i}" for i in np.arange(120) // 3 % 6]
    model = from_scvi("SCVI", cells, site_key="site", group_key="donor", n_hidden=16, n_latent=4)
    noise = SampleDP(target_epsilon=8, delta=1e-2)
    model.train(1, key=KEY, protections=[noise, KeyedSum(KEY)], validation_size=0, progress=False)
    assert 0 < noise.epsilon() <= 8
    assert noise._account.unit == "group"
    for own in model._data(ScviOptions(validation_size=0.4)).values():
        aside, kept = (set(part.groups) for part in (own.validation, own.train))
        assert kept
        assert not aside & kept


# ---- several modalities, and other parameters of sites


@pytest.mark.parametrize("options", [{"dispersion": "gene-batch"}, {"batch_representation": "embedding"}])
def test_dispersions_and_embeddings_of_a_site_are_its_own(options):
    model = make(n_rounds=1, train={"validation_size": 0}, **options)
    np.testing.assert_allclose(
        model.to_scvi().get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )
    parts = [name for name, p in model._plain_network().site_columns.named_parameters() if p.requires_grad]
    assert {name.split(".")[2] for name in parts if "columns" in name} == {"0", "1", "2"}
    sent = set(model.payload.query("purpose == 'training'")["array"].dropna())
    assert {f"site_columns.{name}" for name in parts} <= sent


def without(cells, site, kind):
    """Cells of a site without a modality."""
    values = cells.X.toarray()
    values[np.ix_(cells.obs["site"] == site, cells.var["feature_types"] == kind)] = 0
    cells.X = sparse.csr_matrix(values)
    return cells


def test_what_reads_a_modality_is_trained_at_the_sites_that_measured_it():
    """Peaks are measured at hospital_0 alone: what reads them ends where that site brings it, whoever else trains."""
    cells = make_modalities("MULTIVI")
    for site in ("hospital_1", "hospital_2"):
        without(cells, site, "Peaks")
    options = {"validation_size": 0, "protections": (), "progress": False}
    three = from_scvi("MULTIVI", cells, site_key="site", n_hidden=16, n_latent=4, dropout_rate=0)
    view = ModelView(three)
    start = view.start_of(KEY).state_dict()
    two = from_scvi("MULTIVI", cells.copy(), site_key="site", n_hidden=16, n_latent=4, dropout_rate=0)
    ModelView(two).attach(cells[cells.obs["site"] != "hospital_2"].copy(), view.setup)
    for model in (three, two):
        model.train(1, key=KEY, **options)
    own = three.module.modality_parts["Peaks"]
    assert any("z_encoder_accessibility" in name for name in own)
    assert not any("z_encoder_expression" in name for name in own)
    states = [model._plain_network().state_dict() for model in (three, two)]
    moved = {name: (states[0][name] - start[name]).abs().max().item() for name in own}
    assert max(moved.values()) > 1e-3
    for name in own:
        torch.testing.assert_close(states[0][name], states[1][name], atol=1e-5, rtol=1e-3, msg=name)
    shared = "native.z_encoder_expression.encoder.fc_layers.Layer 0.0.weight"
    assert not torch.allclose(states[0][shared], states[1][shared], atol=1e-4)


def test_a_mosaic_of_modalities_trains_and_embeds_cells_of_all_sites():
    cells = without(make_modalities("MULTIVI"), "hospital_1", "Peaks")
    model = make("MULTIVI", without(cells, "hospital_2", "Gene Expression"), n_rounds=4, train={"lr": 0.01})
    losses = model.history["validation_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_multivi_of_genes_and_peaks_alone_is_that_of_scvi_tools():
    cells = make_modalities("MULTIVI")
    cells = cells[:, cells.var["feature_types"] != "Antibody Capture"].copy()
    model = make("MULTIVI", cells)
    np.testing.assert_allclose(
        model.to_scvi().get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )


def test_modalities_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found none at 'hospital_1'"):
        make("TOTALVI", without(make_modalities("TOTALVI"), "hospital_1", "Antibody Capture"))
    with pytest.raises(ValueError, match=r"feature_types.*join_modalities"):
        from_scvi("TOTALVI", make_counts(), site_key="site")
    with pytest.raises(ValueError, match="no Peaks"):
        from_scvi("MULTIVI", make_modalities("TOTALVI"), site_key="site")
    with pytest.raises(ValueError, match="others: Peaks"):
        from_scvi("TOTALVI", make_modalities("MULTIVI"), site_key="site")
    with pytest.raises(ValueError, match="found them mixed"):
        from_scvi("TOTALVI", make_modalities("TOTALVI")[:, ::-1].copy(), site_key="site")


def test_methods_of_scvi_tools_run_on_exported_models_of_modalities():
    foreground = trained("TOTALVI").to_scvi().get_protein_foreground_probability(n_samples=1)
    assert foreground.shape == (120, 5)
    assert foreground.to_numpy().min() >= 0
    assert trained("MULTIVI").to_scvi().get_normalized_accessibility().shape == (120, 30)
    prior = trained("CondSCVI").to_scvi().get_vamp_prior(p=3)
    assert prior["mean_vprior"].shape == (3, 3, 4)


# ---- the lock


def test_a_wrong_key_and_removed_modules_do_not_give_the_codes():
    model = fresh()
    right = model.get_latent_representation()
    removed = model.stripped().get_latent_representation()
    model.unlock(WRONG, force=True)
    for found in (removed, model.get_latent_representation()):
        similar = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(right.T, found.T, strict=True)]
        assert not np.allclose(right, found, atol=0.1)
        assert np.mean(similar) < 0.6


def test_gene_wise_parameters_are_behind_the_key():
    model = trained()
    stored, plain = model.module.rows["px_r"].weight, model._plain_network().rows["px_r"].weight
    assert abs(np.corrcoef(stored.detach().ravel(), plain.detach().ravel())[0, 1]) < 0.7
    assert stored.abs().max() > 5 * plain.abs().max()


def test_a_locked_model_predicts_nothing_until_it_is_unlocked():
    model = fresh()
    model.lock()
    with pytest.raises(RuntimeError, match="unlocked"):
        model.get_latent_representation()
    with pytest.raises(RuntimeError, match="unlocked"):
        model.to_scvi()
    model.unlock(KEY)
    np.testing.assert_array_equal(model.get_latent_representation(), trained().get_latent_representation())


def test_another_key_takes_over_and_the_codes_stay():
    model, new = fresh(), Key(bytes(range(2, 34)), federation="test-federation", version=2)
    before = model.get_latent_representation()
    model.rekey(KEY, new)
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-4)


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI", "TOTALVI", "MULTIVI", "CondSCVI"])
def test_a_saved_model_is_locked_sealed_and_holds_no_label_of_a_cell(kind, tmp_path):
    model = trained(kind)
    model.save(tmp_path / "model")
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".sealed"}
    assert "labels_" not in document
    for values in leaves(document):
        assert len(values) != model.adata.n_obs  # nothing is one per cell
    again = ScviModel.load(tmp_path / "model")
    with pytest.raises(RuntimeError, match="unlocked"):
        again.get_latent_representation(cells_of(kind))
    again.unlock(KEY)
    np.testing.assert_array_equal(
        again.get_latent_representation(cells_of(kind)), model.get_latent_representation(cells_of(kind))
    )
    with_data = ScviModel.load(tmp_path / "model", cells_of(kind))
    with_data.train(1, key=KEY, progress=False)
    assert len(with_data.history) == 1


def leaves(document):
    """Lists in nested json."""
    if isinstance(document, list):
        yield document
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from leaves(value)


# ---- scvi-tools' own methods


def test_differential_expression_and_normalised_expression_run_on_the_exported_model():
    native = trained().to_scvi()
    expression = native.get_normalized_expression(n_samples=1)
    assert expression.shape == (120, 20)
    np.testing.assert_allclose(expression.sum(1), 1, atol=1e-4)
    table = native.differential_expression(groupby="label", group1="type_0", group2="type_1", silent=True)
    assert set(table.index) == set(native.adata.var_names)


def test_exported_values_are_those_of_a_model_built_natively_with_the_weights():
    model = trained()
    cells = make_counts()
    scvi.model.SCVI.setup_anndata(cells, batch_key="site")
    native = scvi.model.SCVI(cells, n_hidden=16, n_latent=4, use_batch_norm="none", use_layer_norm="both")
    native.module.load_state_dict(model._plain_network().native_state())
    native.module.eval()
    native.is_trained_ = True
    expected = []
    for one in (native, model.to_scvi()):
        scvi.settings.seed = 0
        expected.append(one.get_normalized_expression(n_samples=1).to_numpy())
    np.testing.assert_allclose(*expected, rtol=1e-5)


# ---- labels


def test_scanvi_labels_cells_of_a_site_without_labels():
    cells = make_counts(n_cells=240)
    truth = cells.obs["label"].to_numpy()
    hidden = (cells.obs["site"] == "hospital_2").to_numpy()
    cells.obs["label"] = np.where(hidden, "unknown", truth)
    model = make("SCANVI", cells, n_rounds=15, train={"lr": 0.01})
    assert model.labels == ["type_0", "type_1", "type_2"]
    assert (model.predict()[hidden] == truth[hidden]).mean() > 0.8
    np.testing.assert_allclose(model.predict(soft=True), model.to_scvi().predict(soft=True), atol=1e-5)
    si.tl.annotate(cells, model)
    assert (cells.obs["infl_label"][hidden] == truth[hidden]).mean() > 0.8


def test_a_site_with_some_of_the_classes_has_the_shapes_of_all():
    cells = make_counts()
    rare = (cells.obs["site"] == "hospital_0") & (cells.obs["label"] == "type_2")
    model = make("SCANVI", cells[~rare].copy())
    shapes = {name: p.shape for name, p in trained("SCANVI").module.named_parameters()}
    assert {name: p.shape for name, p in model.module.named_parameters()} == shapes


def test_only_a_classifier_predicts_labels():
    with pytest.raises(TypeError, match="found a SCVI"):
        trained().predict()
    with pytest.raises(ValueError, match="labels_key"):
        from_scvi("SCANVI", make_counts(), site_key="site")


# ---- mapping


@pytest.mark.parametrize("kind", ["TOTALVI", "MULTIVI", "CondSCVI"])
def test_sites_are_mapped_onto_models_of_all_kinds(kind):
    model, new = trained(kind), cells_of(kind, n_sites=1, rng=5)
    new.obs["site"] = "hospital_new"
    new.obs_names = [f"new_{name}" for name in new.obs_names]
    before = model.get_latent_representation()
    frozen = {name for name, p in model.module.named_parameters() if not p.requires_grad}
    mapped = map_query(model, new, KEY, n_epochs=5)
    np.testing.assert_array_equal(mapped.get_latent_representation(cells_of(kind)), before)
    assert frozen <= {name for name, p in mapped.module.named_parameters() if not p.requires_grad}
    mapped.add_site(cells_of(kind))
    mapped.train(1, key=KEY, progress=False)
    assert mapped.history["n_sites"].iloc[-1] == 4


@pytest.mark.parametrize("encode", [False, True])
def test_a_mapped_site_leaves_the_codes_of_others_as_they_are_to_the_last_bit(encode):
    model = trained() if not encode else trained(encode_covariates=True)
    new = make_counts(n_cells=40, n_sites=1, rng=5)
    new.obs["site"] = "hospital_new"
    before = model.get_latent_representation()
    state = {name: tensor.clone() for name, tensor in model._plain_network().state_dict().items()}
    mapped = map_query(model, new, KEY, n_epochs=20)
    assert mapped.sites == [*model.sites, "hospital_new"]
    assert mapped.get_latent_representation().shape == (40, 4)
    np.testing.assert_array_equal(mapped.get_latent_representation(make_counts()), before)
    changed = mapped._plain_network().state_dict()
    assert all(torch.equal(tensor, changed[name]) for name, tensor in state.items())
    assert set(changed) - set(state) == {
        f"site_columns.{n}.columns.3.weight" for n in range(len(model.module.site_columns))
    }
    untrained = map_query(model, new, KEY, n_epochs=0)
    (batch,) = mapped._training_cells(torch.device("cpu")).batches(1000)
    losses = []
    for one in (untrained, mapped):
        torch.manual_seed(0)
        losses.append(one._plain_network().loss(batch).item())
    assert losses[1] < losses[0]


def test_a_saved_model_is_mapped_onto_and_the_result_is_saved(tmp_path):
    trained("SCANVI").save(tmp_path / "reference")
    new = make_counts(n_cells=40, n_sites=1, rng=5)
    new.obs = pd.DataFrame({"site": "hospital_new"}, index=new.obs_names)
    mapped = map_query(tmp_path / "reference", new, KEY, n_epochs=2)
    mapped.save(tmp_path / "mapped")
    again = ScviModel.load(tmp_path / "mapped")
    again.unlock(KEY)
    np.testing.assert_array_equal(again.predict(new), mapped.predict())
    np.testing.assert_array_equal(mapped.predict(), trained("SCANVI").predict(new))


def test_mapping_refuses_sites_that_take_part_and_wrong_keys():
    with pytest.raises(ValueError, match="takes no part"):
        map_query(trained(), make_counts(n_sites=1), KEY)
    new = make_counts(n_sites=1)
    new.obs["site"] = "hospital_new"
    with pytest.raises(ValueError, match="fingerprint"):
        map_query(fresh(), new, WRONG)
    new.obs["site"] = [f"new_{i % 2}" for i in range(new.n_obs)]
    with pytest.raises(ValueError, match="one new site"):
        map_query(fresh(), new, KEY)
    new.obs_names = [f"new_{name}" for name in new.obs_names]
    with pytest.raises(ValueError, match="map_query"):
        trained().add_site(new)


# ---- refusals


@pytest.mark.parametrize("name", [*sorted(REFUSED), "NoSuchModel"])
def test_other_classes_are_refused_with_their_reason(name):
    with pytest.raises(ValueError, match=f"found {name}: ") as error:
        from_scvi(name, make_counts(), site_key="site")
    assert REFUSED.get(name, "no such class") in str(error.value)


def test_a_class_that_reads_counts_and_sites_alone_is_trained_without_being_known():
    model = make("CYTOVI")
    np.testing.assert_allclose(
        model.to_scvi().get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )


class _OfCells(scvi.model.SCVI):
    """A parameter for every cell."""

    def __init__(self, adata, **options):
        super().__init__(adata, **options)
        self.module.own = torch.nn.Parameter(torch.zeros(adata.n_obs))


class _WithBuffer(scvi.model.SCVI):
    """Values that no training makes."""

    def __init__(self, adata, **options):
        super().__init__(adata, **options)
        self.module.register_buffer("cells", torch.zeros(3))


class _Counted(scvi.module.VAE):
    def loss(self, *args, n_obs=1.0, **options):
        return super().loss(*args, **options)


class _OfNumber(scvi.model.SCVI):
    _module_cls = _Counted


class _OfPyro(scvi.model.SCVI):
    _module_cls = scvi.module.base.PyroBaseModuleClass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_OfCells, "number of cells"),
        (_WithBuffer, "may be made of cells"),
        (_OfNumber, "weighs a prior"),
        (_OfPyro, "Pyro"),
        ("ContrastiveVI", "background"),
        ("RNAStereoscope", "names no network"),
        ("SCBASSET", "names no network|asks for"),
    ],
)
def test_a_class_that_breaks_a_condition_is_refused_with_it(kind, reason, monkeypatch):
    if not isinstance(kind, str):
        monkeypatch.setattr(scvi.external, kind.__name__, kind, raising=False)
        monkeypatch.setattr(kind, "__module__", "scvi.external._of_a_test")
    with pytest.raises(ValueError, match=reason):
        from_scvi(kind, make_counts(), site_key="site")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_batch_norm": "both"}, "batch normalisation"),
        ({"use_observed_lib_size": False}, "library sizes"),
        ({"n_latnet": 3}, "n_latnet"),
        ({"latent_distribution": "ln"}, "normal distribution"),
        ({"extra_encoder_kwargs": {"activation_fn": torch.nn.Tanh}}, "json"),
        ({"key_scheme": "permuted"}, "cannot act inside"),
        ({"key_scheme": "pooled"}, "cannot act inside"),
    ],
)
def test_settings_that_a_federation_cannot_have_are_refused_with_their_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        from_scvi("SCVI", make_counts(), site_key="site", **options)


def test_arguments_made_of_cells_are_refused():
    for kind, options in (
        ("TOTALVI", {"empirical_protein_background_prior": True}),
        ("MULTIVI", {"modality_weights": "cell"}),
        ("CondSCVI", {"weight_obs": True, "labels_key": "label"}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*in a federation"):
            from_scvi(kind, cells_of(kind), site_key="site", **options)


def test_data_and_protections_that_do_not_fit_are_refused_before_training():
    cells = make_counts()
    cells.X = cells.X + 0.5
    with pytest.raises(ValueError, match="Expected counts"):
        from_scvi("SCVI", cells, site_key="site")
    model = from_scvi("SCVI", make_counts(), site_key="site")
    with pytest.raises(ValueError, match="share='all'"):
        model.train(key=KEY, share=["native.z_encoder"])
    with pytest.raises(ValueError, match="found Shuffle: the columns"):
        model.train(key=KEY, protections=(Shuffle(max_norm=1.0, noise_multiplier=1.0),), validation_size=0)
    model = from_scvi("MULTIVI", without(make_modalities("MULTIVI"), "hospital_1", "Peaks"), site_key="site")
    for guard, reason in (
        (SampleDP(noise_multiplier=1.0, delta=1e-3), "what a whole batch holds.*`UpdateDP`"),
        (UpdateDP(max_norm=1.0, noise_multiplier=1.0), "same modalities at all sites"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.train(key=KEY, protections=(guard,), validation_size=0)
    with pytest.raises(ValueError, match="features"):
        trained().get_latent_representation(make_counts(n_genes=10))


def test_genes_in_another_order_are_put_in_order():
    cells = make_counts()
    np.testing.assert_array_equal(
        trained().get_latent_representation(cells[:, ::-1].copy()), trained().get_latent_representation(cells)
    )


def test_one_pooled_site_trains_and_embeds():
    cells = make_counts()
    model = from_scvi(scvi.model.SCVI, cells, site_key=None, key_scheme=None, n_hidden=16, n_latent=4)
    model.train(1, progress=False)
    si.tl.embed(cells, model)
    assert cells.obsm["X_infl"].shape == (120, 4)
    assert "scvi-tools" in repr(model)
