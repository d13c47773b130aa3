"""Models on disk, and what must not be there."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from tests.conftest import make_cells
from tests.model.test_classifier import accuracy, fit
from tests.nn.test_coordinate import secret_chunks

from scinfl import nn as keyed_nn
from scinfl.model import Classifier
from scinfl.privacy import Key


@pytest.fixture
def saved(cells, key, tmp_path):
    """A model that is locked but not sealed, so that the tests reach its weights."""
    model = fit(cells, key=key)
    model.save(tmp_path / "run", sealed=False)
    return model, tmp_path / "run"


@pytest.fixture
def sealed(cells, key, tmp_path):
    model = fit(cells, key=key)
    model.save(tmp_path / "sealed")
    return model, tmp_path / "sealed"


def weights_of(path):
    (file,) = path.glob("weights-*")
    return file


@pytest.mark.parametrize("how", ["saved", "sealed"])
def test_a_loaded_model_is_locked_and_predicts_the_same_after_unlock(cells, key, how, request):
    model, path = request.getfixturevalue(how)
    loaded = Classifier.load(path, cells)
    assert loaded.is_locked
    assert "locked, key scheme" in repr(loaded)
    with pytest.raises(RuntimeError, match="unlock"):
        loaded.predict()
    loaded.unlock(key)
    np.testing.assert_array_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert loaded.labels == model.labels
    np.testing.assert_allclose(loaded.history, model.history)
    assert loaded.history.attrs == model.history.attrs
    assert loaded.site_history is None
    loaded.train(1, key=key, progress=False)
    assert accuracy(loaded, cells) > 0.95


def test_data_without_labels_or_none_at_all_will_do(cells, key, saved):
    model, path = saved
    query = cells.copy()
    del query.obs
    query = type(cells)(cells.X, var=cells.var)
    loaded = Classifier.load(path, query)
    loaded.unlock(key)
    assert (loaded.predict() == model.predict()).all()
    with pytest.raises(ValueError, match="Load the model with such data"):
        loaded.train(1, key=key, progress=False)
    bare = Classifier.load(path)
    bare.unlock(key)
    assert (bare.predict(query) == model.predict()).all()
    with pytest.raises(ValueError, match="Pass `adata`"):
        bare.predict()


def test_a_plain_model_needs_no_key(cells, tmp_path, key):
    model = fit(cells)
    model.save(tmp_path / "run")
    loaded = Classifier.load(tmp_path / "run", cells)
    assert not loaded.is_locked
    assert (loaded.predict() == model.predict()).all()
    with pytest.raises(ValueError, match="found a plain one"):
        loaded.unlock(key)


def test_nothing_of_the_key_is_on_disk_in_updates_logs_or_pickles(cells, key, tmp_path, caplog, monkeypatch):
    from scinfl.model.base._local_training import LocalSite

    updates, sites = [], []
    fit_site = LocalSite.fit

    def spy(self, round, state):
        updates.append(fit_site(self, round, state))
        sites.append(self)
        return updates[-1]

    monkeypatch.setattr(LocalSite, "fit", spy)
    with caplog.at_level("DEBUG"):
        model = fit(cells, 3, key=key, journal=tmp_path / "journal")
        model.save(tmp_path / "run", sealed=False)
        model.save(tmp_path / "sealed")
    chunks = [
        *secret_chunks(model.module, key),
        key._secret,
        key._secret.hex().encode(),
        key.derive("coordinates", "x"),
    ]
    keyed_nn.set_key(model.module, key.coordinates)
    content = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(content) == 6  # two of the journal, two of each model
    for number, update in enumerate(updates):
        content[f"update {number}"] = (
            b"".join(array.tobytes() for array in update.state.values()) + repr(update).encode()
        )
        content[f"pickled update {number}"] = pickle.dumps(update)
    content["log"] = caplog.text.encode()
    content["repr"] = (
        repr(model) + repr(model.module) + repr(vars(model)) + repr(vars(model._keyed)) + repr(model.init_params_)
    ).encode()
    content["pickled model"] = pickle.dumps(model.__getstate__()["_keyed"])
    content["pickled network"] = pickle.dumps(model.module)
    content["history"] = pickle.dumps((model.history, model.site_history, model.registry_))
    for where, text in content.items():
        assert not any(chunk in text for chunk in chunks), where
    # plain weights, which key and update together would give, are not sent either
    plain = keyed_nn.unlock(model.module, model.module.state_dict())
    assert plain["head.weight"].numpy().tobytes() not in content[str(weights_of(tmp_path / "run"))]
    stored = load_file(weights_of(tmp_path / "run"))["head.weight"]
    assert stored.shape == model.module.head.weight.shape
    assert not np.allclose(stored, model.module.head.weight.detach(), atol=0.1)  # an id, and offsets, of its own
    for where in (weights_of(tmp_path / "sealed"), tmp_path / "journal" / "checkpoint.safetensors"):
        assert model.module.head.bias.detach().numpy().tobytes() not in content[str(where)]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(model._keyed.key)
    assert copy.copy(model)._keyed.key is None


def test_saved_files_hold_no_row_no_site_and_no_running_statistics(cells, key, saved):
    _, path = saved
    text = b"".join(file.read_bytes() for file in path.iterdir())
    assert not any(word in text for word in (b"cell_1", b"hospital_1", b"donor_1"))
    assert cells.X[0].tobytes() not in text
    assert b"n_cells" not in text  # nor how many there were


def test_an_existing_folder_is_not_lost(cells, key, saved, tmp_path):
    model, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    model.train(1, key=key, progress=False)
    model.save(path, overwrite=True)
    assert len(list(path.glob("weights-*"))) == 1
    loaded = Classifier.load(path, cells)
    loaded.unlock(key)
    assert (loaded.predict() == model.predict()).all()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        model.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_save_that_fails_leaves_nothing_or_the_old_model(cells, key, saved, tmp_path, monkeypatch):
    from scinfl.model.base import _files

    model, path = saved
    real = _files.write_atomically

    def disk_full(file, content):
        if file.name == _files.DOCUMENT:
            msg = "No space left on device"
            raise OSError(28, msg)
        real(file, content)

    model.train(1, key=key, progress=False)
    monkeypatch.setattr(_files, "write_atomically", disk_full)
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path / "new")
    with pytest.raises(OSError, match="No space"):
        model.save(path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    Classifier.load(path, cells).unlock(key)


def spoil_truncated(path):
    file = weights_of(path)
    file.write_bytes(file.read_bytes()[:-100])


def spoil_pickle_weights(path):
    torch.save({"head.weight": torch.zeros(3)}, weights_of(path))


def spoil_pickle_with_matching_hash(path):
    import hashlib

    content = pickle.dumps({"head.weight": np.zeros(3)})
    weights_of(path).write_bytes(content)
    document = json.loads((path / "model.json").read_text())
    document["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "model.json").write_text(json.dumps(document))


def spoil_shapes(path):
    import hashlib

    state = load_file(weights_of(path))
    content = save({**state, "head.bias": np.zeros(9, np.float32)})
    weights_of(path).write_bytes(content)
    document = json.loads((path / "model.json").read_text())
    document["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "model.json").write_text(json.dumps(document))


def spoil_document(path):
    (path / "model.json").write_text((path / "model.json").read_text()[:200])


def spoil_only_a_pickle(path):
    for file in path.iterdir():
        file.unlink()
    torch.save({}, path / "model.pt")


def spoil_class(path):
    document = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**document, "class": "GEARS"}))


def spoil_escape(path):
    document = json.loads((path / "model.json").read_text())
    outside = path.parent / "outside.safetensors"
    shutil.copy(weights_of(path), outside)
    document["weights"]["file"] = "../outside.safetensors"
    (path / "model.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_truncated, ValueError, "truncated or changed"),
        (spoil_pickle_weights, ValueError, "truncated or changed"),
        (spoil_pickle_with_matching_hash, ValueError, "Expected safetensors"),
        (spoil_shapes, ValueError, "found others: head.bias"),
        (spoil_document, ValueError, "damaged or foreign"),
        (spoil_only_a_pickle, ValueError, "can run code"),
        (spoil_class, ValueError, r"scinfl.model.GEARS.load"),
        (spoil_escape, FileNotFoundError, "found none"),
        (shutil.rmtree, FileNotFoundError, "Check the path"),
        (lambda path: weights_of(path).unlink(), FileNotFoundError, "Restore the folder"),
    ],
)
def test_damaged_and_foreign_models_are_refused(cells, saved, spoil, error, message):
    _, path = saved
    spoil(path)
    with pytest.raises(error, match=message):
        Classifier.load(path, cells)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_nothing_is_ever_unpickled(cells, saved):
    _, path = saved
    bomb = pickle.dumps(Bomb())
    for name in ("model.pt", "attr.pkl"):
        (path / name).write_bytes(bomb)
    Classifier.load(path, cells)
    Classifier.load_registry(path)
    weights_of(path).write_bytes(bomb)
    with pytest.raises(ValueError, match="truncated or changed"):
        Classifier.load(path, cells)
    with pytest.raises(NotImplementedError, match="never reads pickled"):
        Classifier.convert_legacy_save(path, path)


def test_other_features_and_unknown_labels_are_refused_on_loading(cells, saved):
    _, path = saved
    with pytest.raises(ValueError, match="in another order"):
        Classifier.load(path, cells[:, ::-1].copy())
    other = make_cells(n_labels=6)
    with pytest.raises(ValueError, match="type_4"):
        Classifier.load(path, other)


def test_a_wrong_key_is_refused_by_its_fingerprint_unless_forced(cells, saved):
    _, path = saved
    loaded = Classifier.load(path, cells)
    with pytest.raises(ValueError, match="Expected the key with fingerprint"):
        loaded.unlock(Key.generate())
    assert loaded.is_locked
    loaded.unlock(Key.generate(), force=True)
    assert accuracy(loaded, cells) < 0.8


# ---- sealed


def test_a_sealed_model_shows_no_weight_and_opens_with_its_key_only(cells, key, sealed):
    model, path = sealed
    state = {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}
    text = weights_of(path).read_bytes()
    assert not any(array.tobytes()[:32] in text for array in state.values())
    loaded = Classifier.load(path, cells)
    assert "sealed and locked" in repr(loaded)
    assert not torch.equal(loaded.module.state_dict()["head.weight"], model.module.state_dict()["head.weight"])
    with pytest.raises(ValueError, match="Expected the key with fingerprint"):
        loaded.unlock(Key.generate())
    with pytest.raises(ValueError, match="Use the key, and the place"):
        loaded.unlock(Key.generate(), force=True)
    with pytest.raises(RuntimeError, match="Expected an unlocked model to save"):
        loaded.save(path.parent / "copy", sealed=False)
    assert loaded.is_locked
    loaded.unlock(key)
    assert torch.equal(loaded.module.head.folded()[0], model.module.head.folded()[0])
    loaded.save(path.parent / "copy")
    assert weights_of(path.parent / "copy").suffix == ".sealed"


def swap_document(path):
    document = json.loads((path / "model.json").read_text())
    mapping = document["registry"]["field_registries"]["labels"]["state_registry"]["categorical_mapping"]
    mapping[0], mapping[1] = mapping[1], mapping[0]
    (path / "model.json").write_text(json.dumps(document))


def swap_round(path):
    document = json.loads((path / "model.json").read_text())
    document["history"]["best_round"] = 99
    (path / "model.json").write_text(json.dumps(document))


def swap_weights(path, *, of=None):
    import hashlib

    document = json.loads((path / "model.json").read_text())
    content = weights_of(of).read_bytes()
    weights_of(path).write_bytes(content)
    document["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "model.json").write_text(json.dumps(document))


def flip_bit(path):
    import hashlib

    content = bytearray(weights_of(path).read_bytes())
    content[-1] ^= 1
    weights_of(path).write_bytes(bytes(content))
    document = json.loads((path / "model.json").read_text())
    document["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "model.json").write_text(json.dumps(document))


@pytest.mark.parametrize("spoil", [swap_document, swap_round, flip_bit], ids=lambda spoil: spoil.__name__)
def test_a_sealed_model_that_was_changed_does_not_open(cells, key, sealed, spoil):
    _, path = sealed
    spoil(path)
    loaded = Classifier.load(path)
    with pytest.raises(ValueError, match="Expected a"):
        loaded.unlock(key)
    assert loaded.is_locked


def test_sealed_weights_of_another_model_of_the_same_key_do_not_open(cells, key, sealed, tmp_path):
    model, path = sealed
    model.train(1, key=key, progress=False)
    model.save(tmp_path / "later")
    swap_weights(path, of=tmp_path / "later")
    with pytest.raises(ValueError, match="found"):
        Classifier.load(path).unlock(key)


def test_a_seal_needs_the_models_own_key_and_a_plain_model_none(cells, key, saved, tmp_path, caplog):
    model, _ = saved
    model.lock()
    with pytest.raises(RuntimeError, match="Expected an unlocked model to save"):
        model.save(tmp_path / "x")
    model.save(tmp_path / "again", sealed=False)
    assert not caplog.text  # behind offsets
    bare = fit(cells, 1, key=key, scheme="permuted")
    bare.save(tmp_path / "bare", sealed=False)
    assert "locked but not sealed" in caplog.text
    model.unlock(Key.generate(), force=True)
    with pytest.raises(RuntimeError, match="the right key"):
        model.save(tmp_path / "x")
    plain = fit(cells, 1)
    with pytest.raises(RuntimeError, match="found a plain one"):
        plain.save(tmp_path / "x", sealed=True)
    assert not (tmp_path / "x").exists()


def test_a_sealed_journal_is_refused_to_others(cells, key, tmp_path):
    fit(cells, 1, key=key, journal=tmp_path)
    with pytest.raises(ValueError, match="Train with the key of that run"):
        fit(cells, 1, journal=tmp_path)
    with pytest.raises(ValueError, match="Use the key, and the place"):
        fit(cells, 1, key=Key.generate(), journal=tmp_path)
