"""Sums that the server adds up and cannot read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.federation import Update
from scinfl.privacy.aggregation._aggregator import MASKED
from scinfl.privacy.aggregation._context import BELIEFS, RunContext
from scinfl.privacy.aggregation._linear_tag import PRIME, linear_tag
from scinfl.privacy.aggregation._masked_sum import MaskedSum
from scinfl.privacy.keys._derivation import key_stream
from scinfl.privacy.keys._identity import Identity
from scinfl.privacy.keys._key import Key


@dataclass
class _Round:
    """What the sites of this process remember of one purpose and round."""

    context: bytes = b""
    nonces: dict[str, bytes] = field(default_factory=dict)
    coefficients: np.ndarray | None = None


class KeyedSum(MaskedSum):
    r"""Additively homomorphic stream cipher between sites that share a key (Castelluccia, Mykletun & Tsudik 2005).

    Site :math:`k` turns its contribution into fixed-point integers :math:`q_k` and sends

    .. math::
        q_k + \mathrm{ChaCha20}(\mathrm{HKDF}(\text{key; federation, version, context, purpose, site, nonce}_k))
        \bmod 2^b

    with a fresh 128-bit nonce from the operating system, and the digest of what the site believes of run, step, round,
    bounds and shapes as context. The server adds what it cannot read; the sites derive the same
    streams from the list of (site, nonce), subtract them and read the sum. A repeated or resumed round draws new
    nonces, so no stream is ever used twice, and a lost site is simply not in the list.

    The contribution holds :math:`w_k \theta_k`, :math:`w_k` itself, and :math:`w_k` times every metric, with
    :math:`w_k = n_k / N` and :math:`N` agreed by a keyed sum of its own (:meth:`agree`); the sum is divided by
    :math:`\sum_k w_k`. A number beyond the bound repeats the round with four times the bound: nothing is clipped.

    Each upload carries a linear tag (a secret random projection of the integers modulo :math:`2^{61} - 1`, itself
    masked). The sites refuse a sum whose tag does not fit, that lacks their own contribution, holds a nonce twice, or
    adds fewer than ``min_sites`` sites. What the tag does not detect: a site that sends a false contribution.

    A site that colludes with the server opens every other site's update, because both have all that is needed: the key
    and the uploads. :class:`PairwiseSum` closes that.

    Parameters
    ----------
    key
        Secret of the sites.
    run
        Name of the run, the same at all sites; a random one by default.
    bits
        64, or 32 for half the bytes at an error of about 4e-9 per site (B = 8).
    bound
        Bound on every number, a power of two: 65536 with 64 bits and 8 with 32 bits by default.
    min_sites
        Least number of sites in a sum. A sum of one site shows that site to all others; with two, each can subtract
        its own.
    identities
        Private identities of the sites of this process. By default the sites of an in-process run get one each.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> protection = si.privacy.KeyedSum(si.privacy.Key.generate())
    >>> _ = protection.agree("training", {"a": 10, "b": 20, "c": 10})
    >>> sent = [
    ...     protection.encode(si.federation.Update(site, 1, {"w": np.array([value])}, n_obs=n, weight=n))
    ...     for site, value, n in (("a", 1.0, 10), ("b", 2.0, 20), ("c", 3.0, 10))
    ... ]
    >>> {name: array.dtype for name, array in sent[0].state.items()}  # integers without a name
    {'masked': dtype('uint64')}
    >>> protection.decode(protection.combine(sent), sent).state["w"].round(9)
    array([2.])
    """

    _name: ClassVar[str] = "keyed sum"
    _cure: ClassVar[str] = ", or lower `KeyedSum(min_sites=)`"

    def __init__(
        self,
        key: Key,
        *,
        run: str | None = None,
        bits: Literal[64, 32] = 64,
        bound: float | None = None,
        min_sites: int = 3,
        identities: Mapping[str, Identity] | None = None,
    ) -> None:
        super().__init__(run=run, bits=bits, bound=bound, min_sites=min_sites, least=2, identities=identities)
        self._key = key
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._seen: set[bytes] = set()

    def _hide(self, upload: Update, context: bytes) -> Update:
        """Mask integers and their tag with the key stream of a fresh nonce."""
        memory = self._memory(upload, context)
        integers, nonce = upload.state[MASKED], os.urandom(16)
        tag = linear_tag(integers, self._coefficients(memory, upload, len(integers)))
        stream, tag_mask = self._stream(context, upload, upload.site, nonce, len(integers), integers.dtype)
        integers += stream  # in place: at millions of numbers, fresh memory costs more than the masks
        memory.nonces[upload.site] = nonce
        header = {**upload.header, "nonce": nonce, "tag": ((tag + tag_mask) % PRIME).to_bytes(8, "big")}
        return replace(upload, key_version=self._key.version, header=header)

    def _unmask(self, combined: Update, members: Sequence[Update], context: bytes) -> np.ndarray:
        """Subtract the streams of the members and check the tag."""
        memory = self._memory(combined, context)
        del self._rounds[combined.purpose, combined.round]
        nonces = {member.site: member.header.get("nonce", b"") for member in members}
        if len(nonces) < len(members) or len(set(nonces.values())) < len(members):
            msg = "Expected every site once and every nonce once in a sum, found one twice. Do not trust this server."
            raise TamperedSumError(msg)
        if repeated := [site for site, nonce in nonces.items() if nonce in self._seen]:
            msg = f"Expected fresh nonces, found an old upload of site {first_of(repeated)} again."
            raise TamperedSumError(msg)
        if lost := [site for site, nonce in memory.nonces.items() if nonces.get(site) != nonce]:
            msg = f"Expected a sum that holds the contribution of site {first_of(lost)}, found one without."
            raise TamperedSumError(msg)
        integers = combined.state[MASKED].copy()
        tag = int.from_bytes(combined.header.get("tag", b""), "big")
        for site, nonce in nonces.items():
            stream, tag_mask = self._stream(context, combined, site, nonce, len(integers), integers.dtype)
            integers -= stream
            tag -= tag_mask
        if linear_tag(integers, self._coefficients(memory, combined, len(integers))) != tag % PRIME:
            msg = (
                "Expected the sum of what the sites sent, found another: a term was changed, dropped, repeated or "
                f"invented on its way, or the sites believe different things ({BELIEFS}). Nothing of it was used."
            )
            raise TamperedSumError(msg)
        self._seen.update(nonces.values())
        return integers

    def _memory(self, update: Update, context: bytes) -> _Round:
        """What was sent under a context; what was sent under another one for the same round is void."""
        place = update.purpose, update.round
        if place not in self._rounds or self._rounds[place].context != context:
            self._rounds[place] = _Round(context)
        return self._rounds[place]

    def _stream(
        self, context: bytes, update: Update, site: str, nonce: bytes, n: int, dtype: np.dtype[Any]
    ) -> tuple[np.ndarray, int]:
        """Key stream of one upload, and the mask of its tag."""
        labels = (context.hex(), update.purpose, site, nonce.hex())
        mask = int.from_bytes(self._key.derive("keyed sum tag", *labels), "big") % PRIME
        return self._key_stream("keyed sum", *labels, n=n, dtype=dtype), mask

    def _coefficients(self, memory: _Round, update: Update, n: int) -> np.ndarray:
        """Secret projection of one sum, the same for all sites, so that tags add up."""
        if memory.coefficients is None or len(memory.coefficients) != n:
            labels = (memory.context.hex(), update.purpose)
            words = self._key_stream("keyed sum projection", *labels, n=n, dtype=np.dtype(np.uint64))
            memory.coefficients = words >> np.uint64(3)
        return memory.coefficients

    def _default_context(self) -> RunContext:
        return RunContext(self._key.federation, self._key.version, self._run)

    def _key_stream(self, *labels: str | int, n: int, dtype: np.dtype[Any]) -> np.ndarray:
        """What `Key.stream` gives under these labels, made in place: most of its time goes into fresh memory."""
        return key_stream(self._key._derive("scinfl stream", *labels), n, dtype)

    def _forget(self) -> None:
        self._rounds.clear()


class UnsentSum(KeyedSum):
    """A keyed sum of one site, to list what it would send in a federation; nothing of it may leave."""

    def _check_number(self, n_sites: int, error: type[ValueError]) -> None:
        del n_sites, error
