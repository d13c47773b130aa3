"""What leaves a site, before and after training, and what must not."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import make_cells
from tests.model.gears.test_model import make_model as make_gears
from tests.model.gears.test_model import make_screen
from tests.model.spamosaic.test_model import make_model as make_spamosaic
from tests.model.spamosaic.test_model import make_sections
from tests.model.test_classifier import fit

from scinfl import nn as keyed_nn
from scinfl.federation import FedAvg, Journal, Median, Payload, Protection, Update, mean_of, simulate
from scinfl.federation.rounds import rehearse
from scinfl.model import Classifier
from scinfl.model.base._local_training import LocalSite
from scinfl.model.base._secrets import secret_arrays
from scinfl.privacy import Key, KeyedSum
from scinfl.privacy._linter import PayloadLinter
from scinfl.privacy.dp._update_dp import UpdateDP

pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")

ALIKE = ["site", "purpose", "array", "shape", "rounds", "bytes", "masked"]
START = {"w": np.zeros(3)}


class Untouchable(Protection):
    """A protection that sums, and that nothing may use."""

    sums = True
    min_sites = 3

    def refuse(self, *_):
        pytest.fail("a dry run used a protection")

    on_step = encode = combine = decode = agree = refuse


def alike(payload: Payload):
    return payload.table[ALIKE].sort_values(ALIKE[:3]).reset_index(drop=True)


def run(sites, protections=(), *, n_rounds=3, payload=None, **options):
    return simulate(sites, START, FedAvg(), protections, n_rounds=n_rounds, payload=payload, progress=False, **options)


# ---- the list


def test_the_list_names_every_array_of_every_site_with_its_bytes_and_norm(toy_sites):
    payload = Payload()
    run(toy_sites, payload=payload)
    table = payload.table
    assert len(table) == 3 * (3 + 2)  # array, weight and loss of training; weight and loss of validation
    row = table.set_index(["site", "purpose", "array"]).loc[("c", "training", "w")]
    assert row[["shape", "type", "rounds", "bytes", "masked"]].tolist() == ["3", "float64", 3, 3 * 24, False]
    state, norms = START["w"], []
    for _ in range(3):
        norms.append(np.linalg.norm((state + 6.0) / 2))
        state = np.average([(state + t) / 2 for t in (1.0, 2.0, 6.0)], axis=0, weights=[10, 30, 20])
    assert row["norm"] == pytest.approx(max(norms))
    assert set(table["array"][table["purpose"] == "evaluation"]) == {"weight", "metric loss"}


def test_masked_arrays_have_no_norm_and_their_bytes_add_up_to_what_was_sent(toy_sites, key):
    payload = Payload()
    done = run(toy_sites, [KeyedSum(key)], payload=payload)
    table = payload.table
    assert table["masked"].all()
    assert table["norm"].isna().all()
    training = table[table["purpose"] == "training"]
    assert training["bytes"].sum() == sum(record["bytes_sent"] for record in done.history) == 3 * 3 * 8 * 5
    assert set(training["type"]) == {"uint64"}
    totals = table[table["purpose"].str.startswith("total of")]
    assert set(totals["purpose"]) == {"total of training", "total of evaluation"}
    assert totals["bytes"].tolist() == [8] * 6


def test_bytes_of_any_ciphertext_are_shared_among_its_values():
    payload = Payload()
    update = Update("a", 1, {"w": np.zeros((2, 3)), "b": np.zeros(2)}, 1, metrics={"loss": 1.0})
    payload.add([update], [replace(update, state={"ciphertext": np.zeros(1001, np.uint8)}, metrics={})])
    table = payload.table.set_index("array")
    assert table["bytes"].to_dict() == {"w": 600, "b": 200, "weight": 100, "metric loss": 101}
    assert set(table["type"]) == {"uint8"}


def test_noise_before_a_mask_changes_what_is_listed(toy_sites, key):
    class Silent(Protection):
        def encode(self, update):
            return replace(update, metrics={})

    payload = Payload()
    run(toy_sites, [Silent(), KeyedSum(key)], payload=payload)
    assert "metric loss" not in set(payload.table["array"])


def test_sums_before_training_are_listed_too(key):
    updates = [Update(s, 0, {"mean": np.arange(4.0)}, 10, 10.0, purpose="means") for s in "abc"]
    plain, masked = Payload(), Payload()
    mean_of(updates, payload=plain)
    mean_of(updates, [KeyedSum(key)], payload=masked)
    assert plain.table["bytes"].tolist() == [32, 8] * 3
    assert not plain.table["masked"].any()
    assert set(masked.table["purpose"]) == {"means", "total of means"}
    joined = Payload()
    joined.extend(plain.table)
    joined.extend(masked.table)
    assert len(joined.table) == len(plain.table) + len(masked.table)


def test_the_journal_has_the_list_as_plain_json(toy_sites, key, tmp_path):
    payload = Payload()
    run(toy_sites, [KeyedSum(key)], n_rounds=2, payload=payload, journal=Journal(tmp_path))
    run(toy_sites, [KeyedSum(key)], n_rounds=3, payload=Payload(), journal=Journal(tmp_path))  # resumed
    journal = Journal(tmp_path)
    (first, second) = [event for event in journal.events() if event["event"] == "payload"]
    assert {(row["site"], row["array"]) for row in first["arrays"]} == set(
        payload.table[["site", "array"]].itertuples(index=False, name=None)
    )
    assert all(row["norm"] is None for row in second["arrays"])
    assert "NaN" not in (tmp_path / "audit.jsonl").read_text()
    assert journal.verify()


# ---- before training


@pytest.mark.parametrize("protect", [False, True])
def test_a_rehearsal_lists_what_the_run_sends_and_uses_no_protection(toy_sites, key, protect, tmp_path):
    planned, real = Payload(planned=True), Payload()
    rehearse(
        toy_sites, START, FedAvg(), [Untouchable()] if protect else [], planned, n_rounds=3, journal=Journal(tmp_path)
    )
    run(toy_sites, [KeyedSum(key)] if protect else [], payload=real)
    if protect:  # it has no agree of the right form
        assert set(planned.table["purpose"]) >= {"training", "evaluation"}
        real._rows = {name: row for name, row in real._rows.items() if not row["purpose"].startswith("total")}
        planned._rows = {name: row for name, row in planned._rows.items() if not row["purpose"].startswith("total")}
    assert alike(planned).equals(alike(real))
    (event,) = Journal(tmp_path).events()
    assert event["event"] == "dry run"
    assert Journal(tmp_path).load() is None


def test_a_planned_mean_stays_where_it_is():
    updates = [Update(s, 0, {"mean": np.full(2, v)}, 1, purpose="means") for s, v in (("a", 1.0), ("b", 3.0))]
    planned = Payload(planned=True)
    assert mean_of(updates, [Untouchable()], payload=planned).state["mean"].tolist() == [2, 2]
    assert planned.table["masked"].all()
    assert planned.table.query("purpose == 'means'")["bytes"].tolist() == [16, 8] * 2


def test_a_protection_may_tell_its_bytes():
    class Ciphertexts(Untouchable):
        def bytes_of(self, n_values):
            return 4096 * -(-n_values // 4)

    planned = Payload(planned=True)
    planned.plan([Update("a", 1, {"w": np.zeros(6)}, 1)], [Ciphertexts()], 5)
    assert planned.table["bytes"].sum() == 5 * 2 * 4096


def test_what_would_be_refused_in_a_run_is_refused_in_a_rehearsal(toy_sites, key):
    with pytest.raises(ValueError, match="at least 3 sites in a round"):
        rehearse(toy_sites[:2], START, FedAvg(), [KeyedSum(key)], Payload(planned=True), n_rounds=1)
    with pytest.raises(ValueError, match="no protections with Median"):
        rehearse(toy_sites, START, Median(), [KeyedSum(key)], Payload(planned=True), n_rounds=1)


@pytest.fixture(scope="module")
def key_of_module():
    return Key(bytes(range(32)), federation="payload")


def models():
    def classifier(**options):
        cells = make_cells()
        Classifier.setup_anndata(cells, "label", site_key="site")
        return Classifier(cells, n_hidden=24, **options), {"n_rounds": 3, "smoothing": 0}

    def gears(**options):
        screen = make_screen()
        return make_gears(screen, **options), {"n_rounds": 2, "local_epochs": 1}

    def spamosaic(**options):
        return make_spamosaic(make_sections(60), **options), {"n_rounds": 2}

    return {"Classifier": classifier, "GEARS": gears, "SpaMosaic": spamosaic}


@pytest.mark.parametrize("kind", models())
@pytest.mark.parametrize("with_key", [True, False], ids=["keyed", "plain"])
def test_a_dry_run_of_a_model_lists_what_training_sends_and_changes_nothing(
    kind, with_key, key_of_module, monkeypatch, tmp_path
):
    key = key_of_module if with_key else None
    model, options = models()[kind](**({} if with_key else {"key_scheme": None}))
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    kept = {name: value for name, value in vars(model).items() if name != "_payload"}
    contents = {name: copy.copy(value) for name, value in kept.items() if isinstance(value, dict | list)}
    with monkeypatch.context() as patch:
        if kind == "Classifier":
            patch.setattr(KeyedSum, "encode", lambda *_: pytest.fail("something was sent"))
        model.train(key=key, progress=False, dry_run=True, journal=tmp_path / "journal", **options)
    planned = model._payload
    assert all(vars(model)[name] is value for name, value in kept.items())
    assert {name: kept[name] for name in contents} == contents
    assert model.module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert not model.is_trained_
    assert model.history is None
    model.train(key=key, progress=False, **options)
    assert alike(planned).equals(alike(model._payload))
    table = model.payload
    assert table["masked"].all() == with_key
    assert table["norm"].isna().all() == with_key
    purposes = {
        "Classifier": {"training", "evaluation"},
        "GEARS": {"coexpression", "changes", "training cells", "validation cells", "training", "evaluation"},
        "SpaMosaic": {"PCA, around the mean", "directions of the tissue", "training", "evaluation"},
    }[kind]
    assert purposes <= set(table["purpose"])


def test_a_dry_run_of_a_trained_model_leaves_it_trained(cells, key):
    model = fit(cells, 2, key=key)
    before = model.predict(soft=True)
    history = model.history
    model.train(5, key=key, dry_run=True, progress=False)
    assert set(model.payload.query("purpose == 'training'")["rounds"]) == {5}
    np.testing.assert_array_equal(model.predict(soft=True), before)
    assert model.history is history
    with pytest.raises(ValueError, match="Use the key of this model"):
        model.train(5, key=Key.generate(), dry_run=True, progress=False)
    with pytest.raises(ValueError, match="`n_rounds`"):
        model.train(0, key=key, dry_run=True, progress=False)


@pytest.mark.filterwarnings("ignore:Noise on the updates:UserWarning")
def test_a_dry_run_spends_no_privacy_budget(cells, key):
    model, noise = fit(cells, 1, key=key), UpdateDP(max_norm=1.0, noise_multiplier=5.0)
    options = {"key": key, "protections": [noise, KeyedSum(key)], "validation_size": 0, "progress": False}
    model.train(4, dry_run=True, **options)
    planned = model._payload
    assert noise.epsilon() == 0
    assert "metric loss" not in set(planned.table["array"])
    model.train(4, **options)
    assert noise.epsilon() > 0
    assert alike(planned).equals(alike(model._payload))


# ---- what must not leave


@pytest.mark.parametrize("scheme", ["coordinate", "permuted", "pooled"])
def test_every_secret_of_the_key_is_refused_whatever_its_name_and_precision(cells, key, scheme):
    model = fit(cells, 1, key=key, scheme=scheme)
    secrets = secret_arrays(model.module)
    if scheme == "coordinate":
        parts = {name.split(", ")[1] for name in secrets}
        assert {"permutation", "input signs", "input scale", "output scale", "shift", "coordinates of inputs"} <= parts
    linter, n_refused = PayloadLinter(secrets=secrets), 0
    for name, array in secrets.items():
        if array.size < 16:
            continue
        for form in (array.astype(np.float32), array.astype(np.float64), array.reshape(1, -1).astype(np.float32)):
            with pytest.raises(ValueError, match="secret that follows from the key") as error:
                linter.check(Update("a", 1, {"innocent": form}, 1))
            layer = "encoder.1" if scheme == "pooled" else name.split(",")[0]  # there all layers have the same points
            assert f"({layer}, " in str(error.value)
            n_refused += 1
        almost = array.astype(np.float32) + 0.01
        linter.check(Update("a", 1, {"innocent": almost}, 1))
    assert n_refused > (40 if scheme == "coordinate" else 2)


def test_a_secret_projection_is_refused(cells, key):
    model = fit(cells, 1, key=key, share="projected")
    linter = PayloadLinter(secrets=secret_arrays(model.module))
    for array in (model.module.encoder[1]._projection, *model.module.encoder[1]._coordinates.values()):
        with pytest.raises(ValueError, match=r"encoder\.1, .*projection"):
            linter.check(Update("a", 1, {"w": array.numpy()}, 1))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("order", np.arange(24), "whole numbers: a permutation"),
        ("masked", np.zeros(9, np.uint64), "a key stream"),
        ("names", np.array(["T cell", "B cell"]), "a list of labels"),
        ("names", np.array(["T cell", None], dtype=object), "a list of labels"),
        ("rows", np.ones(3, bool), "a mask of cells"),
        ("norm.running_mean", np.zeros(4), "running statistics, found 'norm.running_mean'"),
        ("norm.running_var", np.zeros(4), "layer normalisation stores none"),
        ("norm.num_batches_tracked", np.zeros(()), "running statistics"),
    ],
)
@pytest.mark.parametrize("purpose", ["training", "sums"])
def test_what_is_no_parameter_is_refused_in_any_sum(name, array, message, purpose):
    shared = {name: array.shape} if purpose == "training" else None  # even where the rule names it
    update = Update("hospital_7", 1, {name: array}, 1, purpose=purpose)
    with pytest.raises(ValueError, match=message) as error:
        PayloadLinter(shared).check(update)
    assert "hospital_7" in str(error.value)
    assert "T cell" not in str(error.value)
    PayloadLinter(shared, allow=[name]).check(update)


def test_training_sends_the_share_rule_and_nothing_else():
    linter = PayloadLinter({"head.weight": (2, 3), "decoder.scale": (4,)})
    linter.check(Update("a", 1, {"head.weight": np.zeros((2, 3)), "decoder.scale": np.ones(4)}, 1))
    with pytest.raises(ValueError, match=r"found 'encoder\.weight'.*another `share`"):
        linter.check(Update("a", 1, {"encoder.weight": np.zeros(2)}, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*found \(2, 4\). Send the parameter alone"):
        linter.check(Update("a", 1, {"head.weight": np.zeros((2, 4))}, 1))
    with pytest.raises(ValueError, match=r"no array in the update of site 'a' \(evaluation\)"):
        linter.check(Update("a", 1, {"head.weight": np.zeros((2, 3))}, 1, purpose="evaluation"))
    linter.check(Update("a", 1, {}, 1, metrics={"loss": 1.0}, purpose="evaluation"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("coordinates", "coordinates"),
        ("input_signs", "signs"),
        ("encoder.1/permutation", "a permutation"),
        ("output scale", "scales"),
        ("keystream", "a key stream"),
        ("secret", "a secret"),
        ("labels", "a list of labels"),
    ],
)
def test_names_that_tell_are_refused_in_other_sums(name, what):
    update = Update("a", 0, {name: np.zeros(3)}, 1, purpose="moments")
    with pytest.raises(ValueError, match=f"named like {what}"):
        PayloadLinter().check(update)
    PayloadLinter(allow=[name]).check(update)
    PayloadLinter().check(replace(update, state={"designed_keyboards": np.zeros(3)}))


def test_a_slip_in_training_is_stopped_before_anything_is_encoded(cells, key, monkeypatch):
    signs, original = {}, LocalSite.fit

    def slip(self, round, state):
        update = original(self, round, state)
        layer = keyed_nn.CoordinateLinear(torch.nn.Linear(30, 24))
        layer.set_coordinates(key.coordinates, "encoder.1")
        signs["encoder.1.bias"] = layer._read_units().output_signs.float().numpy()
        return replace(update, state={**update.state, **signs})

    monkeypatch.setattr(LocalSite, "fit", slip)
    monkeypatch.setattr(KeyedSum, "encode", lambda *_: pytest.fail("something was sent"))
    with pytest.raises(ValueError, match=r"found in 'encoder.1.bias' a secret.*encoder.1, output signs"):
        fit(cells, 1, key=key)


def test_a_personal_layer_that_slips_into_an_update_is_stopped(cells, key, monkeypatch):
    original = LocalSite.fit

    def slip(self, round, state):
        update = original(self, round, state)
        return replace(update, state={**update.state, **self.local_state()})

    monkeypatch.setattr(LocalSite, "fit", slip)
    with pytest.raises(ValueError, match="found 'head"):
        fit(cells, 1, key=key, share=["encoder"])


def test_a_linter_keeps_its_secrets(cells, key):
    model = fit(cells, 1, key=key)
    assert "secrets=0" in repr(model._payload._inspect.__self__)  # once training is over
    secrets = secret_arrays(model.module)
    linter, n_long = PayloadLinter(secrets=secrets), sum(array.size >= 16 for array in secrets.values())
    assert repr(linter) == f"PayloadLinter(shared=None, secrets={n_long})"
    for twin in (pickle.loads(pickle.dumps(linter)), copy.copy(linter), copy.deepcopy(linter)):
        assert repr(twin) == "PayloadLinter(shared=None, secrets=0)"
    signs = model.module.encoder[1]._read_units().output_signs.numpy()
    assert signs.tobytes() not in pickle.dumps(linter)
    assert signs.astype(np.float32).tobytes() not in pickle.dumps(linter)
    assert json.dumps(model._payload.records())
