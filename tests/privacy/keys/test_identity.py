"""Who a site is."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from scinfl.privacy.keys._identity import Identity, PublicIdentity


def naive_exchange(mine: Identity, other: PublicIdentity, labels: list[str]) -> bytes:
    """X25519, then RFC 5869 with SHA-256 and no salt, one block."""

    def joined(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    secret = mine._exchanging.exchange(X25519PublicKey.from_public_bytes(other.exchange))
    both = sorted(joined(p.site.encode(), p.signing, p.exchange) for p in (mine.public, other))
    info = joined(b"scinfl exchange", *both, *(label.encode() for label in labels))
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_two_sites_agree_on_a_secret_that_a_third_does_not_know():
    a, b, c = (Identity.generate(site) for site in "abc")
    secret = a.exchange(b.public, "mask", 7)
    assert secret == b.exchange(a.public, "mask", 7) == naive_exchange(a, b.public, ["mask", "7"])
    assert len(secret) == 32
    assert secret not in {c.exchange(a.public, "mask", 7), c.exchange(b.public, "mask", 7)}


def test_labels_names_and_keys_change_the_secret():
    a, b = Identity.generate("a"), Identity.generate("b")
    renamed = PublicIdentity("c", b.public.signing, b.public.exchange)
    resigned = PublicIdentity("b", a.public.signing, b.public.exchange)
    secrets = {
        a.exchange(b.public),
        a.exchange(b.public, "x"),
        a.exchange(b.public, "x", "y"),
        a.exchange(b.public, "xy"),
        a.exchange(renamed),
        a.exchange(resigned),
    }
    assert len(secrets) == 6


def test_a_site_signs_and_nobody_else_can():
    a, other = Identity.generate("a"), Identity.generate("a")
    signature = a.sign(b"content")
    a.public.verify(signature, b"content")
    for signed, content in ((signature, b"other"), (other.sign(b"content"), b"content"), (bytes(64), b"content")):
        with pytest.raises(InvalidSignature, match="signature of site 'a'"):
            a.public.verify(signed, content)


def test_a_weak_exchange_key_is_refused():
    a = Identity.generate("a")
    with pytest.raises(ValueError, match="site 'b', found a weak one"):
        a.exchange(PublicIdentity("b", a.public.signing, bytes(32)))


def test_the_public_part_survives_as_text_and_damage_is_noticed():
    public = Identity.generate("Hospital Süd 1").public
    text = public.to_text()
    assert "\n" not in text
    assert PublicIdentity.from_text(text) == public
    content = json.loads(text)
    for bad in (
        "",
        "[]",
        "{}",
        text[:50],
        json.dumps({**content, "site": "other"}),
        json.dumps({**content, "signing": "AA=="}),
    ):
        with pytest.raises(ValueError, match="Ask the site again"):
            PublicIdentity.from_text(bad)


def test_fingerprints_differ_and_bind_the_name():
    public = Identity.generate("a").public
    assert len(public.fingerprint) == 32
    others = {
        Identity.generate("a").public.fingerprint,
        PublicIdentity("b", public.signing, public.exchange).fingerprint,
    }
    assert public.fingerprint not in others


@pytest.mark.parametrize(
    "arguments",
    [
        ("", bytes(32), bytes(32)),
        (1, bytes(32), bytes(32)),
        ("a\n", bytes(32), bytes(32)),
        ("a", b"", bytes(32)),
        ("a", bytes(32), "x" * 32),
    ],
    ids=str,
)
def test_bad_parts_are_refused(arguments):
    with pytest.raises(ValueError, match="Expected `"):
        PublicIdentity(*arguments)


def test_a_saved_identity_loads_equal_and_is_private(tmp_path):
    path = tmp_path / "a.identity"
    identity = Identity.generate("a")
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = Identity.load(path)
    assert loaded.public == identity.public
    loaded.public.verify(identity.sign(b"x"), b"x")
    other = Identity.generate("b").public
    assert loaded.exchange(other) == identity.exchange(other)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        identity.save(path)
    second = Identity.generate("a")
    second.save(path, overwrite=True)
    assert Identity.load(path).public == second.public
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_an_identity_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "a.identity"
    Identity.generate("a").save(path)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="make a new identity"):
        Identity.load(path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.identity"
    Identity.generate("a").save(path)
    good = path.read_text()
    content = json.loads(good)
    for bad in (good[:40], "", "[]", json.dumps({**content, "site": "b"}), json.dumps({**content, "signing": "AAAA"})):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"scinfl identity .* restore it from a copy"):
            Identity.load(path)
    with pytest.raises(FileNotFoundError, match=r"Identity\.generate"):
        Identity.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="folder"):
        Identity.generate("a").save(tmp_path / "none" / "a")


def test_text_shows_no_secret():
    identity = Identity.generate("a")
    shown = repr(identity) + str(identity) + repr(identity.public) + identity.public.to_text()
    assert identity.public.fingerprint in repr(identity)
    for secret in (identity._signing.private_bytes_raw(), identity._exchanging.private_bytes_raw()):
        assert secret.hex() not in shown
        assert str(secret) not in shown


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy, lambda value: copy.deepcopy([value])])
def test_an_identity_can_be_neither_pickled_nor_copied(attempt):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        attempt(Identity.generate("a"))


def test_sites_whose_names_look_alike_in_ascii_have_files_of_their_own():
    from scinfl.privacy.keys._signed_document import as_file_name

    names = ["uni/köln", "uni_k_ln", "uni k ln", ".hidden", "%2Ehidden", "../up", "a%2Fb", "a/b"]
    files = [as_file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert not any(file.startswith(".") or "/" in file for file in files)
