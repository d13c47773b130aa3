"""The secret itself."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from scinfl.privacy import Key

SECRET = bytes(range(32))


def naive_hkdf(secret: bytes, parts: list[str], length: int = 32) -> bytes:
    """RFC 5869 with SHA-256 and no salt, one block."""
    info = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()[:length]


def test_derivation_is_hkdf_with_labels_bound_to_federation_version_and_purpose():
    key = Key(SECRET, federation="lung", version=3)
    assert key.derive("seal", "layer", 7) == naive_hkdf(SECRET, ["scinfl", "lung", "3", "seal", "layer", "7"])


def test_every_label_changes_the_derived_bytes():
    key = Key(SECRET, federation="lung", version=1)
    derived = {
        key.derive("a", "b"),
        key.derive("ab"),
        key.derive("a", "b", ""),
        key.derive("b", "a"),
        Key(SECRET, federation="lung", version=2).derive("a", "b"),
        Key(SECRET, federation="liver", version=1).derive("a", "b"),
        Key(bytes([SECRET[0] ^ 1]) + SECRET[1:], federation="lung").derive("a", "b"),
    }
    assert len(derived) == 7


def test_streams_are_of_any_length_and_unrelated_to_the_short_bytes_of_the_same_label():
    key = Key(SECRET, federation="lung")
    stream = key.stream("a", n_bytes=1000)
    assert len(stream) == 1000
    assert key.stream("a", n_bytes=500) == stream[:500]
    assert key.stream("a", n_bytes=0) == b""
    assert stream[:32] != stream[32:64]
    assert stream[:32] != key.derive("a")
    from_the_short_bytes = Cipher(algorithms.ChaCha20(key.derive("a"), bytes(16)), mode=None).encryptor()
    assert from_the_short_bytes.update(bytes(1000)) != stream


def test_coordinates_are_uniform_reproducible_and_differ_by_label():
    key = Key.generate()
    values = key.coordinates("layer/inputs", (4000, 4))
    assert values.shape == (4000, 4)
    assert values.min() >= -1
    assert values.max() < 1
    assert abs(values.mean()) < 0.03
    assert abs(values.var() - 1 / 3) < 0.03
    np.testing.assert_array_equal(values, key.coordinates("layer/inputs", (4000, 4)))
    other = key.coordinates("layer/outputs", (4000, 4))
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.05
    assert key.coordinates("x", (1,)).shape == (1,)
    assert key.coordinates("x", (0,)).shape == (0,)


@pytest.mark.parametrize(
    "secret",
    [bytes(32), b"\x07" * 32, bytes(range(15)) * 2 + bytes(2), b"correct horse battery staple 123", b"0a" * 16],
)
def test_a_secret_that_anyone_can_guess_is_refused(secret):
    with pytest.raises(ValueError, match=r"random bytes, found a pattern.*`Key.generate\(\)`"):
        Key(secret, federation="lung")


GENES = [f"gene_{i}" for i in range(2000)]


def test_named_coordinates_are_shake256_of_a_key_of_the_label_and_of_the_name():
    key = Key(SECRET, federation="lung", version=3)
    found = key.coordinates("table/rows", (2, 3), ["TP53", "größe"])
    prefix = naive_hkdf(SECRET, ["scinfl", "lung", "3", "named coordinates", "table/rows"])
    for row, name in zip(found, ["TP53", "größe"], strict=True):
        content = hashlib.shake_256(prefix + name.encode()).digest(24)
        words = [int.from_bytes(content[8 * i : 8 * i + 8], "little") >> 11 for i in range(3)]
        assert row.tolist() == [word / 2**52 - 1 for word in words]


def test_a_name_has_the_same_coordinates_in_any_order_and_company():
    key = Key.generate()
    values = key.coordinates("table", (2000, 3), GENES)
    np.testing.assert_array_equal(values, key.coordinates("table", (2000, 3), GENES))
    order = np.random.default_rng(0).permutation(2000)
    shuffled = key.coordinates("table", (2000, 3), [GENES[i] for i in order])
    np.testing.assert_array_equal(shuffled, values[order])
    company = key.coordinates("table", (4, 3), ["other", GENES[7], "another", GENES[3]])
    np.testing.assert_array_equal(company[[1, 3]], values[[7, 3]])
    np.testing.assert_array_equal(key.coordinates("table", (2, 3), [GENES[7]] * 2)[1], values[7])


def test_named_coordinates_are_uniform_and_unrelated_between_names_labels_and_keys():
    key = Key.generate()
    values = key.coordinates("table", (2000, 4), GENES)
    assert values.shape == (2000, 4)
    assert values.dtype == np.float64
    assert -1 <= values.min() < -0.99
    assert 0.99 < values.max() < 1
    assert abs(values.mean()) < 0.03
    counts, _ = np.histogram(values, bins=10, range=(-1, 1))
    assert counts.min() > 640
    assert len(np.unique(values)) == values.size
    others = [
        key.coordinates("other table", (2000, 4), GENES),
        key.coordinates("table", (2000, 4)),
        Key.generate(key.federation).coordinates("table", (2000, 4), GENES),
        np.roll(values, 1, axis=0),
        np.roll(values, 1, axis=1),
    ]
    for other in others:
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.07


def test_named_coordinates_follow_the_shape_and_need_a_name_a_row():
    key = Key.generate()
    assert key.coordinates("x", (2, 3, 4), ["a", "b"]).shape == (2, 3, 4)
    assert key.coordinates("x", (2,), ["a", "b"]).shape == (2,)
    assert key.coordinates("x", (0, 3), []).shape == (0, 3)
    assert key.coordinates("x", (2, 0), ["a", "b"]).shape == (2, 0)
    for names in (["a", "b"], [], ["a"] * 8):
        with pytest.raises(ValueError, match=f"each of 4 rows, found {len(names)}"):
            key.coordinates("x", (4, 3), names)


def test_generated_keys_differ():
    keys = [Key.generate() for _ in range(5)]
    assert len({key.fingerprint for key in keys}) == 5
    assert len(set(keys)) == 5
    assert keys[0] != keys[1]
    assert keys[0] != "key"


def test_saved_key_loads_equal_and_is_private(tmp_path):
    path = tmp_path / "a.key"
    key = Key.generate("lung", version=2)
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Key.load(path) == key
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_key_is_not_lost(tmp_path):
    path = tmp_path / "a.key"
    first, second = Key.generate(), Key.generate()
    first.save(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        second.save(path)
    assert Key.load(path) == first
    second.save(path, overwrite=True)
    assert Key.load(path) == second
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o620])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "a.key"
    Key.generate().save(path)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        Key.load(path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.key"
    key = Key.generate()
    key.save(path)
    good = path.read_text()
    for bad in (good[:40], "", "[]", "{}", json.dumps({**json.loads(good), "secret": "AAAA"})):
        path.write_text(bad)
        with pytest.raises(ValueError, match="restore it from a copy"):
            Key.load(path)
    path.write_text(json.dumps({**json.loads(good), "version": 2}))
    with pytest.raises(ValueError, match="fingerprint"):
        Key.load(path)
    with pytest.raises(FileNotFoundError, match="scinfl key new"):
        Key.load(tmp_path / "none.key")
    with pytest.raises(FileNotFoundError, match="folder"):
        key.save(tmp_path / "none" / "a.key")


@pytest.mark.parametrize(
    "arguments",
    [
        {"secret": b"short", "federation": "a"},
        {"secret": "x" * 32, "federation": "a"},
        {"secret": 7, "federation": "a"},
        {"secret": SECRET, "federation": ""},
        {"secret": SECRET, "federation": "a/b"},
        {"secret": SECRET, "federation": "a", "version": 0},
        {"secret": SECRET, "federation": "a", "version": True},
    ],
)
def test_bad_arguments_are_refused_without_showing_the_secret(arguments):
    with pytest.raises(ValueError, match="Expected") as error:
        Key(**arguments)
    assert "xxxx" not in str(error.value)
    assert "short" not in str(error.value)


def test_text_shows_the_fingerprint_only():
    key = Key(SECRET, federation="lung")
    assert repr(key) == str(key) == f"Key(fingerprint='{key.fingerprint}')"
    assert SECRET.hex() not in repr(key)


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy, lambda key: copy.deepcopy([key])])
def test_a_key_can_be_neither_pickled_nor_copied(attempt):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        attempt(Key.generate())
