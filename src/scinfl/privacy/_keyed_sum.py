"""Sums that the server adds up and cannot read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scinfl._checks import first_of, one_of, whole_number
from scinfl._errors import RepeatRoundError, TamperedSumError
from scinfl.privacy._fixed_point import FixedPoint
from scinfl.privacy._key import Key
from scinfl.privacy._linear_tag import PRIME, linear_tag

_MASKED = "masked"
_TOTALS_BOUND = 2.0**40
_MAX_BOUND = 2.0**40

Layout = tuple[tuple[str, tuple[int, ...], np.dtype], ...]


class BlindServer:
    r"""The server's half of a keyed sum: it adds integers modulo :math:`2^b` and holds no key.

    Parameters
    ----------
    identities
        Public identity key (Ed25519) of every site. Uploads that their site did not sign are refused.
    """

    def __init__(self, identities: Mapping[str, Ed25519PublicKey]) -> None:
        self._identities = dict(identities)

    def combine(self, encoded: Sequence[Any]) -> Any:
        """Add masked integers and masked tags."""
        if not encoded:
            msg = "Expected at least one upload to add, found none."
            raise ValueError(msg)
        first = encoded[0]
        for update in encoded:
            self.verify(update)
            self._check(update, first)
        total = first.state[_MASKED].copy()
        for update in encoded[1:]:
            total += update.state[_MASKED]
        tag = sum(int.from_bytes(update.header["tag"], "big") for update in encoded) % PRIME
        header = {"tag": tag.to_bytes(8, "big"), "bound": first.header["bound"]}
        return replace(first, site="", state={_MASKED: total}, n_obs=0, weight=0.0, metrics={}, header=header)

    def _check(self, update: Any, first: Any) -> None:
        integers, expected = update.state[_MASKED], first.state[_MASKED]
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

    def verify(self, update: Any) -> None:
        """Refuse an upload that its site did not sign."""
        try:
            self._identities[update.site].verify(update.header["signature"], _signed_content(update))
        except (KeyError, InvalidSignature):
            msg = (
                f"Expected an upload that site '{update.site}' signed, found one that it did not. It was changed "
                "on its way, or comes from somebody else: send it again, or pin the identity of that site."
            )
            raise TamperedSumError(msg) from None


@dataclass
class _Round:
    """What the sites of this process remember of one purpose and round."""

    nonces: dict[str, bytes] = field(default_factory=dict)
    coefficients: np.ndarray | None = None


class KeyedSum:
    r"""Additively homomorphic stream cipher between sites that share a key (Castelluccia, Mykletun & Tsudik 2005).

    Site :math:`k` turns its contribution into fixed-point integers :math:`q_k` (see :class:`FixedPoint`) and sends

    .. math::
        q_k + \mathrm{ChaCha20}(\mathrm{HKDF}(\text{key; federation, version, purpose, run, round, site, nonce}_k))
        \bmod 2^b

    with a fresh 128-bit nonce from the operating system. The server adds what it cannot read; the sites derive the same
    streams from the list of (site, nonce), subtract them and read the sum. A repeated or resumed round draws new
    nonces, so no stream is ever used twice, and a lost site is simply not in the list.

    The contribution holds :math:`w_k \theta_k`, :math:`w_k` itself, and :math:`w_k` times every metric, with
    :math:`w_k = n_k / N` and :math:`N` agreed by a keyed sum of its own (:meth:`agree`); the sum is divided by
    :math:`\sum_k w_k`. A number beyond the bound repeats the round with four times the bound: nothing is clipped.

    Each upload carries a linear tag (a secret random projection of the integers modulo :math:`2^{61} - 1`, itself
    masked). The sites refuse a sum whose tag does not fit, that lacks their own contribution, holds a nonce twice, or
    adds fewer than ``min_sites`` sites. What the tag does not detect: a site that lies about its own contribution.

    Parameters
    ----------
    key
        Secret of the sites.
    run
        Name of the run, the same at all sites; a random one by default.
    bits
        64, or 32 for half the bytes at an error of about 4e-9 a site (B = 8).
    bound
        Bound on every number, a power of two: 65536 with 64 bits and 8 with 32 bits by default.
    min_sites
        Least number of sites in a sum. A sum of one site shows that site to all others; with two, each can subtract
        its own.
    identities
        Private identity key (Ed25519) of the sites that this process speaks for. By default the sites of an in-process
        run get one each.
    """

    def __init__(
        self,
        key: Key,
        *,
        run: str | None = None,
        bits: Literal[64, 32] = 64,
        bound: float | None = None,
        min_sites: int = 3,
        identities: Mapping[str, Ed25519PrivateKey] | None = None,
    ) -> None:
        one_of("bits", bits, [64, 32])
        whole_number("min_sites", min_sites, 2)
        if bound is None:
            bound = 65536.0 if bits == 64 else 8.0
        if not 0 < bound <= _MAX_BOUND or not np.log2(bound).is_integer():
            msg = f"Expected `bound` to be a power of two up to 2^40, found {bound}."
            raise ValueError(msg)
        self.min_sites = min_sites
        self._key = key
        self._run = os.urandom(16).hex() if run is None else run
        self._numbers = FixedPoint(bits, float(bound))
        self._widened: dict[str, FixedPoint] = {}  # by purpose: large sums before training leave its precision alone
        self._identities = dict(identities or {})
        self._makes_identities = identities is None
        self._totals: dict[str, float] = {}
        self._layouts: dict[str, tuple[Layout, tuple[str, ...]]] = {}
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._seen: set[bytes] = set()

    # ---- the protection

    def on_step(self, network: Any, batch: Any) -> None:
        """Leave the step to the site."""
        del network, batch

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Sum the weights of all sites by a keyed sum, so that each can send its share.

        Parameters
        ----------
        purpose
            What the weights are for: ``"training"`` or ``"evaluation"``.
        weights
            Weight of every site.
        """
        if len(weights) < self.min_sites:
            msg = (
                f"Expected at least {self.min_sites} sites for a keyed sum, found {len(weights)}: a sum of few shows "
                "them to each other. Let more sites take part, or lower `KeyedSum(min_sites=)`."
            )
            raise ValueError(msg)
        name, numbers = f"total of {purpose}", FixedPoint(64, _TOTALS_BOUND)
        sent = []
        for site, weight in weights.items():
            values = np.array([weight], np.float64)
            template = _Upload(site, 0, name, key_version=self._key.version)
            sent.append(self._mask(template, numbers.encode(values), _TOTALS_BOUND))
        combined = BlindServer(self._public()).combine(sent)
        integers = self._unmask(combined, [replace(upload, state={}) for upload in sent], np.uint64)
        self._totals[purpose] = float(numbers.decode(integers)[0])
        return self._totals[purpose]

    def encode(self, update: Any) -> Any:
        """Mask an update: what it returns may be read by anybody."""
        total = self._totals.get(update.purpose)
        if not total:
            msg = f"Expected the total weight of '{update.purpose}' to be agreed, found none. Call `agree` first."
            raise RuntimeError(msg)
        names = tuple(sorted(update.state))
        metrics = tuple(sorted(update.metrics))
        layout = tuple((name, update.state[name].shape, update.state[name].dtype) for name in names)
        self._layouts[update.purpose] = (layout, metrics)
        weight = update.weight / total
        parts = [np.ravel(update.state[name]) for name in names]
        contents = np.concatenate([*parts, [1.0], [update.metrics[name] for name in metrics]], dtype=np.float64)
        if not np.isfinite(contents).all():
            msg = (
                f"Expected finite parameters and metrics, found NaN or infinity at site '{update.site}'. Lower the "
                "learning rate `lr`, or look for extreme values in that site's data."
            )
            raise ValueError(msg)
        try:
            integers = self._numbers_of(update.purpose).encode(contents, weight)
        except RepeatRoundError as error:
            self._widen(update.purpose, update.site, error)
        return self._mask(update, integers, self._numbers_of(update.purpose).bound)

    def combine(self, encoded: Sequence[Any]) -> Any:
        """Add at the server, which needs no more than the sites' public identities."""
        return BlindServer(self._public()).combine(encoded)

    def decode(self, combined: Any, members: Sequence[Any]) -> Any:
        """Read the sum at a site, once it is known to be the sum of what the sites sent."""
        if len(members) < self.min_sites:
            msg = (
                f"Expected at least {self.min_sites} sites in a keyed sum, found {len(members)}: a sum of few shows "
                "them to each other. Let more sites take part, or lower `KeyedSum(min_sites=)`."
            )
            raise TamperedSumError(msg)
        integers = self._unmask(combined, members, self._numbers.unsigned)
        values = self._numbers_of(combined.purpose).decode(integers)
        layout, metrics = self._layouts[combined.purpose]
        sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape, _ in layout]
        weight = values[sum(sizes)]
        if not weight > 0:
            msg = "Expected a sum with a positive total weight, found 0: every site of the round is empty."
            raise ValueError(msg)
        values /= weight
        state, start = {}, 0
        for (name, shape, dtype), size in zip(layout, sizes, strict=True):
            state[name] = values[start : start + size].reshape(shape).astype(dtype)
            start += size
        measured = dict(zip(metrics, values[start + 1 :].tolist(), strict=True))
        return replace(
            combined, state=state, weight=weight * self._totals[combined.purpose], metrics=measured, header={}
        )

    # ---- masking

    def _mask(self, update: Any, integers: np.ndarray, bound: float) -> Any:
        """Mask integers and their tag, and sign both."""
        memory = self._rounds.setdefault((update.purpose, update.round), _Round())
        nonce = os.urandom(16)
        tag = linear_tag(integers, self._coefficients(memory, update, len(integers)))
        stream, tag_mask = self._stream(update, update.site, nonce, len(integers), integers.dtype)
        header = {
            "nonce": nonce,
            "tag": ((tag + tag_mask) % PRIME).to_bytes(8, "big"),
            "bound": int(np.log2(bound)).to_bytes(1, "big", signed=True),
        }
        masked = replace(update, state={_MASKED: integers + stream}, n_obs=0, weight=0.0, metrics={}, header=header)
        masked = replace(masked, key_version=self._key.version)
        memory.nonces[update.site] = nonce
        signature = self._identity(update.site).sign(_signed_content(masked))
        return replace(masked, header={**header, "signature": signature})

    def _unmask(self, combined: Any, members: Sequence[Any], unsigned: type[np.unsignedinteger]) -> np.ndarray:
        """Subtract the streams of the members and check the tag."""
        memory = self._rounds.pop((combined.purpose, combined.round), _Round())
        nonces = {member.site: member.header["nonce"] for member in members}
        if len(nonces) < len(members) or len(set(nonces.values())) < len(members):
            msg = "Expected every site once and every nonce once in a sum, found one twice. Do not trust this server."
            raise TamperedSumError(msg)
        if repeated := [site for site, nonce in nonces.items() if nonce in self._seen]:
            msg = f"Expected fresh nonces, found an old upload of site {first_of(repeated)} again."
            raise TamperedSumError(msg)
        if lost := [site for site, nonce in memory.nonces.items() if nonces.get(site) != nonce]:
            msg = f"Expected a sum that holds the contribution of site {first_of(lost)}, found one without."
            raise TamperedSumError(msg)
        integers = combined.state[_MASKED].copy()
        tag = int.from_bytes(combined.header["tag"], "big")
        for site, nonce in nonces.items():
            stream, tag_mask = self._stream(combined, site, nonce, len(integers), integers.dtype)
            integers -= stream
            tag -= tag_mask
        if (
            integers.dtype != unsigned
            or linear_tag(integers, self._coefficients(memory, combined, len(integers))) != tag % PRIME
        ):
            msg = (
                "Expected the sum of what the sites sent, found another: a term was changed, dropped, repeated or "
                "invented on its way. Nothing of it was used."
            )
            raise TamperedSumError(msg)
        self._seen.update(nonces.values())
        return integers

    def _stream(self, update: Any, site: str, nonce: bytes, n: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, int]:
        """Key stream of one upload, and the mask of its tag."""
        labels = (update.purpose, self._run, update.round, site, nonce.hex())
        content = self._key.stream("keyed sum", *labels, n_bytes=n * dtype.itemsize)
        mask = int.from_bytes(self._key.derive("keyed sum tag", *labels), "big") % PRIME
        return np.frombuffer(content, dtype.newbyteorder("<")), mask

    def _coefficients(self, memory: _Round, update: Any, n: int) -> np.ndarray:
        """Secret projection of one round, the same for all sites, so that tags add up."""
        if memory.coefficients is None or len(memory.coefficients) != n:
            labels = (update.purpose, self._run, update.round)
            content = self._key.stream("keyed sum projection", *labels, n_bytes=8 * n)
            memory.coefficients = np.frombuffer(content, "<u8") >> np.uint64(3)
        return memory.coefficients

    def _numbers_of(self, purpose: str) -> FixedPoint:
        return self._widened.get(purpose, self._numbers)

    def _widen(self, purpose: str, site: str, error: RepeatRoundError) -> None:
        bound = self._numbers_of(purpose).bound * 4
        if bound > _MAX_BOUND:
            msg = (
                f"Expected numbers up to {_MAX_BOUND:g}, found larger ones at site '{site}': training diverged. Lower "
                "the learning rate `lr`, or look for extreme values in that site's data."
            )
            raise ValueError(msg) from error
        self._widened[purpose] = replace(self._numbers, bound=bound)
        self._rounds.clear()
        msg = f"A number of site '{site}' exceeds the bound: the round is repeated with the bound {bound:g}."
        raise RepeatRoundError(msg) from error

    # ---- identities

    def _identity(self, site: str) -> Ed25519PrivateKey:
        if site not in self._identities:
            if not self._makes_identities:
                msg = f"Expected the identity key of site '{site}', found none. Pass it in `identities`."
                raise KeyError(msg)
            self._identities[site] = Ed25519PrivateKey.generate()
        return self._identities[site]

    def _public(self) -> dict[str, Ed25519PublicKey]:
        return {site: private.public_key() for site, private in self._identities.items()}

    def __repr__(self) -> str:
        return f"KeyedSum(bits={self._numbers.bits}, min_sites={self.min_sites})"

    def __getstate__(self) -> None:
        msg = "A `KeyedSum` cannot be pickled or copied, because it holds the key."
        raise TypeError(msg)


@dataclass(frozen=True)
class _Upload:
    """What a keyed sum needs of an update, for sums that are no round of training."""

    site: str
    round: int
    purpose: str
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    n_obs: int = 0
    weight: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    key_version: int | None = None
    header: Mapping[str, bytes] = field(default_factory=dict)


def _signed_content(update: Any) -> bytes:
    """What a site signs: where the upload belongs and the hash of what it holds."""
    digest = hashlib.sha256(update.state[_MASKED].data).digest()
    parts = (update.purpose, str(update.round), update.site, str(update.key_version))
    header = (update.header["nonce"], update.header["tag"], update.header["bound"])
    return b"".join(len(p).to_bytes(4, "big") + p for p in (*(p.encode() for p in parts), *header, digest))
