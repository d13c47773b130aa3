"""The server of a masked sum: it adds what it cannot read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cryptography.exceptions import InvalidSignature

from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.federation import Update
from scinfl.privacy.aggregation._context import BELIEFS
from scinfl.privacy.aggregation._linear_tag import PRIME
from scinfl.privacy.keys._derivation import joined
from scinfl.privacy.keys._identity import PublicIdentity

MASKED = "masked"
"""Name of the array of masked integers in an upload."""


_COMMON = ("bound", "attempt", "context", "exchange")
"""What all uploads of a sum have in common in their headers."""


class Aggregator:
    r"""The server's half of a keyed sum: it adds integers modulo :math:`2^b` and holds no key.

    Parameters
    ----------
    identities
        Public identity of every site. Uploads that their site did not sign are refused.
    """

    def __init__(self, identities: Mapping[str, PublicIdentity]) -> None:
        self._identities = dict(identities)

    def combine(self, encoded: Sequence[Update]) -> Update:
        """Add masked integers and masked tags."""
        if not encoded:
            msg = "Expected at least one upload to add, found none."
            raise ValueError(msg)
        first = encoded[0]
        for update in encoded:
            self.verify(update)
            self._check(update, first)
        total = first.state[MASKED].copy()
        for update in encoded[1:]:
            total += update.state[MASKED]
        header = {name: first.header[name] for name in _COMMON if name in first.header}
        if "tag" in first.header:
            tag = sum(int.from_bytes(update.header["tag"], "big") for update in encoded) % PRIME
            header["tag"] = tag.to_bytes(8, "big")
        return replace(first, site="", state={MASKED: total}, n_obs=0, weight=0.0, metrics={}, header=header)

    def _check(self, update: Update, first: Update) -> None:
        integers, expected = update.state[MASKED], first.state[MASKED]
        if (integers.dtype, integers.shape) != (expected.dtype, expected.shape):
            msg = (
                f"Expected {expected.shape[0]} integers ({expected.dtype}) from every site, found {integers.shape[0]} "
                f"({integers.dtype}) from site '{update.site}'. Train all sites with the same settings."
            )
            raise ValueError(msg)
        if (update.key_version, update.header["bound"]) != (first.key_version, first.header["bound"]):
            msg = (
                f"Expected key version {first.key_version} and one bound from every site, found key version "
                f"{update.key_version} or another bound from site '{update.site}'. Give that site the current key."
            )
            raise ValueError(msg)
        if update.header.keys() != first.header.keys() or update.header.get("exchange") != first.header.get("exchange"):
            msg = (
                f"Expected uploads masked for one another, found one of site '{update.site}' that was not: it comes "
                "from another exchange or another protection. Relay the same advertisements to all sites."
            )
            raise ValueError(msg)
        if odd := [name for name in _COMMON if update.header.get(name) != first.header.get(name)]:
            msg = (
                f"Expected uploads of sites that believe the same, found one of site '{update.site}' of another "
                f"{first_of(odd)}: it differs in {BELIEFS}. Compare job, facts and identities of that site."
            )
            raise ValueError(msg)

    @staticmethod
    def form_of(update: Update) -> tuple[object, ...]:
        """What uploads of one sum have in common: those of one form can be added."""
        integers, header = update.state[MASKED], update.header
        common = tuple(header.get(name, b"").hex() for name in _COMMON)
        return str(integers.dtype), integers.shape, update.key_version, tuple(sorted(header)), common

    def verify(self, update: Update) -> None:
        """Refuse an upload that its site did not sign."""
        try:
            self._identities[update.site].verify(update.header["signature"], signed_content(update))
        except (KeyError, InvalidSignature):
            msg = (
                f"Expected an upload that site '{update.site}' signed, found one that it did not. It was changed "
                "on its way, or comes from somebody else: send it again, or pin the identity of that site."
            )
            raise TamperedSumError(msg) from None


def signed_content(update: Update) -> bytes:
    """What a site signs: where the upload belongs and the hash of what it holds."""
    header = {name: value for name, value in update.header.items() if name != "signature"}
    where = (update.purpose, update.round, update.site, str(update.key_version))
    digest = hashlib.sha256(update.state[MASKED].data).digest()
    return joined("scinfl upload", *where, *(part for item in sorted(header.items()) for part in item), digest)
