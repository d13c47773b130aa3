"""The keys of one site, version by version, and the one that all sites agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from scinfl._checks import first_of
from scinfl.privacy.keys._agreement import Offer, agree_version
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._revocation import Revocation, revoke
from scinfl.privacy.keys._rotation import WrappedKey, rotate
from scinfl.privacy.keys._signed_document import by_name


class KeyRing:
    """Keys and revocations of one site, in a folder of its own.

    Every ``*.key`` file of the folder is a version of the key, so a ring starts with one that :meth:`Key.save` or
    ``scinfl key new`` wrote. Any pinned site may rotate and revoke; who is entitled to is for the sites to settle, and
    every statement names its sender. Pin sites alone, never the server: anyone pinned can send keys.

    There is no escrow, on purpose: no copy of a key is left with anybody but the sites. Old versions stay in the
    folder, to open and rekey old models; after a revocation they are refused for everything new. For what a revoked
    site keeps see :class:`Revocation`.

    Parameters
    ----------
    path
        Folder that exists.
    identity
        Identity of this site.
    pinned
        Identities of the other sites, compared over another channel.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the keys in it belong to several federations.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> a, b = si.privacy.Identity.generate("a"), si.privacy.Identity.generate("b")
    >>> key = si.privacy.Key.generate("lung")
    >>> rings = []
    >>> for own, other in ((a, b), (b, a)):
    ...     folder = tempfile.mkdtemp()
    ...     key.save(f"{folder}/first.key")
    ...     rings.append(si.privacy.KeyRing(folder, own, [other.public]))
    >>> wrapped = rings[0].rotate()
    >>> rings[1].accept(wrapped["b"])
    >>> rings[0].agree({"b": rings[1].offer()}).version
    2
    """

    def __init__(self, path: str | os.PathLike[str], identity: Identity, pinned: Iterable[PublicIdentity]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            msg = (
                f"Expected the folder of a key ring at '{self.path}', found none. Make it with `mkdir -m 700`, and a "
                "first key in it with `scinfl key new`."
            )
            raise FileNotFoundError(msg)
        self._identity = identity
        self._pinned = by_name([identity.public, *pinned])
        self._keys = [Key.load(file) for file in sorted(self.path.glob("*.key"))]
        self._revocations = [Revocation.load(file) for file in sorted(self.path.glob("revocation-*.json"))]
        federations = sorted({key.federation for key in self._keys} | {entry.federation for entry in self._revocations})
        if len(federations) > 1:
            msg = f"Expected the keys of one federation in '{self.path}', found {federations}. Use a folder for each."
            raise ValueError(msg)

    # ---- what it holds

    @property
    def versions(self) -> list[int]:
        """Versions that may be used, in order."""
        return sorted(self.offer())

    @property
    def current(self) -> Key:
        """The newest key that may be used."""
        if not self.versions:
            least = max((entry.version for entry in self._revocations), default=1)
            msg = (
                f"Expected a key from version {least} in '{self.path}', found none. Open the one that was wrapped for "
                f"site '{self._identity.site}' with `scinfl key unwrap`."
            )
            raise ValueError(msg)
        return self.key(self.versions[-1])

    def key(self, version: int, *, revoked: bool = False) -> Key:
        """Key of one version.

        Parameters
        ----------
        version
            Version.
        revoked
            Give out an old key that is refused otherwise, to open and rekey old models.

        Raises
        ------
        ValueError
            If the version is not there, or refused.
        """
        found = [key for key in self._keys if key.version == version and (revoked or self._is_usable(key))]
        if found:
            return found[-1]
        if any(key.version == version for key in self._keys):
            msg = (
                f"Expected a version from {self.versions or 'a later key'}, found version {version}, which was revoked "
                f"with site {first_of(sorted(self.revoked))}. Take the current one; to open and rekey old models pass "
                "`revoked=True`."
            )
        else:
            msg = f"Expected a version from {self.versions}, found {version}. Ask a site that has it to wrap it."
        raise ValueError(msg)

    @property
    def revoked(self) -> dict[str, int]:
        """First version without each revoked site, by name."""
        return {entry.site: entry.version for entry in self._revocations}

    # ---- rotation

    def rotate(self) -> dict[str, WrappedKey]:
        """Draw the next version and keep it; returns what to send to each other site."""
        new, wrapped = rotate(self.current, self._identity, self._members())
        self._keep(new)
        return wrapped

    def revoke(self, site: str) -> tuple[dict[str, WrappedKey], Revocation]:
        """Draw the next version without a site; returns what to send to each other site, and the statement for all.

        Parameters
        ----------
        site
            Name of the site that gets no more keys.
        """
        new, wrapped, statement = revoke(self.current, site, self._identity, self._members())
        self._keep(new)
        self._keep_statement(statement)
        return wrapped, statement

    def wrap(self, site: str) -> WrappedKey:
        """Wrap the current key for a site that joins, or that lost its own.

        Parameters
        ----------
        site
            Name of the site.
        """
        members = by_name(self._members())
        if site not in members:
            msg = f"Expected `site` to be one of the pinned sites {sorted(members)}, found {site!r}. Pin it first."
            raise ValueError(msg)
        return WrappedKey.of(self.current, self._identity, members[site])

    def accept(self, document: WrappedKey | Revocation) -> None:
        """Take in what another site sent.

        Parameters
        ----------
        document
            A wrapped key for this site, which must be later than those it holds, or a revocation.

        Raises
        ------
        ValueError
            If it is not from a pinned site, from a revoked one, of another federation, older, or changed on its way.
        """
        if self._is_revoked(document.sender):
            msg = (
                f"Expected a sender that is not revoked, found site '{document.sender}', which was, in version "
                f"{self.revoked[document.sender]}. Do not use what it sent."
            )
            raise ValueError(msg)
        if self._keys and document.federation != self._keys[0].federation:
            msg = (
                f"Expected a document of federation '{self._keys[0].federation}', found one of "
                f"'{document.federation}'. Use the ring of that federation."
            )
            raise ValueError(msg)
        if isinstance(document, Revocation):
            document.verify(self._pinned.values())
            self._keep_statement(document)
            return
        usable = [key for key in self._keys if self._is_usable(key)]
        held = max(usable, key=lambda key: key.version, default=None)
        key = document.open(self._identity, self._pinned.values(), held=held)
        if not self._is_usable(key):
            msg = (
                f"Expected a key that no revocation refuses, found version {key.version}, which the one of site "
                f"{first_of(sorted(self.revoked))} does. Ask its sender for the key that goes with it."
            )
            raise ValueError(msg)
        self._keep(key)

    # ---- negotiation

    def offer(self) -> dict[int, str]:
        """Fingerprint of every version that may be used: public, to be sent to the other sites before a run."""
        return {key.version: key.fingerprint for key in self._keys if self._is_usable(key)}

    def agree(self, offers: Mapping[str, Offer]) -> Key:
        """The key that this site and others use: the newest that all of them hold.

        Parameters
        ----------
        offers
            What the other sites hold, by name, see :meth:`offer`.

        Raises
        ------
        ValueError
            If a site is revoked or not pinned, holds another key of the same version, or no version is common.
        """
        for site in offers:
            if self._is_revoked(site):
                msg = (
                    f"Expected sites that are not revoked, found '{site}', which was, in version "
                    f"{self.revoked[site]}. Leave it out."
                )
                raise ValueError(msg)
            if site not in self._pinned:
                msg = (
                    f"Expected offers of pinned sites ({first_of(sorted(self._pinned))}), found one of '{site}'. Pin "
                    "it, or leave it out."
                )
                raise ValueError(msg)
        return self.key(agree_version({**offers, self._identity.site: self.offer()}))

    # ---- what is refused, and the folder

    def _members(self) -> list[PublicIdentity]:
        return [public for name, public in self._pinned.items() if not self._is_revoked(name)]

    def _is_revoked(self, site: str) -> bool:
        """Whether the identity that is pinned was revoked; a site that comes back needs another one."""
        public = self._pinned.get(site)
        return public is not None and public.fingerprint in {entry.revoked for entry in self._revocations}

    def _is_usable(self, key: Key) -> bool:
        return all(
            key.version > entry.version or (key.version == entry.version and key.fingerprint == entry.fingerprint)
            for entry in self._revocations
        )

    def _keep(self, key: Key) -> None:
        key.save(self.path / f"version-{key.version:04d}-{key.fingerprint[:8]}.key")
        self._keys.append(key)

    def _keep_statement(self, statement: Revocation) -> None:
        name = f"revocation-{statement.version:04d}-{statement.revoked[:8]}.json"
        statement.save(self.path / name)
        self._revocations.append(statement)

    def __repr__(self) -> str:
        return f"KeyRing(site='{self._identity.site}', versions={self.versions}, revoked={sorted(self.revoked)})"
