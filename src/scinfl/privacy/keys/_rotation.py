"""The next version of a key, sent to single sites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from scinfl._spelling import spelled
from scinfl.privacy.keys._derivation import joined
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._signed_document import SignedDocument, by_name, check_signature


@dataclass(frozen=True)
class WrappedKey(SignedDocument):
    """A key on its way to one site, which alone can open it.

    The sender draws an ephemeral X25519 key (RFC 7748) and agrees with the pinned key of the receiver on a secret that
    is used once; HKDF-SHA256 (RFC 5869) makes of it a key of ChaCha20-Poly1305 (RFC 8439), which closes the 32 bytes.
    The identity of the sender (Ed25519) signs all of it. The file may travel over any channel.

    There is no escrow, on purpose: no master key and no copy for an authority opens it, so nobody can be made to. If
    all sites lose a key, the models that it locks are lost.

    Parameters
    ----------
    federation, version, fingerprint
        Of the key within.
    sender, site
        Names of the sites that it comes from and goes to.
    receiver
        Fingerprint of the identity of the receiving site.
    ephemeral
        Public keys that the sender drew for this key alone.
    closed
        The encrypted key.
    signature
        Of the sender.

    Examples
    --------
    >>> import scinfl as si
    >>> a, b = si.privacy.Identity.generate("a"), si.privacy.Identity.generate("b")
    >>> key = si.privacy.Key.generate("lung")
    >>> wrapped = si.privacy.WrappedKey.of(key, a, b.public)
    >>> wrapped.open(b, [a.public]) == key
    True
    """

    _format: ClassVar = "scinfl-wrapped-key-1"
    _what: ClassVar = "wrapped key"
    _suffix: ClassVar = "key"
    federation: str
    version: int
    fingerprint: str
    sender: str
    receiver: str
    ephemeral: PublicIdentity
    closed: bytes = b""
    signature: bytes = b""

    @classmethod
    def of(cls, key: Key, identity: Identity, receiver: PublicIdentity) -> WrappedKey:
        """Wrap a key for one site.

        Parameters
        ----------
        key
            Key.
        identity
            Identity of the sending site.
        receiver
            Pinned identity of the receiving site.
        """
        ephemeral = Identity.generate(identity.site)
        wrapped = cls(
            federation=key.federation,
            version=key.version,
            fingerprint=key.fingerprint,
            sender=identity.site,
            site=receiver.site,
            receiver=receiver.fingerprint,
            ephemeral=ephemeral.public,
        )
        cipher = ChaCha20Poly1305(ephemeral.exchange(receiver, "wrapped key"))
        wrapped = replace(wrapped, closed=cipher.encrypt(bytes(12), key._secret, wrapped._head()))
        return replace(wrapped, signature=identity.sign(wrapped._signed()))

    def open(self, identity: Identity, pinned: Iterable[PublicIdentity], *, held: Key | None = None) -> Key:
        """Check who sent the key, and open it.

        Parameters
        ----------
        identity
            Identity of this site.
        pinned
            Identities of the sites that may send keys.
        held
            The key that this site has; what comes must be a later one of the same federation.

        Raises
        ------
        ValueError
            If it is for another site, from an unknown one, changed on its way, or its key does not follow the one
            that is held.
        """
        if (self.site, self.receiver) != (identity.site, identity.public.fingerprint):
            msg = (
                f"Expected a key that was wrapped for site '{identity.site}' (fingerprint "
                f"{identity.public.fingerprint}), found one for site '{self.site}' ({self.receiver}). Ask site "
                f"'{self.sender}' to pin the present identity of this site and to wrap the key for it."
            )
            raise ValueError(msg)
        check_signature(self.sender, pinned, self.signature, self._signed(), "key")
        try:
            cipher = ChaCha20Poly1305(identity.exchange(self.ephemeral, "wrapped key"))
            secret = cipher.decrypt(bytes(12), self.closed, self._head())
            key = Key(secret, federation=self.federation, version=self.version)
        except (InvalidTag, ValueError):
            key = None
        if key is None or key.fingerprint != self.fingerprint:
            msg = f"Expected a key within what site '{self.sender}' wrapped, found none that fits. Ask for it again."
            raise ValueError(msg)
        if held is not None:
            check_successor(held, key)
        return key

    def _head(self) -> bytes:
        names = (self.sender, self.site, self.receiver, self.ephemeral.fingerprint)
        return joined(self._format, self.federation, self.version, self.fingerprint, *names)

    def _signed(self) -> bytes:
        return joined(self._head(), self.closed)

    def __repr__(self) -> str:
        return (
            f"WrappedKey(version={self.version} of '{self.federation}', from '{self.sender}' for '{self.site}', "
            f"fingerprint='{self.fingerprint}')"
        )


def rotate(key: Key, identity: Identity, sites: Iterable[PublicIdentity]) -> tuple[Key, dict[str, WrappedKey]]:
    """Draw the next version of a key, and wrap it for each of the other sites.

    The new key is 32 fresh random bytes, unrelated to the old ones. What the old key locked stays as it is; see
    :meth:`scinfl.model.Classifier.rekey`.

    Parameters
    ----------
    key
        The present key.
    identity
        Identity of the site that rotates.
    sites
        Pinned identities of the sites that get the key; that of the rotating site is passed over.

    Returns
    -------
    The new key, and by site what to send it.

    Raises
    ------
    ValueError
        If two sites have one name.

    Examples
    --------
    >>> import scinfl as si
    >>> a, b, c = (si.privacy.Identity.generate(site) for site in "abc")
    >>> old = si.privacy.Key.generate("lung")
    >>> new, wrapped = si.privacy.rotate(old, a, [b.public, c.public])
    >>> new.version, sorted(wrapped), wrapped["b"].open(b, [a.public], held=old) == new
    (2, ['b', 'c'], True)
    """
    new = Key.generate(key.federation, version=key.version + 1)
    others = [other for name, other in by_name(sites).items() if name != identity.site]
    return new, {other.site: WrappedKey.of(new, identity, other) for other in others}


def check_successor(old: Key, new: Key, *, force: bool = False) -> None:
    """Refuse a key that does not take the place of another.

    Raises
    ------
    ValueError
        If the new key is not a later version of the same federation, or has the secret of the old one.
    """
    if (new.federation != old.federation or new.version <= old.version) and not force:
        msg = (
            f"Expected a later key of federation '{old.federation}' than version {old.version}, found version "
            f"{new.version} of federation '{new.federation}'. Draw one with {spelled('`scinfl.privacy.rotate`')}."
        )
        raise ValueError(msg)
    if Key(new._secret, federation=old.federation, version=old.version) == old:
        msg = (
            f"Expected a new secret in place of the key of version {old.version}, found the same one: anyone with the "
            f"old key would have the new one. Draw a key with {spelled('`scinfl.privacy.rotate`')}."
        )
        raise ValueError(msg)
