"""A site that shall have no more keys."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from scinfl.privacy.keys._derivation import joined
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._rotation import WrappedKey, rotate
from scinfl.privacy.keys._signed_document import SignedDocument, by_name, check_signature


@dataclass(frozen=True)
class Revocation(SignedDocument):
    """Signed statement that a site is out, and that keys before a version are refused.

    What the revoked site keeps: every key that it had, every model that it could open (for good), the means of the
    rounds that it took part in, and what it can learn from them. It can open no upload, file or model under the new
    key. Masks and seals under its old keys stay open to it, so a server that kept old uploads and works with it reads
    them. Whether a site has to destroy its copies is for a contract, not for mathematics.

    Parameters
    ----------
    federation
        Name of the federation.
    site
        Name of the revoked site.
    revoked
        Fingerprint of its identity.
    version
        First version of the key that the site does not have; earlier ones are refused.
    fingerprint
        Of the key of that version.
    sender
        Site that states it.
    signature
        Of the sender.
    """

    _format: ClassVar = "scinfl-revocation-1"
    _what: ClassVar = "revocation"
    _suffix: ClassVar = "revocation"
    federation: str
    revoked: str
    version: int
    fingerprint: str
    sender: str
    signature: bytes = b""

    def verify(self, pinned: Iterable[PublicIdentity]) -> None:
        """Refuse a statement that its sender did not sign.

        Parameters
        ----------
        pinned
            Identities of the sites that may revoke.

        Raises
        ------
        ValueError
            If the sender is unknown, or did not sign this.
        """
        check_signature(self.sender, pinned, self.signature, self._signed(), "revocation")

    def __repr__(self) -> str:
        return (
            f"Revocation(of '{self.site}' from version {self.version} of '{self.federation}', by '{self.sender}', "
            f"fingerprint='{self.fingerprint}')"
        )

    def _signed(self) -> bytes:
        return joined(
            self._format, self.federation, self.site, self.revoked, self.version, self.fingerprint, self.sender
        )


def revoke(
    key: Key, site: str, identity: Identity, sites: Iterable[PublicIdentity]
) -> tuple[Key, dict[str, WrappedKey], Revocation]:
    """Rotate without one site, and sign a statement of it.

    Parameters
    ----------
    key
        The present key.
    site
        Name of the site that gets no more keys.
    identity
        Identity of the site that revokes.
    sites
        Pinned identities of the sites, the revoked one among them.

    Returns
    -------
    The new key, by site what to send it, and the statement for all.

    Raises
    ------
    ValueError
        If the site is not pinned, or revokes itself.

    Examples
    --------
    >>> import scinfl as si
    >>> a, b, c = (si.privacy.Identity.generate(site) for site in "abc")
    >>> key = si.privacy.Key.generate("lung")
    >>> new, wrapped, statement = si.privacy.revoke(key, "c", a, [b.public, c.public])
    >>> sorted(wrapped), statement.site, statement.version
    (['b'], 'c', 2)
    >>> statement.verify([a.public])
    """
    named = by_name(sites)
    if site == identity.site:
        msg = f"Expected another site than '{site}' to revoke it, found itself: it would know the new key. Ask another."
        raise ValueError(msg)
    if site not in named:
        msg = f"Expected `site` to be one of the pinned sites {sorted(named)}, found {site!r}."
        raise ValueError(msg)
    new, wrapped = rotate(key, identity, [public for name, public in named.items() if name != site])
    statement = Revocation(
        federation=key.federation,
        site=site,
        revoked=named[site].fingerprint,
        version=new.version,
        fingerprint=new.fingerprint,
        sender=identity.site,
    )
    return new, wrapped, replace(statement, signature=identity.sign(statement._signed()))


def read_documents(paths: Iterable[str | os.PathLike[str]]) -> list[WrappedKey | Revocation]:
    """Read what other sites sent, revocations first, since they state which keys are refused."""
    revocations: list[WrappedKey | Revocation] = []
    keys: list[WrappedKey | Revocation] = []
    for path in paths:
        try:
            revocations.append(Revocation.load(path))
        except ValueError:
            keys.append(WrappedKey.load(path))
    return revocations + keys
