"""Files that only the key opens."""

from __future__ import annotations

import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from scinfl.privacy.keys._key import Key

_MAGIC = b"scinfl-sealed-1\n"
_N_SALT = 16
_MAX_BYTES = 2**31 - 1


class Seal:
    """Encrypts and authenticates what is written to disk: ChaCha20-Poly1305 (RFC 8439).

    Every file gets a cipher key of its own, derived from the key and 128 fresh random bits. What the file is (its
    labels: model class, round, name …) precedes it in the open and is authenticated with it, so that a sealed file
    that was changed, put in another's place or sealed by another federation does not open.

    Parameters
    ----------
    key
        Secret of the sites.

    Examples
    --------
    >>> import scinfl as si
    >>> seal = si.privacy.Seal(si.privacy.Key.generate())
    >>> closed = seal.seal(b"weights", name="w", round=3)
    >>> seal.unseal(closed, name="w")
    b'weights'
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    def seal(self, content: bytes, **labels: str | int | None) -> bytes:
        """Encrypt content under its labels.

        Parameters
        ----------
        content
            What to encrypt, less than 2 GiB.
        labels
            What the content is; they stay readable.
        """
        if len(content) > _MAX_BYTES - 16:
            msg = f"Expected at most {_MAX_BYTES} bytes to seal, found {len(content)}. Save with `sealed=False`."
            raise ValueError(msg)
        head = json.dumps({**labels, **self._identity()}, sort_keys=True).encode()
        head = _MAGIC + len(head).to_bytes(4, "big") + head
        salt = os.urandom(_N_SALT)
        return head + salt + self._cipher(salt).encrypt(bytes(12), content, head)

    def unseal(self, content: bytes, **expected: str | int | None) -> bytes:
        """Decrypt content that is what was expected.

        Parameters
        ----------
        content
            What :meth:`seal` returned.
        expected
            Labels that must be those of the content.

        Raises
        ------
        ValueError
            If the content is damaged, changed, something else than expected, or sealed with another key.
        """
        start = len(_MAGIC) + 4
        try:
            if not content.startswith(_MAGIC):
                raise ValueError  # noqa: TRY301
            stop = start + int.from_bytes(content[len(_MAGIC) : start], "big")
            labels = json.loads(content[start:stop])
            salt, closed = content[stop : stop + _N_SALT], content[stop + _N_SALT :]
            found = {name: labels.get(name) for name in (*expected, *self._identity())}
        except (ValueError, AttributeError):
            msg = "Expected a sealed file, found something else or a damaged one. Restore it from a copy."
            raise ValueError(msg) from None
        for name, value in {**self._identity(), **expected}.items():
            if found[name] != value:
                msg = (
                    f"Expected a file sealed with {name} {value!r}, found {found[name]!r}. "
                    "Use the key, and the place, that the file was sealed for."
                )
                raise ValueError(msg)
        try:
            return self._cipher(salt).decrypt(bytes(12), closed, content[:stop])
        except InvalidTag:
            msg = "Expected a sealed file as it was written, found a changed or damaged one. Restore it from a copy."
            raise ValueError(msg) from None

    def _identity(self) -> dict[str, str | int]:
        return {
            "federation": self._key.federation,
            "key version": self._key.version,
            "key fingerprint": self._key.fingerprint,
        }

    def _cipher(self, salt: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(self._key.derive("seal", salt.hex()))

    def __repr__(self) -> str:
        return f"Seal(key fingerprint='{self._key.fingerprint}')"
