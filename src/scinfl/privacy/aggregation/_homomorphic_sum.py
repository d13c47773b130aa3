"""Sums under homomorphic encryption, the baseline of keyed sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np

from scinfl._checks import one_of
from scinfl._errors import TamperedSumError
from scinfl._extras import install_line
from scinfl.federation import Update
from scinfl.privacy.aggregation._secure_sum import SecureSum
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._seal import Seal

_DEGREE = 8192
_SLOTS = _DEGREE // 2
_SCALE_BITS = 40
_MOST_BITS = 218  # of all moduli together, for 128 bits of security at this degree (homomorphic encryption standard)
_WEIGHT_UNIT = 2.0**20  # totals of up to 2^38; they are off by about 0.01, which cancels: shares are summed too
_WHAT = "CKKS context"


class HomomorphicServer:
    """The server's half of a homomorphic sum: it adds ciphertexts.

    Parameters
    ----------
    context
        What :meth:`HomomorphicSum.server_context` returned: parameters, at most a public key.
    """

    def __init__(self, context: bytes) -> None:
        self._context = _tenseal().context_from(context, n_threads=1)
        if self._context.has_secret_key():
            msg = (
                "Expected a context without secret key at the server, found one with it. Send it "
                "`HomomorphicSum.server_context()`, and make new keys: this one is no longer secret."
            )
            raise ValueError(msg)

    def combine(self, encoded: Sequence[Update]) -> Update:
        """Add the ciphertexts of all uploads."""
        if not encoded:
            msg = "Expected at least one upload to add, found none."
            raise ValueError(msg)
        first = encoded[0]
        for update in encoded:
            if (update.purpose, update.round) != (first.purpose, first.round) or (
                len(update.state["sizes"]) != len(first.state["sizes"])
            ):
                msg = (
                    f"Expected {len(first.state['sizes'])} ciphertexts of round {first.round} of '{first.purpose}' "
                    f"from every site, found {len(update.state['sizes'])} of round {update.round} of "
                    f"'{update.purpose}' from site '{update.site}'. Train all sites with the same settings."
                )
                raise ValueError(msg)
        sums = _parse(self._context, first)
        for update in encoded[1:]:
            for total, term in zip(sums, _parse(self._context, update), strict=True):
                total += term  # noqa: PLW2901  # adds in place
        return replace(first, site="", state=_serialise(sums), n_obs=0, weight=0.0, metrics={}, header={})


class HomomorphicSum(SecureSum):
    r"""Sum under the CKKS scheme (Cheon, Kim, Kim & Song 2017) of TenSEAL, to compare :class:`KeyedSum` with.

    Sites share a CKKS secret key; the server holds parameters only and adds ciphertexts of 4096 numbers each (:math:`N
    = 8192`). What is protected is what a keyed sum protects, the updates against the server: a site that colludes with
    the server opens all of them too. It costs many times the time and bytes (``benchmarks/aggregation.py``), the sum is
    off by about 1e-8 at weights summing to 1, differs from run to run, and carries no tag: a server that adds something
    else is not noticed. Decoded sums must stay at the sites, because CKKS results reveal the secret key to anyone who
    also sees the ciphertexts (Li & Micciancio 2021).

    TenSEAL cannot derive keys from a :class:`Key`: one site makes them, and the others get them sealed
    (:meth:`sealed_context`, :meth:`from_sealed`).

    Parameters
    ----------
    min_sites
        Least number of sites in a sum.
    modulus_bits
        Bits of the primes of the coefficient modulus, the last of which ciphertexts do not carry. One prime is enough
        to add; ``(60, 40, 40, 60)``, common in tutorials, leaves room for products that a sum has no use for, at 2.5
        times the bytes.
    encryption
        ``"symmetric"``, for sites have the secret key anyway, or ``"asymmetric"`` under the public key, at twice the
        time.

    Raises
    ------
    ImportError
        If TenSEAL is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import scinfl as si
    >>> from scinfl.federation import Update, mean_of
    >>> updates = [Update(site, 1, {"w": np.full(2, w)}, 1) for site, w in [("a", 1.0), ("b", 2.0), ("c", 6.0)]]
    >>> mean_of(updates, [si.privacy.HomomorphicSum()]).state["w"].round(6)
    array([3., 3.])
    """

    _name: ClassVar[str] = "homomorphic sum"
    _cure: ClassVar[str] = ", or lower `HomomorphicSum(min_sites=)`"
    _least_weight: ClassVar[float] = 1e-6

    def __init__(
        self,
        *,
        min_sites: int = 3,
        modulus_bits: Sequence[int] = (60, 60),
        encryption: Literal["symmetric", "asymmetric"] = "symmetric",
    ) -> None:
        super().__init__(min_sites)
        one_of("encryption", encryption, ["symmetric", "asymmetric"])
        self._bits = _checked_bits(modulus_bits)
        tenseal = _tenseal()
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            _DEGREE,
            coeff_mod_bit_sizes=self._bits,
            encryption_type=getattr(tenseal.ENCRYPTION_TYPE, encryption.upper()),
            n_threads=1,
        )
        self._context.global_scale = 2.0**_SCALE_BITS

    # ---- keys

    def server_context(self) -> bytes:
        """What the server needs to add: parameters, at most a public key, no secret."""
        return self._serialised(secret=False)

    def sealed_context(self, key: Key) -> bytes:
        """Parameters and secret key, for the other sites only.

        Parameters
        ----------
        key
            Secret of the sites that seals them.
        """
        return Seal(key).seal(bytes([len(self._bits), *self._bits]) + self._serialised(secret=True), what=_WHAT)

    @classmethod
    def from_sealed(cls, content: bytes, key: Key, *, min_sites: int = 3) -> HomomorphicSum:
        """Take part with the keys that another site made.

        Parameters
        ----------
        content
            What :meth:`sealed_context` returned at that site.
        key
            Secret of the sites.
        min_sites
            Least number of sites in a sum.

        Raises
        ------
        ValueError
            If the content was sealed with another key, or changed on its way.
        """
        opened = Seal(key).unseal(content, what=_WHAT)
        start = 1 + opened[0]
        made = cls(min_sites=min_sites, modulus_bits=tuple(opened[1:start]))
        made._context = _tenseal().context_from(opened[start:], n_threads=1)
        return made

    def _serialised(self, *, secret: bool) -> bytes:
        return self._context.serialize(
            save_public_key=True, save_secret_key=secret, save_galois_keys=False, save_relin_keys=False
        )

    # ---- the protection

    def encode(self, update: Update) -> Update:
        """Encrypt an update: what it returns may be read by anybody."""
        share, contents = self._share(update), self._pack(update)
        bound = 2.0 ** (sum(self._bits[:-1]) - _SCALE_BITS - 2)  # a sum of shares of such numbers fits the modulus
        if not max(-contents.min(), contents.max()) <= bound:
            msg = (
                f"Expected numbers up to {bound:g} for a homomorphic sum, found larger ones at site '{update.site}'. "
                "Scale the data, or raise `HomomorphicSum(modulus_bits=)`, for example to (60, 40, 60)."
            )
            raise ValueError(msg)
        return self._encrypted(update, contents * share)

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Decrypt the sum at a site."""
        self._check_members(len({member.site for member in members}))
        return self._unpack(combined, self._decrypted(combined))

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers, about: ciphertexts are compressed as they come out.

        Parameters
        ----------
        n_values
            How many numbers.
        """
        return -(-n_values // _SLOTS) * self._chunk_bytes

    @cached_property
    def _chunk_bytes(self) -> int:
        upload = self._encrypted(Update("", 0, {}, n_obs=0), np.ones(1))
        return sum(array.nbytes for array in upload.state.values())

    @cached_property
    def _server(self) -> HomomorphicServer:
        """Made once: its context takes longer than a short sum."""
        return HomomorphicServer(self.server_context())

    def _add(self, encoded: Sequence[Update]) -> Update:
        return self._server.combine(encoded)

    def _hide_weight(self, upload: Update, weight: np.ndarray) -> Update:
        return self._encrypted(upload, weight / _WEIGHT_UNIT)

    def _read_weights(self, combined: Update, members: Sequence[Update]) -> np.ndarray:
        del members
        return self._decrypted(combined) * _WEIGHT_UNIT

    def _encrypted(self, update: Update, values: np.ndarray) -> Update:
        encrypt = _tenseal().ckks_vector
        chunks = [encrypt(self._context, values[start : start + _SLOTS]) for start in range(0, len(values), _SLOTS)]
        return replace(update, state=_serialise(chunks), n_obs=0, weight=0.0, metrics={})

    def _decrypted(self, combined: Update) -> np.ndarray:
        return np.concatenate([np.array(chunk.decrypt()) for chunk in _parse(self._context, combined)])

    def __repr__(self) -> str:
        return f"HomomorphicSum(min_sites={self.min_sites}, modulus_bits={tuple(self._bits)})"

    def __getstate__(self) -> None:
        msg = "A `HomomorphicSum` cannot be pickled or copied, because it holds a secret key. Use `sealed_context`."
        raise TypeError(msg)


def _checked_bits(modulus_bits: Sequence[int]) -> list[int]:
    bits = list(modulus_bits)
    if len(bits) < 2 or not all(20 <= b <= 60 for b in bits) or bits[0] < _SCALE_BITS + 8 or sum(bits) > _MOST_BITS:
        msg = (
            f"Expected `modulus_bits` to be two or more numbers from 20 to 60, the first from {_SCALE_BITS + 8}, that "
            f"sum to at most {_MOST_BITS}, found {bits}. Use (60, 60)."
        )
        raise ValueError(msg)
    return bits


def _serialise(chunks: Sequence[Any]) -> dict[str, np.ndarray]:
    contents = [chunk.serialize() for chunk in chunks]
    sizes = np.array([len(content) for content in contents], np.int64)
    return {"ciphertexts": np.frombuffer(b"".join(contents), np.uint8), "sizes": sizes}


def _parse(context: Any, update: Update) -> list[Any]:
    parse, content = _tenseal().ckks_vector_from, update.state["ciphertexts"].tobytes()
    stops = np.cumsum(update.state["sizes"]).tolist()
    try:
        return [parse(context, content[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]
    except (ValueError, RuntimeError):
        whose = f"site '{update.site}'" if update.site else "the server"
        msg = f"Expected ciphertexts from {whose}, found a damaged one or one of other parameters. Send them again."
        raise TamperedSumError(msg) from None


def _tenseal() -> ModuleType:
    try:
        import tenseal
    except ImportError as error:
        msg = f"Homomorphic sums need TenSEAL. Install it with `{install_line('he')}`."
        raise ImportError(msg) from error
    return tenseal
