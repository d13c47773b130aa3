"""Documents that one site signs and the others check, over any channel."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature

from scinfl._checks import first_of
from scinfl.privacy.keys._identity import PublicIdentity
from scinfl.privacy.keys._secret_file import damaged, parse_file, write_secret_file


def by_name(sites: Iterable[PublicIdentity]) -> dict[str, PublicIdentity]:
    """Identities by the names of their sites, each of which must have one identity."""
    named: dict[str, PublicIdentity] = {}
    for public in sites:
        if named.setdefault(public.site, public) != public:
            msg = f"Expected one identity per site, found two of site '{public.site}'. Pin the present one alone."
            raise ValueError(msg)
    return named


def check_signature(site: str, pinned: Iterable[PublicIdentity], signature: bytes, content: bytes, what: str) -> None:
    """Refuse what a pinned site did not sign."""
    known = by_name(pinned)
    if site not in known:
        msg = (
            f"Expected a {what} from one of the pinned sites ({first_of(sorted(known))}), found one from site "
            f"'{site}'. Compare its fingerprint over another channel and pin it, or refuse the {what}."
        )
        raise ValueError(msg)
    try:
        known[site].verify(signature, content)
    except InvalidSignature as error:
        raise ValueError(str(error)) from None


def as_file_name(site: str) -> str:
    """Name of a site with nothing in it that a file name must not have; different sites have different ones."""
    name = quote(site, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


@dataclass(frozen=True)
class SignedDocument:
    """Fields that one site signs and the others check; a subclass names its format and what it is."""

    _format: ClassVar[str]
    _what: ClassVar[str]
    _suffix: ClassVar[str]
    site: str
    """Site that it is for or about."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a json file (mode 0600), whole or not at all.

        Parameters
        ----------
        path
            File to write.
        overwrite
            Replace an existing file.
        """
        written = {name: _WRITERS.get(type(value), lambda value: value)(value) for name, value in vars(self).items()}
        write_secret_file(path, {"format": self._format, **written}, self._what, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote. It is signed or closed, so others may be able to read the file.

        Parameters
        ----------
        path
            File to read.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If the file holds something else, or a damaged document.
        """
        path = Path(path)
        if not path.is_file():
            msg = f"Expected a {cls._what} at '{path}', found none. Check the path, or ask its sender."
            raise FileNotFoundError(msg)
        content = parse_file(path, cls._format, cls._what)
        try:
            return cls(**{field.name: _READERS[field.type](content[field.name]) for field in fields(cls)})  # type: ignore[index]
        except (ValueError, KeyError, TypeError):
            raise ValueError(damaged(path, cls._what)) from None

    @property
    def file_name(self) -> str:
        """Name of a file for it."""
        return f"{as_file_name(self.site)}.{self._suffix}.json"


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_WRITERS: Mapping[type, Callable[[Any], Any]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    PublicIdentity: PublicIdentity.to_text,
}
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "bytes": _from_base64,
    "PublicIdentity": PublicIdentity.from_text,
}
"""By the type of a field."""
