"""One network over sites, from set-up to prediction."""

from __future__ import annotations

import copy
import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score
from tests.conftest import make_cells

from scinfl import nn as keyed_nn
from scinfl.federation import FedAvg
from scinfl.model import Classifier
from scinfl.privacy import Key
from scinfl.privacy.attacks import removed_modules, wrong_keys


def fit(adata, n_rounds=4, *, key=None, scheme="coordinate", site_key="site", setup=None, options=None, **arguments):
    Classifier.setup_anndata(adata, "label", site_key=site_key, **(setup or {}))
    model = Classifier(adata, n_hidden=24, key_scheme=scheme if key else None, **(options or {}))
    model.train(n_rounds, key=key, progress=False, **arguments)
    return model


def plain_state(model, state=None):
    return keyed_nn.add_offsets(model.module, state or model.module.state_dict(), sign=-1)


def accuracy(model, adata):
    return float((model.predict(adata) == adata.obs["label"].astype(str)).mean())


def test_a_keyed_federation_learns_and_its_model_is_useless_without_the_key(cells, key):
    test = make_cells(rng=0)[::2].copy()
    model = fit(cells, key=key)
    true = test.obs["label"].astype(str).to_numpy()
    names, x = np.array(model.labels), torch.from_numpy(test.X)

    def score(network):
        with torch.inference_mode():
            return balanced_accuracy_score(true, names[network(x).argmax(1).numpy()])

    assert score(model.module) > 0.95
    wrong = wrong_keys(model.module, score, n_keys=50)
    assert abs(wrong.mean() - 0.25) < 0.08
    assert wrong.max() < 0.7
    assert removed_modules(model.module, score) < 0.7
    assert score(model.module) > 0.95  # the attackers worked on copies


def test_keyed_and_plain_training_reach_the_same(cells, key):
    assert accuracy(fit(cells, key=key), cells) > 0.97
    assert accuracy(fit(cells), cells) > 0.97


def test_without_hidden_layers_it_is_a_keyed_multinomial_regression(cells, key, tmp_path):
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_layers=0, input_dropout=0)
    model.train(n_rounds=10, key=key, lr=0.02, progress=False)
    shapes = {name: tuple(p.shape) for name, p in model.module.named_parameters() if ".meta." not in name}
    assert shapes == {"head.weight": (4, cells.n_vars), "head.bias": (4,)}
    right = accuracy(model, cells)
    assert right > 0.9
    assert "no hidden units" in repr(model)
    with pytest.raises(ValueError, match=r"n_layers=0.*predict\(soft=True\)"):
        model.get_latent_representation()
    x, codes = torch.from_numpy(cells.X), cells.obs["label"].cat.codes.to_numpy()
    wrong = wrong_keys(model.module, lambda network: float((network(x).argmax(1).numpy() == codes).mean()), n_keys=50)
    assert abs(wrong.mean() - 0.25) < 0.1
    model.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model")
    loaded.unlock(key)
    assert accuracy(loaded, cells) == right


def test_the_weights_are_held_locked_and_the_key_only_in_the_open_model(cells, key):
    model = fit(cells, key=key)
    assert not model.is_locked
    x = torch.from_numpy(cells.X)
    with torch.inference_mode():
        right = model.module(x)
        plain = keyed_nn.unkeyed(copy.deepcopy(model.module))
        assert not torch.allclose(plain(x), right, atol=0.1)
        opened = keyed_nn.unlock(model.module, model.module.state_dict())
        plain.load_state_dict({n: v for n, v in opened.items() if "meta" not in n})
        torch.testing.assert_close(plain(x), right, rtol=1e-3, atol=1e-4)
    model.lock()
    assert model.is_locked
    with pytest.raises(RuntimeError, match=r"Call `model.unlock\(key\)` first"):
        model.predict()
    with pytest.raises(ValueError, match="Use the key of this model"):
        model.unlock(Key.generate())
    with pytest.raises(TypeError, match=r"Key.load"):
        model.unlock("my key")
    model.unlock(Key.generate(), force=True)
    assert accuracy(model, cells) < 0.7
    model.unlock(key)
    assert accuracy(model, cells) > 0.97


