"""Documents that one site signs and the others check, over any channel."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature

from scinfl._checks import first_of
from scinfl.privacy.keys._identity import PublicIdentity
from scinfl.privacy.keys._secret_file import parse_file, write_secret_file


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


def write_document(
    path: str | os.PathLike[str], kind: str, fields: Mapping[str, Any], what: str, *, overwrite: bool
) -> None:
    """Write json of one kind (mode 0600): bytes as base64, identities as text, anything else as it is."""
    content = {"format": kind}
    for name, value in fields.items():
        content[name] = value
        if isinstance(value, bytes):
            content[name] = base64.b64encode(value).decode()
        elif isinstance(value, PublicIdentity):
            content[name] = value.to_text()
    write_secret_file(path, content, what, overwrite=overwrite)


def read_document(path: str | os.PathLike[str], kind: str, what: str) -> Mapping[str, Any]:
    """Read json of one kind; what is signed or closed may be readable by others."""
    path = Path(path)
    if not path.is_file():
        msg = f"Expected a {what} at '{path}', found none. Check the path, or ask its sender."
        raise FileNotFoundError(msg)
    return parse_file(path, kind, what)


def as_file_name(site: str) -> str:
    """Name of a site with nothing in it that a file name must not have; different sites have different ones."""
    name = quote(site, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name
