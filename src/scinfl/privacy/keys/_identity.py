"""Who a site is, to the other sites and to the server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from scinfl.privacy.keys._derivation import derive, joined
from scinfl.privacy.keys._secret_file import damaged, read_secret_file, write_secret_file

_FORMAT = "scinfl-identity-1"
_PUBLIC_FORMAT = "scinfl-public-identity-1"
_N_BYTES = 32


@dataclass(frozen=True)
class PublicIdentity:
    """What the others must know of a site, and pin: without it, nothing from that site is trusted.

    Compare fingerprints over another channel (by telephone, on paper) before pinning: anyone who can exchange an
    identity on its way can impersonate the site.

    Parameters
    ----------
    site
        Name of the site.
    signing
        Ed25519 public key (RFC 8032), 32 bytes: checks what the site signs.
    exchange
        X25519 public key (RFC 7748), 32 bytes: agrees on secrets with the site.

    Examples
    --------
    >>> import scinfl as si
    >>> identity = si.privacy.Identity.generate("hospital_a")
    >>> public = si.privacy.PublicIdentity.from_text(identity.public.to_text())
    >>> public.verify(identity.sign(b"hello"), b"hello")
    """

    site: str
    signing: bytes
    exchange: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.site, str) or not self.site or not self.site.isprintable():
            msg = f"Expected `site` to be the name of a site, found {self.site!r}."
            raise ValueError(msg)
        for name, value in (("signing", self.signing), ("exchange", self.exchange)):
            if not isinstance(value, bytes) or len(value) != _N_BYTES:
                found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
                msg = f"Expected `{name}` to be a public key of {_N_BYTES} bytes, found {found}."
                raise ValueError(msg)

    @property
    def fingerprint(self) -> str:
        """128 bits of a hash over name and keys, to compare by telephone."""
        return hashlib.sha256(joined(_PUBLIC_FORMAT, *self._content())).hexdigest()[:32]

    def verify(self, signature: bytes, content: bytes) -> None:
        """Refuse what this site did not sign.

        Parameters
        ----------
        signature
            What :meth:`Identity.sign` returned.
        content
            What was signed.

        Raises
        ------
        cryptography.exceptions.InvalidSignature
            If the site did not sign this content.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.signing).verify(signature, content)
        except InvalidSignature:
            msg = (
                f"Expected a signature of site '{self.site}' (fingerprint {self.fingerprint}), found none of its. "
                "What it signed was changed on its way, comes from somebody else, or the pinned identity is old."
            )
            raise InvalidSignature(msg) from None

    def to_text(self) -> str:
        """One line of json, to be sent to the other sites."""
        keys = {"signing": _to_base64(self.signing), "exchange": _to_base64(self.exchange)}
        return json.dumps({"format": _PUBLIC_FORMAT, "site": self.site, **keys, "fingerprint": self.fingerprint})

    @classmethod
    def from_text(cls, text: str) -> PublicIdentity:
        """Read what :meth:`to_text` wrote.

        Parameters
        ----------
        text
            One line of json.

        Raises
        ------
        ValueError
            If the text holds no identity, or a damaged one.
        """
        try:
            content = json.loads(text)
            if content["format"] != _PUBLIC_FORMAT:
                raise ValueError  # noqa: TRY301
            public = cls(content["site"], _from_base64(content["signing"]), _from_base64(content["exchange"]))
            if public.fingerprint != content["fingerprint"]:
                raise ValueError  # noqa: TRY301
        except (ValueError, KeyError, TypeError):
            msg = "Expected the public identity of a site, found something else or a damaged one. Ask the site again."
            raise ValueError(msg) from None
        return public

    def _content(self) -> tuple[str, bytes, bytes]:
        return self.site, self.signing, self.exchange

    def __repr__(self) -> str:
        return f"PublicIdentity(site='{self.site}', fingerprint='{self.fingerprint}')"