def test_a_copied_or_pickled_model_is_locked(cells, key):
    model = fit(cells, key=key)
    for twin in (copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))):
        assert not any(layer.is_set for layer in keyed_nn.keyed_layers(twin).values())


def test_without_a_key_it_warns_once_unless_that_is_said(cells):
    Classifier.setup_anndata(cells, "label", site_key="site")
    with pytest.warns(UserWarning, match="federated but not keyed") as caught:
        Classifier(cells, n_hidden=8).train(1, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier(cells, n_hidden=8, key_scheme=None).train(1, progress=False)


def test_prediction_forms(cells, key):
    model = fit(cells, key=key)
    soft = model.predict(soft=True)
    assert list(soft.columns) == model.labels == ["type_0", "type_1", "type_2", "type_3"]
    assert soft.index.equals(cells.obs_names)
    np.testing.assert_allclose(soft.sum(1), 1)
    assert (soft.columns[soft.to_numpy().argmax(1)] == model.predict()).all()
    doubtful = model.predict(min_confidence=1.0)
    assert "unassigned" in doubtful
    latent = model.get_latent_representation()
    assert latent.shape == (360, 24)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(model.predict(soft=True, batch_size=7), soft, atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.astype(np.float64),
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        np.asfortranarray,
    ],
    ids=["float64", "csr", "csc", "csr array", "fortran"],
)
def test_the_form_of_the_matrix_does_not_matter(cells, convert):
    expected = fit(cells).predict(soft=True)
    other = cells.copy()
    other.X = convert(cells.X)
    np.testing.assert_allclose(fit(other).predict(soft=True), expected, atol=1e-4)


