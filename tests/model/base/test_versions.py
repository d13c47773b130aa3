"""Two versions of a model under one key, and two rounds of a run, share no offset; who has the key notices nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.model.base.test_saved_before import SAVED
from tests.model.test_classifier import fit

from scinfl import nn as keyed_nn
from scinfl.federation import Median
from scinfl.model import GEARS, Classifier, SpaMosaic
from scinfl.model.base import _training
from scinfl.privacy import Key, PairwiseSum
from scinfl.privacy.attacks import Watcher

FIRST = "encoder.1.weight"


def plain(model):
    return keyed_nn.unlock(model.module, {name: p.detach().clone() for name, p in model.module.named_parameters()})


def assert_same(model, expected, atol=0.0):
    for name, value in plain(model).items():
        if "meta" not in name:
            torch.testing.assert_close(value, expected[name], rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [Classifier, GEARS, SpaMosaic])
def test_a_model_of_an_earlier_version_takes_the_new_form_when_rekeyed_and_saved(kind, key, tmp_path):
    model = kind.load(SAVED / kind.__name__.lower())
    model.unlock(key)
    before = plain(model)
    assert not any(module.offsets() for module in keyed_nn.hidden(model.module).values())
    new = Key.generate(key.federation, version=key.version + 1)
    model.rekey(key, new)
    changed = [model]
    if kind is not SpaMosaic:
        model.save(tmp_path / "rekeyed")
        changed.append(kind.load(tmp_path / "rekeyed"))
        changed[1].unlock(new)
    for own in changed:
        assert_same(own, before, 1e-5)
        covered = {f"{name}.{what}" for name, m in keyed_nn.hidden(own.module).items() for what in m.offsets()}
        assert covered >= {n for n, p in own.module.named_parameters() if p.requires_grad and "meta" not in n}


def test_two_files_of_one_model_and_the_model_itself_cannot_be_subtracted(cells, key, tmp_path):
    model = fit(cells, 2, key=key)
    weights, ids = [model.module.get_parameter(FIRST).detach().numpy()], []
    for name in ("one", "two"):
        model.save(tmp_path / name, sealed=False)
        document = json.loads((tmp_path / name / "model.json").read_text())
        weights.append(load_file(tmp_path / name / document["weights"]["file"])[FIRST])
        ids.append(document["key"]["id"])
    assert ids[0] != ids[1]
    spread = float(plain(model)[FIRST].std())
    assert all((weights[a] - weights[b]).std() > 10 * spread for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("summing", [[], [PairwiseSum()]], ids=["in the open", "pairwise masks without a key"])
def test_what_a_server_reads_of_two_rounds_cannot_be_subtracted(cells, key, summing):
    watcher = Watcher()
    model = fit(cells, 3, key=key, protections=[*summing, watcher])
    spread = float(plain(model)[FIRST].std())
    if not summing:
        seen = watcher.mean(FIRST, tuple(plain(model)[FIRST].shape))
        assert (seen[1] - seen[0]).std() > 10 * spread
        one, two = (update.state for update in watcher.seen[3][:2])
        for name in one:  # what only a sum hides
            assert np.abs(one[name] - two[name]).max() < 1
    payload = model.payload.set_index("array")
    assert payload.loc[FIRST, "masked"].all() == bool(summing)


@pytest.mark.parametrize("options", [{}, {"strategy": Median()}, {"smoothing": 0.5}], ids=["mean", "median", "smooth"])
def test_offsets_of_rounds_change_no_training(cells, key, monkeypatch, options):
    model = fit(cells, 3, key=key, protections=[], **options)
    monkeypatch.setattr(_training, "with_offsets", lambda protections, *_: protections)
    assert_same(fit(cells, 3, key=key, protections=[], **options), plain(model), 1e-5)


def test_a_dry_run_lists_what_is_sent(cells, key):
    fields = ["site", "array", "type", "bytes"]
    sent, planned = (fit(cells, 2, key=key, protections=[], dry_run=dry).payload[fields] for dry in (False, True))
    assert set(map(tuple, sent.to_numpy())) == set(map(tuple, planned.to_numpy()))


def test_training_goes_on_from_the_same_weights_under_a_new_id(cells, key, tmp_path):
    model = fit(cells, 2, key=key)
    before, was = plain(model), model.module.get_parameter(FIRST).detach().clone()
    with pytest.raises(ValueError, match="min_sites"):
        model.train(1, key=key, min_sites=99, progress=False)
    assert_same(model, before)
    model.train(1, key=key, lr=1e-12, weight_decay=0.0, progress=False)
    assert_same(model, before, 1e-5)
    assert (model.module.get_parameter(FIRST) - was).std() > 1