class Identity:
    """Secret keys of one site, known to no other: they prove which site sent something, which the shared key cannot.

    One key signs (Ed25519, RFC 8032), the other agrees on secrets with single sites (X25519, RFC 7748). The public
    halves, ``public``, are pinned by every other site and by the server. An identity shows its fingerprint only,
    and can be neither pickled nor copied.

    Parameters
    ----------
    site
        Name of the site.
    signing, exchanging
        Private keys. Use :meth:`generate`.

    Examples
    --------
    >>> import scinfl as si
    >>> a, b = si.privacy.Identity.generate("a"), si.privacy.Identity.generate("b")
    >>> a.exchange(b.public, "example") == b.exchange(a.public, "example")
    True
    """

    __slots__ = ("_exchanging", "_signing", "public")

    def __init__(self, site: str, signing: Ed25519PrivateKey, exchanging: X25519PrivateKey) -> None:
        self._signing, self._exchanging = signing, exchanging
        self.public = PublicIdentity(
            site, signing.public_key().public_bytes_raw(), exchanging.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls, site: str) -> Identity:
        """Draw new keys from the operating system's generator.

        Parameters
        ----------
        site
            Name of the site.
        """
        return cls(site, Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @property
    def site(self) -> str:
        """Name of the site."""
        return self.public.site

    def sign(self, content: bytes) -> bytes:
        """Sign content, which must itself state what it is for.

        Parameters
        ----------
        content
            What to sign.
        """
        return self._signing.sign(content)

    def exchange(self, other: PublicIdentity, *labels: str | int) -> bytes:
        """Agree on 32 secret bytes with one site, the same at both and known to no third.

        HKDF-SHA256 (RFC 5869) of the X25519 secret; the info string holds names and public keys of both sites and the
        labels, each behind its length.

        Parameters
        ----------
        other
            Pinned identity of the other site.
        labels
            What the secret is for; different labels give unrelated bytes.

        Raises
        ------
        ValueError
            If the other's key is no proper point of the curve.
        """
        try:
            secret = self._exchanging.exchange(X25519PublicKey.from_public_bytes(other.exchange))
        except ValueError:
            msg = f"Expected a proper exchange key of site '{other.site}', found a weak one. Do not trust that site."
            raise ValueError(msg) from None
        both = sorted([joined(*self.public._content()), joined(*other._content())])
        return derive(secret, "scinfl exchange", *both, *labels)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the identity to a file that only its owner may read (mode 0600).

        The file appears whole or not at all.

        Parameters
        ----------
        path
            File to write.
        overwrite
            Replace an existing file. The others must then pin the new identity.

        Raises
        ------
        FileExistsError
            If there is a file and ``overwrite`` is not set.
        """
        content = {
            "format": _FORMAT,
            "site": self.site,
            "fingerprint": self.public.fingerprint,
            "signing": _to_base64(self._signing.private_bytes_raw()),
            "exchange": _to_base64(self._exchanging.private_bytes_raw()),
        }
        write_secret_file(path, content, "identity", overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read an identity that :meth:`save` wrote.

        Parameters
        ----------
        path
            File to read.

        Raises
        ------
        PermissionError
            If others than the owner may read or write the file.
        ValueError
            If the file holds no identity, or a damaged one.
        """
        content = read_secret_file(path, _FORMAT, "identity", "Make one with `Identity.generate(site).save(path)`.")
        try:
            signing = Ed25519PrivateKey.from_private_bytes(_from_base64(content["signing"]))
            exchanging = X25519PrivateKey.from_private_bytes(_from_base64(content["exchange"]))
            identity = cls(content["site"], signing, exchanging)
            if identity.public.fingerprint != content["fingerprint"]:
                raise ValueError  # noqa: TRY301
        except (ValueError, KeyError, TypeError):
            raise ValueError(damaged(path, "identity")) from None
        return identity

    def __repr__(self) -> str:
        return f"Identity(site='{self.site}', fingerprint='{self.public.fingerprint}')"

    def _refuse(self, *_: Any) -> NoReturn:
        msg = "An `Identity` cannot be pickled or copied: the copy would reach disk or another process. Use `save`."
        raise TypeError(msg)

    __reduce_ex__ = __reduce__ = __copy__ = __deepcopy__ = __getstate__ = _refuse


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
