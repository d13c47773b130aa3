"""Key schemes in a model, and what leaves a site under each share rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.model.test_classifier import accuracy, fit, plain_state

from scinfl.model import Classifier
from scinfl.model.base._local_training import LocalSite, as_tensors
from scinfl.privacy import Key

WITHOUT_DROPOUT = {"dropout": 0.0, "input_dropout": 0.0}


@pytest.fixture
def sent(monkeypatch):
    """Every update that a site made."""
    updates = []
    original = LocalSite.fit

    def spy(self, round, state):
        updates.append(original(self, round, state))
        return updates[-1]

    monkeypatch.setattr(LocalSite, "fit", spy)
    return updates


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("coordinate", {}), ("coordinate", {"train_meta": True}), ("permuted", {}), ("pooled", {})],
    ids=["coordinate", "trained coordinate", "permuted", "pooled"],
)
def test_every_scheme_trains_saves_and_loads(cells, key, scheme, options, tmp_path):
    model = fit(cells, 6, key=key, scheme=scheme, options=options)
    assert accuracy(model, cells) > 0.9
    model.save(tmp_path / "run")
    loaded = Classifier.load(tmp_path / "run", cells)
    with pytest.raises(RuntimeError, match="unlock"):
        loaded.predict()
    loaded.unlock(key)
    np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-5)
    loaded.train(1, key=key, progress=False)


def test_a_trained_meta_learner_changes_every_round_and_travels_with_the_rest(cells, key, sent):
    model = fit(cells, 3, key=key, options={"train_meta": True})
    theta = [update.state["head.meta.weight3"] for update in sent if update.site == "hospital_0"]
    assert len(theta) == 3
    assert not np.array_equal(theta[0], theta[1])
    assert not np.array_equal(theta[1], theta[2])
    assert {"head.weight", "head.bias", "head.meta.bias3"} <= set(sent[0].state)
    assert not any(name.endswith(("weight1", "bias1", "weight2", "bias2")) for name in sent[0].state)
    reading = model.module.head._read()
    assert 0.05 < reading.input_scale.abs().log().std() < 0.25


def test_meta_only_sharing_sends_no_weight_and_gives_every_site_its_own_model(cells, key, sent, tmp_path):
    model = fit(cells, 4, key=key, share="meta", options={"train_meta": True}, local_epochs=4)
    assert {name.rsplit(".", 1)[1] for name in sent[0].state} == {"weight3", "bias3"}
    assert all(".meta." in name for name in sent[0].state)
    states = model._local_states
    assert not np.array_equal(states["hospital_0"]["head.weight"], states["hospital_1"]["head.weight"])
    assert model.is_personal
    predicted = model.predict()
    assert (predicted == cells.obs["label"].astype(str)).mean() > 0.9
    own = (cells.obs["site"] == "hospital_1").to_numpy()
    np.testing.assert_array_equal(model.predict(site="hospital_1")[own], predicted[own])
    soft = [model.predict(site=site, soft=True).to_numpy() for site in ("hospital_0", "hospital_1", "hospital_0")]
    assert not np.allclose(soft[0], soft[1], atol=1e-3)
    np.testing.assert_array_equal(soft[0], soft[2])
    model.train(1, key=key, share="meta", lr=1e-9, local_epochs=1, progress=False)  # goes on from each site's own
    np.testing.assert_allclose(model.predict(site="hospital_0", soft=True).to_numpy(), soft[0], atol=1e-3)
    unnamed = cells.copy()
    del unnamed.obs["site"]
    with pytest.raises(ValueError, match="each has a model of its own"):
        model.predict(unnamed)
    with pytest.raises(ValueError, match="hospital_0"):
        model.predict(site="hospital_9")
    with pytest.raises(ValueError, match="name one of the sites"):
        model.save(tmp_path / "run")
    model.save(tmp_path / "run", site="hospital_1")
    loaded = Classifier.load(tmp_path / "run")
    loaded.unlock(key)
    np.testing.assert_array_equal(loaded.predict(unnamed), model.predict(site="hospital_1"))


def test_meta_only_sharing_with_a_frozen_meta_learner_is_an_error(cells, key):
    with pytest.raises(ValueError, match="found a frozen one or none"):
        fit(cells, 1, key=key, share="meta")
    with pytest.raises(ValueError, match="found a frozen one or none"):
        fit(cells, 1, share="meta")
    with pytest.raises(ValueError, match="key_scheme='coordinate'"):
        fit(cells, 1, key=key, scheme="pooled", options={"train_meta": True})


@pytest.mark.parametrize("with_key", [True, False])
def test_named_layers_are_shared_and_the_others_stay(cells, key, sent, with_key):
    model = fit(cells, 4, key=key if with_key else None, share=["encoder"])
    assert {name.split(".")[0] for name in sent[0].state} == {"encoder"}
    assert set(model._local_states["hospital_0"]) == {"head.weight", "head.bias"}
    assert accuracy(model, cells) > 0.9
    before = model._local_states["hospital_0"]["head.weight"].copy()
    np.testing.assert_array_equal(model.predict(), model.predict())
    np.testing.assert_array_equal(model._local_states["hospital_0"]["head.weight"], before)


def test_a_projected_first_layer_is_never_sent_or_saved(cells, key, sent, tmp_path):
    model = fit(cells, 6, key=key, share="projected", options=WITHOUT_DROPOUT)
    assert accuracy(model, cells) > 0.9
    assert not any(name.startswith("encoder.1.") for name in sent[0].state)
    assert not any(name.startswith("encoder.1.") for name in model.module.state_dict())
    assert not model.is_personal
    model.save(tmp_path / "run", sealed=False)
    projection = model.module.encoder[1]._projection.numpy()
    text = b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir())
    assert projection.tobytes()[:16] not in text
    loaded = Classifier.load(tmp_path / "run", cells)
    loaded.unlock(key)
    np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-5)
    loaded.unlock(Key.generate(), force=True)
    assert accuracy(loaded, cells) < 0.75
    with pytest.raises(ValueError, match="derived from it"):
        fit(cells, 1, share="projected")


def test_rules_that_do_not_exist_or_change_are_refused(cells, key):
    with pytest.raises(ValueError, match="one of"):
        fit(cells, 1, key=key, share="weights")
    with pytest.raises(ValueError, match="list of layer names"):
        fit(cells, 1, key=key, share=[])
    with pytest.raises(ValueError, match="found 'decoder'"):
        fit(cells, 1, key=key, share=["decoder"])
    for part, other in (("head.weight", "head.bias"), ("head.bias", "head.weight")):
        with pytest.raises(ValueError, match=f"a part of 'head' without {other}.*Name 'head'"):
            fit(cells, 1, key=key, share=["encoder", part])
    model = fit(cells, 1, key=key)
    with pytest.raises(ValueError, match="Make a new model"):
        model.train(1, key=key, share="projected", progress=False)


@pytest.mark.parametrize("rule", [{"share": ["encoder"]}, {"share": "meta", "options": {"train_meta": True}}], ids=str)
def test_personal_parameters_survive_a_cut_and_go_on(cells, key, rule, tmp_path):
    whole = fit(cells, 4, key=key, validation_size=0, smoothing=0, **rule)
    fit(cells, 2, key=key, validation_size=0, smoothing=0, journal=tmp_path, **rule)
    resumed = fit(cells, 4, key=key, validation_size=0, smoothing=0, journal=tmp_path, **rule)
    own = [plain_state(model, as_tensors(model._local_states["hospital_1"])) for model in (whole, resumed)]
    shared = [plain_state(model) for model in (whole, resumed)]
    for one, other in (own, shared):
        assert all(torch.equal(other[name], value) for name, value in one.items())


def test_the_initial_weights_follow_the_key_and_not_the_public_seed(cells, key, monkeypatch):
    started = []
    original = LocalSite.fit

    def spy(self, round, state):
        if round == 1 and self.name == "hospital_0":
            started.append({name: array.copy() for name, array in state.items()})
        return original(self, round, state)

    monkeypatch.setattr(LocalSite, "fit", spy)
    public = Classifier(setup(cells), n_hidden=24, rng=0).module
    fit(cells, 1, key=key)
    fit(cells, 1, key=key)
    fit(cells, 1, key=Key.generate())
    for name in ("encoder.1.weight", "encoder.1.bias", "head.weight"):
        values = [state[name] for state in started]
        known = public.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(values[0], values[1])
        assert not np.isin(values[0], known).any()
        assert not np.isin(values[0], values[2]).any()
        n_inputs = 30 if name.startswith("encoder") else 24
        assert np.abs(values[0]).max() <= 1 / np.sqrt(n_inputs)


def setup(cells):
    Classifier.setup_anndata(cells, "label", site_key="site")
    return cells