def test_layers_views_and_backed_files_are_read(cells, tmp_path):
    model = fit(cells)
    expected = model.predict(soft=True)
    layered = cells.copy()
    layered.layers["log"], layered.X = cells.X.copy(), np.zeros_like(cells.X)
    np.testing.assert_allclose(fit(layered, setup={"layer": "log"}).predict(soft=True), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(cells[10:20], soft=True), expected[10:20], atol=1e-5)
    cells.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_allclose(model.predict(backed, soft=True), expected, atol=1e-5)
    trained = fit(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"))
    np.testing.assert_allclose(trained.predict(soft=True), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_model_and_another_another(cells, key):
    first, again, other = (plain_state(fit(cells, 2, key=key, rng=rng)) for rng in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_goes_on_where_it_stopped(cells, key):
    model = fit(cells, 1, key=key)
    before = model.module.head.weight.clone()
    with pytest.raises(ValueError, match="trained with it"):
        model.train(1, progress=False)
    with pytest.raises(ValueError, match="Use the key of this model"):
        model.train(1, key=Key.generate(), progress=False)
    model.train(1, key=key, progress=False)
    assert not torch.equal(before, model.module.head.weight)
    plain = fit(cells, 1)
    with pytest.raises(ValueError, match="key_scheme=None"):
        plain.train(1, key=key, progress=False)


def test_an_open_model_cannot_be_locked_afterwards(cells, key):
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_hidden=8)
    with pytest.warns(UserWarning, match="not keyed"):
        model.train(1, progress=False)
    with pytest.raises(ValueError, match="Make a new model"):
        model.train(1, key=key, progress=False)


def test_a_failed_training_leaves_the_model_as_it_was(cells, key):
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_hidden=8)
    with pytest.raises(ValueError, match="NaN or infinity"), np.errstate(all="ignore"):
        model.train(2, key=key, lr=10.0, weight_decay=10.0, local_epochs=40, batch_size=4, progress=False)
    assert not keyed_nn.keyed_layers(model.module)
    assert not model.is_trained
    model.train(1, key=key, progress=False)
    assert not model.is_locked


def test_history_has_a_row_a_round_and_sites_only_here(cells, key):
    model = fit(cells, 3, key=key)
    assert list(model.history.index) == [1, 2, 3]
    assert {"train_loss", "validation_loss", "validation_balanced_accuracy", "bytes_sent", "seconds"} <= set(
        model.history
    )
    n_parameters = sum(p.numel() for n, p in model.module.named_parameters() if "meta" not in n)
    assert (model.history["bytes_sent"] == 3 * 8 * (n_parameters + 2)).all()  # 64 bits; share and loss travel inside
    plain = fit(cells, 1, key=key, protections=())
    assert (plain.history["bytes_sent"] == 3 * 8 * n_parameters).all()  # weights of three sites, no meta learner
    assert model.site_history.loc[(2, "hospital_1"), "n_obs"] == 108
    assert model.history.attrs["best_round"] in (1, 2, 3)


def test_a_site_may_lack_classes_and_a_tiny_site_is_reported(cells, key):
    lopsided = cells[~((cells.obs["site"] == "hospital_0") & (cells.obs["label"] != "type_0"))].copy()
    assert accuracy(fit(lopsided, 6, key=key), cells) > 0.9
    tiny = cells[(cells.obs["site"] != "hospital_2") | (np.arange(360) < 20)].copy()
    with pytest.warns(UserWarning, match=r"1 of 3 sites with fewer than 10 labelled cells: hospital_2 \(6\)"):
        model = fit(tiny)
    assert set(model.site_history.index.get_level_values("site")) == {"hospital_0", "hospital_1"}
    assert set(fit(tiny, min_cells=1).site_history.index.get_level_values("site")) == set(cells.obs["site"])
    with pytest.raises(ValueError, match="at least one site with 1000 labelled cells"):
        fit(cells, min_cells=1000)


def test_features_far_from_zero_are_learned_as_well_as_centred_ones(cells):
    far = cells.copy()
    far.X = far.X + np.linspace(-30, 30, far.n_vars, dtype=np.float32)
    model = fit(far, 10)
    assert model.module.encoder[0].p > 0
    assert accuracy(model, far) > 0.9


def test_one_pooled_site_trains_too(cells, key):
    assert accuracy(fit(cells, site_key=None, key=key), cells) > 0.97


def test_keyed_sums_are_the_default_and_give_the_plain_run(cells, key, caplog):
    from scinfl.privacy import KeyedSum

    hidden, plain = fit(cells, 3, key=key), fit(cells, 3, key=key, protections=())
    np.testing.assert_allclose(hidden.predict(soft=True), plain.predict(soft=True), atol=1e-3)
    for name in ("train_loss", "validation_loss", "validation_balanced_accuracy"):
        np.testing.assert_allclose(hidden.history[name], plain.history[name], rtol=1e-4)
    with caplog.at_level("INFO", "scinfl"):
        small = fit(cells, 3, key=key, protections=[KeyedSum(key, bits=32, bound=0.5)])
    assert "is sent again" in caplog.text
    assert (small.history["bytes_sent"] * 2 == hidden.history["bytes_sent"]).all()
    np.testing.assert_allclose(small.predict(soft=True), plain.predict(soft=True), atol=1e-3)


def test_too_few_sites_for_a_keyed_sum_are_told(cells, key):
    with pytest.raises(ValueError, match="Raise `fraction` or `min_sites`"):
        fit(cells, 1, key=key, fraction=0.5)
    two = cells[cells.obs["site"] != "hospital_2"].copy()
    with pytest.warns(UserWarning, match="each site can subtract its own"):
        fit(two, 1, key=key)
    cells.obs["donor"] = np.where(cells.obs["site"] == "hospital_0", "only one", cells.obs["donor"])
    with pytest.raises(ValueError, match="Expected validation rows at 3 sites at least"):
        fit(cells, 1, key=key, setup={"group_key": "donor"})


def test_unlabelled_cells_are_predicted_and_not_trained_on(cells):
    truth = cells.obs["label"].astype(str).to_numpy()
    cells.obs["label"] = cells.obs["label"].cat.add_categories("unknown")
    cells.obs.loc[cells.obs_names[::3], "label"] = "unknown"  # hospital_0 has no label at all
    with pytest.warns(UserWarning, match=r"Left out 1 of 3 sites .* hospital_0 \(0\)"):
        model = fit(cells, 6, setup={"unlabeled_category": "unknown"}, validation_size=0)
    assert model.labels == ["type_0", "type_1", "type_2", "type_3"]
    assert (model.predict()[::3] == truth[::3]).mean() > 0.9
    assert model.site_history["n_obs"].groupby("round").sum().iloc[0] == 240


def test_groups_stay_together_in_the_validation_split(cells):
    from scinfl.model._classifier import _split

    rows, codes = np.arange(0, 360, 3), cells.obs["label"].cat.codes.to_numpy()
    donors = cells.obs["donor"].to_numpy()
    train, validation = _split(rows, codes, donors, 0.2, np.random.default_rng(0))
    assert sorted([*train, *validation]) == list(rows)
    assert not set(donors[train]) & set(donors[validation])
    train, validation = _split(rows, codes, None, 0.2, np.random.default_rng(0))
    assert sorted([*train, *validation]) == list(rows)
    assert len(validation) == 24
    shares = np.bincount(codes[validation]) / np.bincount(codes[rows])
    assert shares.min() > 0.1
    assert len(_split(rows, codes, None, 0.0, np.random.default_rng(0))[1]) == 0
    assert len(_split(rows, codes, np.full(360, "one"), 0.2, np.random.default_rng(0))[1]) == 0


def test_class_weights_help_a_rare_class(key):
    adata = make_cells(600, noise=4.0, rng=3)
    rare = (adata.obs["label"] == "type_0").to_numpy() & (np.arange(600) % 8 != 0)
    train, test = adata[~rare].copy(), make_cells(600, noise=4.0, rng=3)
    recall = {}
    for weight in (None, "balanced"):
        model = fit(train, 6, class_weight=weight, options={"dropout": 0.0, "input_dropout": 0.0}, validation_size=0)
        hit = model.predict(test)[rare] == "type_0"
        recall[weight] = hit.mean()
    assert recall["balanced"] > recall[None]


def test_batch_normalisation_warns_keeps_statistics_at_the_site_and_works(cells, key, tmp_path):
    with pytest.warns(UserWarning, match="They stay at the site"):
        model = fit(cells, 6, key=key, options={"norm": "batch"}, validation_size=0.2)
    assert accuracy(model, cells) > 0.9
    sent = {name for name, _, _, _ in model_payload(model)}
    assert not any("running" in name for name in sent)
    model.save(tmp_path / "run")
    saved = b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir())
    assert b"running_mean" not in saved
    with pytest.warns(UserWarning, match="They stay at the site"):
        loaded = Classifier.load(tmp_path / "run", cells)
    loaded.unlock(key)
    assert accuracy(loaded, cells) > 0.9  # estimated from the cells at hand


