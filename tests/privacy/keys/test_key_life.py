"""Rotation, revocation, and the version that sites agree on."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.privacy.keys.test_identity import naive_exchange

from scinfl.privacy import Key
from scinfl.privacy.keys._agreement import agree_version
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key_ring import KeyRing
from scinfl.privacy.keys._revocation import Revocation, revoke
from scinfl.privacy.keys._rotation import WrappedKey, check_successor, rotate

SITES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def identities() -> dict[str, Identity]:
    return {site: Identity.generate(site) for site in SITES}


@pytest.fixture
def key():
    return Key.generate("lung")


@pytest.fixture
def rings(identities, key, tmp_path) -> dict[str, KeyRing]:
    """One ring a site, with the first version of the key and all sites pinned."""
    made = {}
    for site, identity in identities.items():
        (tmp_path / site).mkdir()
        key.save(tmp_path / site / "first.key")
        made[site] = KeyRing(tmp_path / site, identity, publics(identities))
    return made


def publics(identities, *sites) -> list[PublicIdentity]:
    return [identities[site].public for site in sites or identities]


def offers(rings, *sites) -> dict:
    return {site: rings[site].offer() for site in sites}


# ---- wrapped keys


def test_only_the_receiver_opens_a_wrapped_key(identities, key):
    wrapped = WrappedKey.of(key, identities["a"], identities["b"].public)
    pinned = publics(identities)
    assert wrapped.open(identities["b"], pinned) == key
    with pytest.raises(ValueError, match=r"wrapped for site 'c'.*found one for site 'b'"):
        wrapped.open(identities["c"], pinned)
    renewed = Identity.generate("b")
    with pytest.raises(ValueError, match="pin the present identity"):
        wrapped.open(renewed, pinned)
    stolen = replace(wrapped, site="c", receiver=identities["c"].public.fingerprint)
    with pytest.raises(ValueError, match="signature of site 'a'"):
        stolen.open(identities["c"], pinned)
    resigned = replace(stolen, sender="d")
    resigned = replace(resigned, signature=identities["d"].sign(resigned._signed()))
    with pytest.raises(ValueError, match="none that fits"):  # a site cannot pass on what it cannot open
        resigned.open(identities["c"], pinned)


def test_a_wrapped_key_is_x25519_hkdf_and_chacha20_poly1305_of_its_head(identities, key):
    wrapped = WrappedKey.of(key, identities["a"], identities["b"].public)
    secret = naive_exchange(identities["b"], wrapped.ephemeral, ["wrapped key"])
    parts = [
        *("scinfl-wrapped-key-1", "lung", "1", key.fingerprint, "a", "b"),
        *(identities["b"].public.fingerprint, wrapped.ephemeral.fingerprint),
    ]
    head = b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)
    assert ChaCha20Poly1305(secret).decrypt(bytes(12), wrapped.closed, head) == key._secret
    X25519PublicKey.from_public_bytes(wrapped.ephemeral.exchange)
    again = WrappedKey.of(key, identities["a"], identities["b"].public)
    assert again.ephemeral.exchange != wrapped.ephemeral.exchange
    assert again.closed != wrapped.closed


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "liver"},
        {"version": 9},
        {"fingerprint": "0" * 32},
        {"sender": "c"},
        {"closed": bytes(48)},
        {"signature": bytes(64)},
        {"ephemeral": Identity.generate("a").public},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_on_the_way_is_noticed(identities, key, change):
    wrapped = replace(WrappedKey.of(key, identities["a"], identities["b"].public), **change)
    with pytest.raises(ValueError, match="signature of site"):
        wrapped.open(identities["b"], publics(identities))


def test_who_is_not_pinned_sends_no_keys(identities, key):
    wrapped = WrappedKey.of(key, identities["a"], identities["b"].public)
    with pytest.raises(ValueError, match=r"pinned sites \(c\), found one from site 'a'"):
        wrapped.open(identities["b"], publics(identities, "c"))
    impostor = Identity.generate("a")  # knows the key that the sites share, but is not site a
    wrapped = WrappedKey.of(key, impostor, identities["b"].public)
    with pytest.raises(ValueError, match="signature of site 'a'"):
        wrapped.open(identities["b"], publics(identities, "a"))
    with pytest.raises(ValueError, match="two of site 'a'"):
        wrapped.open(identities["b"], [impostor.public, identities["a"].public])


def test_a_wrapped_key_survives_a_file_that_shows_no_secret(identities, key, tmp_path):
    wrapped = WrappedKey.of(key, identities["a"], identities["b"].public)
    path = tmp_path / "b.json"
    wrapped.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.json"]
    assert key._secret not in path.read_bytes()
    assert key.fingerprint in repr(wrapped)
    path.chmod(0o644)  # it went through the mail
    assert WrappedKey.load(path) == wrapped
    assert WrappedKey.load(path).open(identities["b"], publics(identities, "a")) == key
    with pytest.raises(FileExistsError):
        wrapped.save(path)
    good = json.loads(path.read_text())
    for bad in ({}, {**good, "format": "other"}, {**good, "closed": "?"}, {**good, "ephemeral": "x"}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="restore it from a copy"):
            WrappedKey.load(path)
    with pytest.raises(FileNotFoundError, match="ask its sender"):
        WrappedKey.load(tmp_path / "none.json")


# ---- rotation


def test_rotation_draws_a_fresh_secret_for_all_other_sites(identities, key):
    new, wrapped_keys = rotate(key, identities["a"], publics(identities))
    assert (new.version, new.federation) == (2, "lung")
    assert new._secret != key._secret
    assert sorted(wrapped_keys) == ["b", "c", "d"]
    for site, wrapped in wrapped_keys.items():
        assert wrapped.open(identities[site], publics(identities, "a"), held=key) == new
    assert rotate(key, identities["a"], [])[0]._secret != new._secret


def test_keys_that_do_not_follow_are_refused(identities, key):
    pinned = publics(identities)
    new, wrapped_keys = rotate(key, identities["a"], pinned)
    with pytest.raises(ValueError, match="later key of federation 'lung' than version 2, found version 2"):
        wrapped_keys["b"].open(identities["b"], pinned, held=new)  # a replay
    with pytest.raises(ValueError, match=r"of federation 'lung'.*of federation 'liver'"):
        check_successor(key, Key.generate("liver", version=2))
    check_successor(key, Key.generate("liver"), force=True)
    with pytest.raises(ValueError, match="anyone with the old key would have the new one"):
        check_successor(key, Key(key._secret, federation="lung", version=2))
    with pytest.raises(ValueError, match="anyone with the old key"):
        check_successor(key, key, force=True)


def test_all_sites_take_the_next_version_and_agree_on_it(rings, caplog):
    wrapped_keys = rings["a"].rotate()
    assert rings["a"].agree(offers(rings, "b", "c", "d")).version == 1  # nobody else has the new one
    assert "going on with version 1" in caplog.text.lower()
    for site in ("b", "c"):
        rings[site].accept(wrapped_keys[site])
    assert rings["b"].agree(offers(rings, "a", "c")).version == 2
    with caplog.at_level(logging.WARNING):
        assert rings["b"].agree(offers(rings, "a", "c", "d")).version == 1
    assert "'d' (version 1) lack version 2" in caplog.text
    rings["d"].accept(wrapped_keys["d"])
    chosen = {site: ring.agree(offers(rings, *(set(SITES) - {site}))) for site, ring in rings.items()}
    assert len(set(chosen.values())) == 1
    assert chosen["d"].version == 2
    assert rings["d"].versions == [1, 2]
    with pytest.raises(ValueError, match="than version 2"):
        rings["d"].accept(wrapped_keys["d"])


def test_a_ring_comes_back_from_its_folder_and_keeps_its_files_private(rings, identities, key):
    ring = rings["a"]
    ring.rotate()
    _, statement = ring.revoke("d")
    again = KeyRing(ring.path, identities["a"], publics(identities))
    assert again.offer() == ring.offer() == {3: ring.current.fingerprint}
    assert again.revoked == {"d": 3}
    assert again.key(1, revoked=True) == key
    files = list(ring.path.iterdir())
    assert len(files) == 4
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    secrets = [ring.key(version, revoked=True)._secret for version in (1, 2, 3)]
    for text in (repr(ring), repr(vars(ring)), repr(statement), str(vars(statement))):
        assert not any(secret.hex() in text or repr(secret) in text for secret in secrets)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(ring)


# ---- revocation


def test_a_revoked_site_gets_no_key_and_its_versions_are_refused(rings, key):
    wrapped_keys, statement = rings["a"].revoke("d")
    assert sorted(wrapped_keys) == ["b", "c"]
    for site in ("b", "c"):
        rings[site].accept(statement)
        with pytest.raises(ValueError, match="Open the one that was wrapped for site"):
            rings[site].current  # noqa: B018
        rings[site].accept(wrapped_keys[site])
        assert rings[site].versions == [2]
        assert rings[site].current == rings["a"].current
        with pytest.raises(ValueError, match="revoked with site d"):
            rings[site].key(1)
        assert rings[site].key(1, revoked=True) == key  # old models are opened and rekeyed with it
    with pytest.raises(ValueError, match="found 'd', which was, in version 2"):
        rings["b"].agree(offers(rings, "a", "c", "d"))
    assert rings["b"].agree(offers(rings, "a", "c")).version == 2
    for wrapped in wrapped_keys.values():
        with pytest.raises(ValueError, match="wrapped for site 'd'"):
            rings["d"].accept(wrapped)
    rings["d"].accept(statement)
    with pytest.raises(ValueError, match="Expected a key from version 2"):
        rings["d"].current  # noqa: B018
    assert rings["d"].key(1, revoked=True) == key  # what it had it keeps


def test_a_revoked_site_neither_rotates_nor_revokes(rings, identities):
    own_letters = rings["d"].rotate()
    own_statement = revoke(rings["d"].key(1), "a", identities["d"], publics(identities))[2]
    wrapped_keys, statement = rings["a"].revoke("d")
    rings["b"].accept(statement)
    for document in (own_letters["b"], own_statement):
        with pytest.raises(ValueError, match="sender that is not revoked, found site 'd'"):
            rings["b"].accept(document)
    rings["b"].accept(wrapped_keys["b"])
    assert rings["b"].current == rings["a"].current
    assert "d" not in rings["b"].rotate()
    with pytest.raises(ValueError, match="Pin it first"):
        rings["b"].wrap("d")


def test_a_key_that_the_revoked_site_sent_before_is_dropped(rings):
    early = rings["d"].rotate()["b"]
    rings["b"].accept(early)
    assert rings["b"].current == rings["d"].current
    wrapped_keys, statement = rings["a"].revoke("d")  # the same version, another key
    rings["b"].accept(statement)
    assert rings["b"].versions == []
    rings["b"].accept(wrapped_keys["b"])
    assert rings["b"].offer() == rings["a"].offer()
    other = rings["c"].rotate()["b"]
    with pytest.raises(ValueError, match="later key of federation"):
        rings["b"].accept(other)


def test_a_key_without_its_statement_is_refused(rings):
    _, statement = rings["a"].revoke("d")
    other = rings["c"].rotate()["b"]  # site c does not know of it
    rings["b"].accept(statement)
    with pytest.raises(ValueError, match="no revocation refuses, found version 2"):
        rings["b"].accept(other)


def test_a_site_comes_back_with_a_new_identity(rings, identities, tmp_path):
    rings["a"].revoke("d")
    renewed = Identity.generate("d")
    ring = KeyRing(rings["a"].path, identities["a"], [*publics(identities, "b", "c"), renewed.public])
    wrapped = ring.wrap("d")
    (tmp_path / "new").mkdir()
    joined = KeyRing(tmp_path / "new", renewed, publics(identities, "a"))
    joined.accept(wrapped)
    assert ring.agree({"d": joined.offer()}) == joined.current


def test_statements_are_signed_and_survive_a_file(identities, key, tmp_path):
    _, _, statement = revoke(key, "c", identities["a"], publics(identities))
    statement.save(tmp_path / "r.json")
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o600
    assert Revocation.load(tmp_path / "r.json") == statement
    statement.verify(publics(identities, "a"))
    for change in ({"site": "b"}, {"revoked": "0" * 32}, {"version": 1}, {"fingerprint": "0"}, {"federation": "x"}):
        with pytest.raises(ValueError, match="signature of site 'a'"):
            replace(statement, **change).verify(publics(identities))
    with pytest.raises(ValueError, match="revocation from one of the pinned sites"):
        statement.verify(publics(identities, "b"))
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ValueError, match="scinfl revocation"):
        Revocation.load(tmp_path / "r.json")


def test_who_revokes_names_another_pinned_site(identities, key):
    with pytest.raises(ValueError, match="it would know the new key"):
        revoke(key, "a", identities["a"], publics(identities))
    with pytest.raises(ValueError, match=r"pinned sites \['b', 'c'\], found 'd'"):
        revoke(key, "d", identities["a"], publics(identities, "b", "c"))


# ---- mistakes


def test_versions_without_a_common_one_name_site_and_cure():
    with pytest.raises(
        ValueError, match=r"key of version 3 at every site, found others at 'b' \(version 1, version 2\)"
    ):
        agree_version({"a": {3: "x"}, "b": {1: "u", 2: "v"}})
    with pytest.raises(ValueError, match=r"'c' \(none\).*scinfl key unwrap"):
        agree_version({"a": {1: "x"}, "c": {}})
    with pytest.raises(ValueError, match="at least one site"):
        agree_version({})


def test_two_keys_of_one_version_are_noticed(rings):
    for site in ("a", "b"):
        rings[site].rotate()
    with pytest.raises(ValueError, match=r"one key of version 2 at all sites, found 2: .* at b; .* at a"):
        rings["a"].agree(offers(rings, "b"))
    assert agree_version({"a": {1: "x", 2: "y"}, "b": {1: "x", 3: "z"}}) == 1


def test_strangers_and_other_federations_are_refused(rings, identities, tmp_path):
    with pytest.raises(ValueError, match=r"found one of 'z'. Pin it"):
        rings["a"].agree({"z": {1: "x"}})
    wrapped = WrappedKey.of(Key.generate("liver", version=5), identities["b"], identities["a"].public)
    with pytest.raises(ValueError, match="of federation 'lung', found one of 'liver'"):
        rings["a"].accept(wrapped)
    with pytest.raises(ValueError, match=r"from \[1\], found 7. Ask a site"):
        rings["a"].key(7)
    Key.generate("liver").save(rings["a"].path / "other.key")
    with pytest.raises(ValueError, match=r"one federation.*\['liver', 'lung'\]"):
        KeyRing(rings["a"].path, identities["a"], [])
    with pytest.raises(FileNotFoundError, match="scinfl key new"):
        KeyRing(tmp_path / "none", identities["a"], [])
