"""The secret that the sites share and the server never sees."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from scinfl.privacy.keys._derivation import derive, key_stream
from scinfl.privacy.keys._secret_file import damaged, read_secret_file, write_secret_file

_FORMAT = "scinfl-key-1"
_N_BYTES = 32
_LEAST_VALUES = 16  # random bytes hold fewer different values with a probability of 3e-17, and are text with 2e-14
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Key:
    """A secret of 32 random bytes, shared by the sites of one federation.

    Everything secret is derived from it by HKDF-SHA256 (RFC 5869) under labels bound to the federation, the version of
    the key and a purpose, so that no two uses ever see the same bytes. There is no way to make a key from a seed or a
    password. Its text form shows the fingerprint only; it can be neither pickled nor copied.

    Parameters
    ----------
    secret
        32 bytes from the operating system's generator. Use :meth:`generate`.
    federation
        Name of the federation, public: letters, digits, ``.``, ``_`` and ``-``.
    version
        Version of the key, public: 1, 2, … A rotated key has the next version.

    Examples
    --------
    >>> import scinfl as si
    >>> key = si.privacy.Key.generate()
    >>> len(key.fingerprint)
    32
    >>> key.derive("example") == key.derive("example"), key.derive("example") == key.derive("other")
    (True, False)
    """

    __slots__ = ("_secret", "federation", "fingerprint", "version")

    def __init__(self, secret: bytes, *, federation: str, version: int = 1) -> None:
        if not isinstance(secret, bytes) or len(secret) != _N_BYTES:
            found = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
            msg = f"Expected `secret` to be {_N_BYTES} random bytes, found {found}. Use `Key.generate()`."
            raise ValueError(msg)
        if len(set(secret)) < _LEAST_VALUES or all(32 <= byte < 127 for byte in secret):
            msg = (
                f"Expected `secret` to be {_N_BYTES} random bytes, found a pattern: few different bytes, or text. "
                "Anyone can guess such a key. Use `Key.generate()`."
            )
            raise ValueError(msg)
        if not isinstance(federation, str) or not _IDENTIFIER.fullmatch(federation):
            msg = (
                f"Expected `federation` to be a name of at most 64 letters, digits, '.', '_' or '-', found "
                f"{federation!r}. Choose another name, for example 'lung-consortium'."
            )
            raise ValueError(msg)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            msg = f"Expected `version` to be a whole number from 1, found {version!r}. A new key starts at version 1."
            raise ValueError(msg)
        self._secret = secret
        self.federation = federation
        self.version = version
        self.fingerprint = hmac.new(self.derive("fingerprint"), b"scinfl", hashlib.sha256).hexdigest()[:32]

    @classmethod
    def generate(cls, federation: str | None = None, *, version: int = 1) -> Key:
        """Draw a new key from the operating system's generator.

        Parameters
        ----------
        federation
            Name of the federation; a random one by default.
        version
            Version of the key.
        """
        name = f"federation-{secrets.token_hex(8)}" if federation is None else federation
        return cls(secrets.token_bytes(_N_BYTES), federation=name, version=version)

    def derive(self, purpose: str, *labels: str | int) -> bytes:
        """Derive 32 secret bytes for one purpose.

        HKDF-SHA256 of the secret; the info string holds federation, version, purpose and labels, each behind its
        length, so that no two lists of labels collide.

        Parameters
        ----------
        purpose
            What the bytes are for; different purposes give unrelated bytes.
        labels
            What they belong to, for example the name of a layer.
        """
        return self._derive("scinfl", purpose, *labels)

    def stream(self, purpose: str, *labels: str | int, n_bytes: int) -> bytes:
        """Derive any number of secret bytes for one purpose.

        The ChaCha20 key stream (RFC 8439) of a key that is derived for this stream alone, unrelated to what
        :meth:`derive` gives under the same labels; its nonce can be constant because no derived key is used twice.

        Parameters
        ----------
        purpose
            What the bytes are for.
        labels
            What they belong to.
        n_bytes
            How many bytes.
        """
        return key_stream(self._derive("scinfl stream", purpose, *labels), n_bytes, np.dtype(np.uint8)).tobytes()

    def _derive(self, *labels: str | int) -> bytes:
        head, *tail = labels
        return derive(self._secret, head, self.federation, self.version, *tail)

    def coordinates(self, label: str, shape: tuple[int, ...], names: Sequence[str] | None = None) -> np.ndarray:
        """Secret coordinates: uniform on [−1, 1), reproducible, one stream per label.

        With names every row has a stream of its own, SHAKE256 (FIPS 202) over a key derived for the label and the name
        of the row, so that a gene has the same coordinates in whatever order and company it comes.

        Parameters
        ----------
        label
            What is read at the coordinates, for example ``"encoder.0/inputs"``.
        shape
            Shape of the array.
        names
            Names of the rows (the first axis).

        Returns
        -------
        Array of float64 of 53 random bits each.

        Raises
        ------
        ValueError
            If there is not one name for every row.
        """
        n_values = int(np.prod(shape, dtype=np.int64))
        if names is None:
            content = self.stream("coordinates", label, n_bytes=8 * n_values)
        elif len(names) != shape[0]:
            msg = f"Expected a name for each of {shape[0]} rows, found {len(names)}. Pass the names of the first axis."
            raise ValueError(msg)
        else:
            prefix, n_bytes = self.derive("named coordinates", label), 8 * n_values // max(len(names), 1)
            content = b"".join(hashlib.shake_256(prefix + str(name).encode()).digest(n_bytes) for name in names)
        words = np.frombuffer(content, dtype="<u8")
        return ((words >> np.uint64(11)) * 2.0**-52 - 1.0).reshape(shape)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the key to a file that only its owner may read (mode 0600).

        The file appears whole or not at all.

        Parameters
        ----------
        path
            File to write.
        overwrite
            Replace an existing file. A replaced key is lost, and with it every model that was trained with it.

        Raises
        ------
        FileExistsError
            If there is a file and ``overwrite`` is not set.
        """
        content = {
            "format": _FORMAT,
            "federation": self.federation,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "secret": base64.b64encode(self._secret).decode(),
        }
        write_secret_file(path, content, "key", overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Key:
        """Read a key that :meth:`save` wrote.

        Parameters
        ----------
        path
            File to read.

        Raises
        ------
        PermissionError
            If others than the owner may read or write the file.
        ValueError
            If the file holds no key, or a damaged one.
        """
        content = read_secret_file(path, _FORMAT, "key", f"Make one with `scinfl key new {path}`.")
        try:
            key = cls(
                base64.b64decode(content["secret"], validate=True),
                federation=content["federation"],
                version=content["version"],
            )
        except (ValueError, KeyError, TypeError):
            raise ValueError(damaged(path, "key")) from None
        if not hmac.compare_digest(key.fingerprint, str(content.get("fingerprint"))):
            msg = f"Expected the key in '{path}' to match its fingerprint, it does not. Restore it from a copy."
            raise ValueError(msg)
        return key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret) and (self.federation, self.version) == (
            other.federation,
            other.version,
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Key(fingerprint='{self.fingerprint}')"

    def _refuse(self, *_: Any) -> NoReturn:
        msg = (
            "A `Key` cannot be pickled or copied, because the copy would reach disk or another process. Use `Key.save`."
        )
        raise TypeError(msg)

    __reduce_ex__ = __reduce__ = __copy__ = __deepcopy__ = __getstate__ = _refuse