def model_payload(model):
    from scinfl.federation import Update

    network = keyed_nn.unkeyed(copy.deepcopy(model.module))
    return Update("a", 1, model._keyed.shared_state({name for name, _ in network.named_parameters()}), 1).payload()


def test_missing_values_are_refused_or_read_as_zero(cells):
    holes = cells.copy()
    holes.X[::5, 3] = np.nan
    with pytest.raises(ValueError, match=r"72 missing \(NaN\) in 1 features: gene_3.*missing='zero'"):
        fit(holes)
    model = fit(holes, setup={"missing": "zero"})
    filled = holes.copy()
    filled.X = np.nan_to_num(holes.X)
    np.testing.assert_allclose(model.predict(holes, soft=True), model.predict(filled, soft=True))
    assert np.isnan(holes.X).any()  # the data were not touched
    holes.X = sparse.csr_matrix(holes.X)
    np.testing.assert_allclose(model.predict(holes, soft=True), model.predict(filled, soft=True), atol=1e-6)
    strict = fit(filled)
    with pytest.raises(ValueError, match="missing"):
        strict.predict(holes)
    holes.X = holes.X.toarray()
    holes.X[0, 0] = np.inf
    with pytest.raises(ValueError, match="1 infinite in 1 features: gene_0"):
        model.predict(holes)


