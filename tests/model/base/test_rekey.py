"""A trained model changes its key and predicts the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.conftest import make_cells
from tests.model.gears.test_model import QUICK, held_out, make_model, make_screen
from tests.model.spamosaic.test_model import make_model as make_spatial_model
from tests.model.spamosaic.test_model import make_sections
from tests.model.test_classifier import accuracy, fit

from scinfl.model import GEARS, Classifier, SpaMosaic
from scinfl.nn import set_key
from scinfl.privacy import Key

pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")

OLD = Key(bytes(range(32)), federation="rotating")
NEW = Key(bytes(range(1, 33)), federation="rotating", version=2)
META = {"options": {"train_meta": True}}


@pytest.fixture(scope="module")
def cells():
    return make_cells()


@pytest.mark.parametrize(
    "rule",
    [{}, META, {"scheme": "permuted"}, {"share": ["encoder"]}, {"share": "meta", **META}, {"share": ["head"], **META}],
    ids=["frozen", "trained meta", "permuted", "personal head", "meta only", "personal encoder, trained meta"],
)
def test_a_classifier_predicts_the_same_for_every_site_under_the_new_key(cells, rule):
    model = fit(cells, 3, key=OLD, **rule)
    before, latent = model.predict(soft=True), model.get_latent_representation()
    weights = model.module.head.weight.detach().clone()
    biases = {name: p.detach().clone() for name, p in model.module.named_parameters() if name.endswith("bias")}
    model.rekey(OLD, NEW)
    np.testing.assert_allclose(model.predict(soft=True), before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(), latent, rtol=1e-5, atol=1e-5)
    assert model.key_fingerprint == NEW.fingerprint
    assert not model.is_locked
    if rule.get("scheme") == "permuted":
        assert not torch.allclose(model.module.head.bias, biases["head.bias"], atol=1e-3)
    else:
        assert not torch.allclose(model.module.head.weight, weights, atol=0.1)
        model.unlock(OLD, force=True)
        assert accuracy(model, cells) < 0.75
        model.unlock(NEW)
    model.train(1, key=NEW, share=rule.get("share", "all"), lr=1e-9, local_epochs=1, smoothing=0, progress=False)
    np.testing.assert_allclose(model.predict(soft=True), before, atol=1e-3)


def test_the_folded_weights_are_those_of_the_formula(cells):
    model = fit(cells, 2, key=OLD)
    layer = model.module.head
    plain, bias = (tensor.double() for tensor in layer.folded())
    model.rekey(OLD, NEW)
    values = {what: NEW.coordinates(label, shape) for what, (label, shape) in layer.labels("head").items()}
    order = np.argsort(values["permutation"], kind="stable")
    at = {where: layer.meta(torch.from_numpy(values[where])).numpy() for where in ("inputs", "outputs")}
    scale_in = np.where(values["input signs"] < 0, -1, 1) * np.exp(0.25 * at["inputs"][:, 0])
    scale_out = np.where(values["output signs"] < 0, -1, 1) * np.exp(0.25 * at["outputs"][:, 1])
    locked = plain.detach().numpy()[:, order] / scale_in / scale_out[:, None]
    limit = 2.0 ** (10 + np.ceil(np.log2(1 / np.sqrt(3 * layer.in_features))))
    shift = 0.2 * at["outputs"][:, 2]
    for what, expected in (("weight", locked), ("bias", bias.detach().numpy() - shift)):
        uniform = NEW.coordinates(f"head/offset of {what}/{layer.model_id}/{expected.shape}", expected.shape)
        found = getattr(layer, what).detach().numpy() - limit * uniform
        np.testing.assert_allclose((found + limit) % (2 * limit) - limit, expected, atol=5e-6)


def test_ten_rotations_do_not_drift(cells):
    model = fit(cells, 2, key=OLD)
    before, key = model.predict(soft=True), OLD
    for version in range(2, 12):
        later = Key.generate("rotating", version=version)
        model.rekey(key, later)
        key = later
    np.testing.assert_allclose(model.predict(soft=True), before, rtol=1e-5, atol=1e-5)


def test_a_sealed_file_opens_with_the_new_key_only(cells, tmp_path):
    model = fit(cells, 3, key=OLD)
    before = model.predict(soft=True)
    model.save(tmp_path / "old")
    loaded = Classifier.load(tmp_path / "old", cells)
    loaded.rekey(OLD, NEW)  # a locked and sealed one will do
    np.testing.assert_allclose(loaded.predict(soft=True), before, rtol=1e-5, atol=1e-5)
    loaded.save(tmp_path / "new")
    again = Classifier.load(tmp_path / "new", cells)
    with pytest.raises(ValueError, match=r"version 2.*locked with the key found before it was rekeyed"):
        again.unlock(OLD)
    with pytest.raises(ValueError, match="Use the key"):
        again.unlock(OLD, force=True)
    assert again.is_locked
    again.unlock(NEW)
    np.testing.assert_allclose(again.predict(soft=True), before, rtol=1e-5, atol=1e-5)
    text = b"".join(path.read_bytes() for path in (tmp_path / "new").iterdir())
    for key in (OLD, NEW):
        assert key._secret not in text
        assert key._secret.hex().encode() not in text
    assert json.loads((tmp_path / "new" / "model.json").read_text())["key"]["previous"] == [OLD.fingerprint]


def test_a_rekeyed_model_is_saved_unsealed_only_behind_offsets(cells, tmp_path):
    model = fit(cells, 2, key=OLD)
    model.rekey(OLD, NEW)
    before = model.predict(soft=True)
    model.save(tmp_path / "open", sealed=False)
    again = Classifier.load(tmp_path / "open")
    again.unlock(NEW)
    np.testing.assert_allclose(again.predict(cells, soft=True), before, rtol=0, atol=1e-6)
    bare = fit(cells, 2, key=OLD, scheme="permuted")
    bare.rekey(OLD, NEW)
    with pytest.raises(ValueError, match="read the new lock off the difference"):
        bare.save(tmp_path / "bare", sealed=False)
    assert not (tmp_path / "bare").exists()


def test_the_plain_weights_do_not_show_what_the_new_key_does(cells):
    model = fit(cells, 3, key=OLD)
    layer = model.module.encoder[1]
    known = layer.folded()[0].detach().abs()  # the old model and its key give the plain weights
    model.rekey(OLD, NEW)
    columns = torch.cat([known, layer.weight.detach().abs()], dim=1).log().T
    match = torch.corrcoef(columns)[layer.in_features :, : layer.in_features].argmax(1)
    assert (match == layer._read_units().permutation).double().mean() < 0.2
    set_key(model.module, NEW.coordinates)
    locked = layer.shifted("weight", layer.weight, -1).detach().abs()  # without offsets it showed everything
    match = torch.corrcoef(torch.cat([known, locked], dim=1).log().T)[layer.in_features :, : layer.in_features].argmax(
        1
    )
    assert (match == layer._read_units().permutation).double().mean() > 0.9


@pytest.fixture(scope="module")
def screen():
    return make_screen()


@pytest.mark.parametrize("rule", [{}, {"share": "meta"}], ids=["all", "meta"])
def test_gears_keeps_predictions_tables_and_prior(screen, rule, tmp_path):
    model = make_model(screen, train_meta=bool(rule))
    model.train(key=OLD, **QUICK, **rule)
    sites = sorted(model._local_states) or [None]
    before = {site: model.predict_change(held_out(screen), site=site) for site in sites}
    spread = np.std(before[sites[0]].to_numpy())
    rows = model.module.readout.weight.detach().clone()
    model.rekey(OLD, NEW)
    for site in sites:
        np.testing.assert_allclose(
            model.predict_change(held_out(screen), site=site), before[site], rtol=1e-5, atol=1e-5
        )
    assert not torch.allclose(model.module.readout.weight, rows, atol=0.1 * float(rows.std()))
    model.lock()
    model.unlock(NEW)
    np.testing.assert_allclose(
        model.predict_change(held_out(screen), site=sites[0]), before[sites[0]], rtol=1e-5, atol=1e-5
    )
    model.save(tmp_path / "run", site=sites[0])
    model.unlock(OLD, force=True)
    assert model.shrinkage is None
    away = model.predict_change(held_out(screen), site=sites[0]) - before[sites[0]]
    assert np.abs(away.to_numpy()).mean() > 0.1 * spread
    loaded = GEARS.load(tmp_path / "run", screen)
    with pytest.raises(ValueError, match="before it was rekeyed"):
        loaded.unlock(OLD)
    loaded.unlock(NEW)
    np.testing.assert_allclose(loaded.predict_change(held_out(screen)), before[sites[0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [{}, {"share": "meta"}], ids=["all", "meta"])
def test_spamosaic_keeps_its_embedding(rule, tmp_path):
    sections = make_sections(60)
    model = make_spatial_model(sections, train_meta=bool(rule))
    model.train(3, key=OLD, progress=False, **rule)
    sites = sorted(model._local_states) or [None]
    before = {site: model.get_latent_representation(site=site) for site in sites}
    model.rekey(OLD, NEW)
    for site in sites:
        np.testing.assert_allclose(model.get_latent_representation(site=site), before[site], rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "run", site=sites[-1])
    loaded = SpaMosaic.load(tmp_path / "run", sections)
    loaded.unlock(NEW)
    np.testing.assert_allclose(loaded.get_latent_representation(), before[sites[-1]], rtol=1e-5, atol=1e-5)
    model.unlock(OLD, force=True)
    wrong = model.get_latent_representation(site=sites[0])
    assert abs(np.corrcoef(wrong.ravel(), before[sites[0]].ravel())[0, 1]) < 0.6


# ---- what is refused


def test_what_no_parameter_can_make_up_for_is_refused_and_left_as_it_was(cells):
    model = fit(cells, 2, key=OLD, share="projected")
    before = model.predict(soft=True)
    with pytest.raises(
        ValueError, match=r"secret projection of `share='projected'`.*Train a new model with the new key"
    ):
        model.rekey(OLD, NEW)
    np.testing.assert_array_equal(model.predict(soft=True), before)
    assert model.key_fingerprint == OLD.fingerprint
    model = fit(cells, 2, key=OLD, scheme="pooled")
    with pytest.raises(ValueError, match=r"'pooled'.*does not lock"):
        model.rekey(OLD, NEW)


def test_keys_that_do_not_follow_are_refused(cells):
    model = fit(cells, 2, key=OLD)
    same = Key(bytes(range(32)), federation="rotating", version=2)
    with pytest.raises(ValueError, match="found the same one: anyone with the old key"):
        model.rekey(OLD, same)
    with pytest.raises(ValueError, match="found the same one"):
        model.rekey(OLD, OLD, force=True)
    other = Key.generate("another")
    with pytest.raises(ValueError, match="later key of federation 'rotating' than version 1"):
        model.rekey(OLD, other)
    with pytest.raises(ValueError, match="Use the key of this model"):
        model.rekey(NEW, Key.generate("rotating", version=3))
    with pytest.raises(TypeError, match="found str"):
        model.rekey(OLD, "new.key")
    before = model.predict(soft=True)
    model.rekey(OLD, other, force=True)
    np.testing.assert_allclose(model.predict(soft=True), before, rtol=1e-5, atol=1e-5)
    assert model.key_fingerprint == other.fingerprint


def test_a_model_without_a_key_has_none_to_change(cells):
    with pytest.raises(ValueError, match="found a plain one"):
        fit(cells, 1).rekey(OLD, NEW)
