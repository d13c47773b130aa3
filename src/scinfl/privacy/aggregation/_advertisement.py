"""What a site sends to the others before a pairwise sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from scinfl._errors import TamperedSumError
from scinfl.privacy.keys._derivation import joined
from scinfl.privacy.keys._identity import PublicIdentity

_ANY = X25519PrivateKey.from_private_bytes(bytes(32))  # a weak public key makes no secret with any private key


@dataclass(frozen=True)
class Advertisement:
    """What a site announces before a round: a fresh public key, signed for this attempt at this round alone.

    Parameters
    ----------
    site
        Name of the site.
    purpose, run, step, round, attempt
        What the key is for; the run is the digest of what the site believes of it (:class:`RunContext`).
    fingerprint
        Fingerprint of the shared key that the site also masks with; empty without.
    public
        Ephemeral X25519 public key, 32 bytes.
    signature
        Of all this, by the identity of the site.
    """

    site: str
    purpose: str
    run: str
    step: int
    round: int
    attempt: int
    fingerprint: str
    public: bytes
    signature: bytes = b""

    def content(self) -> bytes:
        """What is signed."""
        where = (self.site, self.purpose, self.run, self.step, self.round, self.attempt, self.fingerprint)
        return joined("scinfl advertisement", *where, self.public)

    def to_json(self) -> dict[str, Any]:
        """As json can hold it."""
        return {**vars(self), "public": self.public.hex(), "signature": self.signature.hex()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            names, numbers = ("site", "purpose", "run", "fingerprint"), ("step", "round", "attempt")
            fields: dict[str, Any] = {name: str(content[name]) for name in names}
            fields |= {name: int(content[name]) for name in numbers}
            fields |= {name: bytes.fromhex(content[name]) for name in ("public", "signature")}
            return cls(**fields)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            msg = f"Expected an advertisement of pairwise masks, found something else ({error}). Send it again."
            raise ValueError(msg) from error

    def verify(self, pinned: Mapping[str, PublicIdentity], at: str) -> None:
        """Refuse an advertisement that the pinned identity of its site did not sign, or whose key makes no secret."""
        if self.site not in pinned:
            msg = (
                f"Expected the pinned identity of site '{self.site}', found none at site '{at}'. Get "
                "its public identity, compare fingerprints by telephone and pin it: `PairwiseSum(pinned=)`."
            )
            raise ValueError(msg)
        try:
            pinned[self.site].verify(self.signature, self.content())
        except InvalidSignature:
            msg = (
                f"Expected an advertisement that site '{self.site}' signed, found one that it did not: somebody "
                "between the sites sends in its name (the shared key is not enough to sign as that site), or it "
                "has a new identity. Compare fingerprints by telephone before you go on."
            )
            raise TamperedSumError(msg) from None
        try:
            _ANY.exchange(X25519PublicKey.from_public_bytes(self.public))
        except ValueError:
            msg = f"Expected a proper public key of site '{self.site}', found a weak one. Do not trust that site."
            raise TamperedSumError(msg) from None

    def compare(self, own: Advertisement) -> None:
        """Refuse an advertisement of another sum, attempt or key than one's own."""
        if self.fingerprint != own.fingerprint:
            msg = (
                f"Expected site '{self.site}' to mask with the shared key of fingerprint {own.fingerprint or 'none'}, "
                f"found {self.fingerprint or 'none'}. Give all sites the same version of the key."
            )
            raise ValueError(msg)
        where = ("purpose", "run", "step", "round", "attempt")
        if odd := [name for name in where if getattr(self, name) != getattr(own, name)]:
            found = ", ".join(f"{name} {getattr(self, name)!r} instead of {getattr(own, name)!r}" for name in odd)
            msg = (
                f"Expected a fresh advertisement of site '{self.site}' for this attempt, found one of {found}: an old "
                "one was sent again, the sites are not at the same step, or they believe different things of the run "
                "(its name, job, facts, key version or identities). Advertise again at all sites."
            )
            raise TamperedSumError(msg)