def test_features_are_taken_by_name_and_must_all_be_there(cells, caplog, tmp_path):
    model = fit(cells, 1)
    expected = model.predict(soft=True)
    more = ad.concat([cells[:, ::-1], ad.AnnData(np.ones((cells.n_obs, 1), np.float32), cells.obs)], axis=1)
    more.obs = cells.obs
    more.layers["sparse"] = sparse.csc_matrix(more.X)
    more.write_h5ad(tmp_path / "more.h5ad")
    for other in (cells[:, ::-1], more, ad.read_h5ad(tmp_path / "more.h5ad", backed="r")):
        caplog.clear()
        pd.testing.assert_frame_equal(model.predict(other, soft=True), expected)
        assert f"Took the model's {cells.n_vars} features, in its order, from the {other.n_vars}" in caplog.text
    assert list(more.var_names[:2]) == list(cells.var_names[::-1][:2])  # the data were not touched
    with pytest.raises(ValueError, match="2 of them missing: gene_0, gene_1"):
        model.predict(cells[:, 2:])
    assert model.predict(cells[:, ::-1][:, model.var_names]).shape == (360,)


BAD_SETUPS = {
    "one site only": (
        lambda a: setattr(a, "obs", a.obs.assign(site="here")),
        {},
        ValueError,
        "at least 2 sites, found 1",
    ),
    "unknown label column": (lambda a: None, {"labels_key": "celltype"}, KeyError, "'celltype'. Columns are label"),
    "unknown site column": (lambda a: None, {"site_key": "hospital"}, KeyError, "`site_key` to name a column"),
    "unknown layer": (lambda a: None, {"layer": "log"}, KeyError, "`layer` to name a layer"),
    "missing site": (
        lambda a: a.obs.loc.__setitem__((a.obs_names[:3], "site"), None),
        {},
        ValueError,
        "found 3 without",
    ),
    "missing labels at a site": (
        lambda a: a.obs.loc.__setitem__((a.obs_names[:9:3], "label"), None),
        {},
        ValueError,
        "3 at site 'hospital_0'",
    ),
    "one label": (lambda a: setattr(a, "obs", a.obs.assign(label="T cell")), {}, ValueError, "at least 2 labels"),
    "duplicate genes": (
        lambda a: setattr(a, "var_names", ["gene_0", "gene_0", *a.var_names[2:]]),
        {},
        ValueError,
        "1 that occur more than once: gene_0",
    ),
    "missing group": (
        lambda a: a.obs.loc.__setitem__((a.obs_names[0], "donor"), None),
        {"group_key": "donor"},
        ValueError,
        "group",
    ),
    "unknown policy": (lambda a: None, {"missing": "drop"}, ValueError, "one of"),
}


@pytest.mark.parametrize(("spoil", "arguments", "error", "message"), BAD_SETUPS.values(), ids=BAD_SETUPS)
def test_bad_data_are_refused_with_place_and_cure(cells, spoil, arguments, error, message):
    spoil(cells)
    with pytest.raises(error, match=message):
        Classifier.setup_anndata(cells, **{"labels_key": "label", "site_key": "site", **arguments})
    assert not any("_scvi" in name for name in cells.obs)


def test_views_and_counts_are_told(cells):
    with pytest.raises(ValueError, match=r"adata = adata.copy\(\)"):
        Classifier.setup_anndata(cells[:100], "label", site_key="site")
    cells.X = np.random.default_rng(0).poisson(20, cells.shape).astype(np.float32)
    with pytest.warns(UserWarning, match="looks like raw counts"):
        Classifier.setup_anndata(cells, "label", site_key="site")


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_rounds": 0},
        {"local_epochs": 1.5},
        {"batch_size": 0},
        {"lr": 0},
        {"lr": float("nan")},
        {"weight_decay": -1},
        {"validation_size": 1.0},
        {"class_weight": "inverse"},
        {"monitor": "accuracy"},
        {"early_stopping": 0},
        {"early_stopping": 3, "validation_size": 0},
        {"fraction": 2},
        {"min_sites": 9},
        {"rng": -1},
        {"device": "gpu"},
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_training(cells, arguments):
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_hidden=8, key_scheme=None)
    with pytest.raises(ValueError, match="Expected"):
        model.train(**{"n_rounds": 1, "progress": False, **arguments})
    assert model.history is None


