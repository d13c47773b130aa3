"""Files that only the key opens."""

from __future__ import annotations

import json

import pytest

from scinfl.privacy import Key, Seal


def test_what_is_sealed_is_read_again_and_not_without_the_key(key):
    content = b"the weights of a model" * 100
    closed = Seal(key).seal(content, name="w", round=3)
    assert content[:20] not in closed
    assert Seal(key).unseal(closed) == content
    assert Seal(key).unseal(closed, name="w", round=3) == content
    assert Seal(key).seal(content, name="w", round=3) != closed  # a fresh cipher key each time
    assert Seal(key).unseal(Seal(key).seal(b"")) == b""


@pytest.mark.parametrize("expected", [{"name": "v"}, {"round": 4}, {"class": "GEARS"}], ids=str)
def test_other_labels_are_refused(key, expected):
    closed = Seal(key).seal(b"x", name="w", round=3)
    with pytest.raises(ValueError, match="Use the key, and the place"):
        Seal(key).unseal(closed, **expected)


def test_another_key_version_or_federation_is_refused_by_name(key):
    closed = Seal(key).seal(b"x")
    for other, what in (
        (Key.generate(key.federation), "key fingerprint"),
        (Key(key._secret, federation=key.federation, version=2), "key version 2"),
        (Key(key._secret, federation="liver"), "federation 'liver'"),
    ):
        with pytest.raises(ValueError, match=what):
            Seal(other).unseal(closed)


def test_any_changed_byte_is_noticed(key):
    closed = Seal(key).seal(b"some content", name="w")
    for position in range(len(closed)):
        changed = bytearray(closed)
        changed[position] ^= 1
        with pytest.raises(ValueError, match="Expected a"):
            Seal(key).unseal(bytes(changed), name="w")
    for n in range(len(closed)):
        with pytest.raises(ValueError, match="Expected a"):
            Seal(key).unseal(closed[:n], name="w")


def test_readable_labels_cannot_be_rewritten(key):
    closed = Seal(key).seal(b"x", round=3)
    head_length = int.from_bytes(closed[16:20], "big")
    head = json.loads(closed[20 : 20 + head_length])
    assert head["round"] == 3
    forged = closed.replace(b'"round": 3', b'"round": 4')
    with pytest.raises(ValueError, match="changed or damaged"):
        Seal(key).unseal(forged, round=4)


def test_text_shows_the_fingerprint_only(key):
    assert repr(Seal(key)) == f"Seal(key fingerprint='{key.fingerprint}')"