@pytest.mark.parametrize(
    "arguments",
    [{"n_hidden": 0}, {"n_layers": -1}, {"dropout": 1}, {"norm": "group"}, {"key_scheme": "xor"}, {"rng": 0.5}],
    ids=str,
)
def test_bad_networks_are_refused(cells, arguments):
    Classifier.setup_anndata(cells, "label")
    with pytest.raises(ValueError, match="Expected"):
        Classifier(cells, **arguments)


def test_an_untrained_model_says_so(cells, tmp_path):
    Classifier.setup_anndata(cells, "label")
    model = Classifier(cells)
    for attempt in (model.predict, model.get_latent_representation, lambda: model.save(tmp_path / "run")):
        with pytest.raises(RuntimeError, match="Call `train` first"):
            attempt()
    with pytest.raises(ValueError, match="setup_anndata"):
        Classifier(make_cells())


def test_text_names_what_it_is_and_no_secret(cells, key):
    model = fit(cells, 2, key=key, strategy=FedAvg("uniform"), fraction=0.5, protections=())
    text = repr(model)
    assert "2 × 24 hidden units, 4 labels" in text
    assert f"unlocked, key scheme 'coordinate', fingerprint {key.fingerprint}" in text
    assert "2 rounds over 2 sites" in text
    assert "no key" in repr(fit(cells, 1))


def test_progress_shows_round_loss_and_metric(cells, capsys):
    Classifier.setup_anndata(cells, "label", site_key="site")
    Classifier(cells, n_hidden=8, key_scheme=None).train(2)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss=" in shown
    assert "validation_balanced_accuracy=" in shown


def test_the_data_keep_their_values_and_gain_only_codes(cells):
    before, columns = cells.X.copy(), set(cells.obs)
    fit(cells, 1)
    np.testing.assert_array_equal(cells.X, before)
    assert {name for name in set(cells.obs) - columns if not name.startswith("_scvi")} == set()
    assert isinstance(cells.obs, pd.DataFrame)


def test_a_proximal_term_keeps_sites_near_the_shared_state(cells):
    from scinfl.federation import FedProx

    free, held = (fit(cells, 1, strategy=FedProx(proximal=mu), rng=3) for mu in (0.0, 50.0))
    start = Classifier(cells, n_hidden=24, key_scheme=None).module.state_dict()
    moved = [
        sum((model.module.state_dict()[name] - start[name]).norm() for name in start).item() for model in (free, held)
    ]
    assert moved[1] < 0.5 * moved[0]


def test_the_proximal_gradient_is_that_of_the_term_in_the_loss(cells):
    from scinfl.federation import FedProx
    from scinfl.model.base._cells import Cells
    from scinfl.model.base._local_training import LocalSite, LocalTraining, SharedNetwork
    from scinfl.module import ClassifierModule

    codes = cells.obs["label"].cat.codes.to_numpy()
    rows = np.arange(64)
    data = Cells(cells.X, rows, codes[rows], torch.device("cpu"))

    class Proximal(ClassifierModule):
        def loss(self, batch, class_weight=None):
            distance = sum(((p - a) ** 2).sum() for p, a in zip(self.parameters(), self.anchor, strict=True))
            return super().loss(batch) + 0.7 / 2 * distance

    results = []
    for network_class, strategy in ((ClassifierModule, FedProx(proximal=0.7)), (Proximal, FedAvg())):
        torch.manual_seed(0)
        network = network_class(30, 4, n_hidden=8, dropout=0.0, input_dropout=0.0)
        network.anchor = [p.detach().clone() for p in network.parameters()]
        state = {name: p.detach().numpy().copy() for name, p in network.named_parameters()}
        site = LocalSite(
            "a", SharedNetwork(network), set(state), data, data, LocalTraining(3, 16, 0.01, 0.0, 0), strategy
        )
        results.append(site.fit(1, state).state)
    for name, array in results[0].items():
        np.testing.assert_allclose(array, results[1][name], atol=1e-5)


def test_a_protection_that_is_none_is_refused_before_training(cells, key):
    with pytest.raises(TypeError, match=r"inherit from `scinfl.federation.Protection`, found a str"):
        fit(cells, 2, key=key, protections=["keyed"])
