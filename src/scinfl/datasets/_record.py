"""Files of a record at Zenodo or figshare, as its public interface lists them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scinfl.datasets._archive import readable
from scinfl.datasets._download import fetch, server


@dataclass(frozen=True)
class PublishedFile:
    """One file of a record."""

    name: str
    url: str
    checksum: str | None  # as the record states it, ``"md5:…"``


@dataclass(frozen=True)
class Record:
    """A record and its files."""

    name: str  # in the cache
    page: str  # for a browser
    files: tuple[PublishedFile, ...]

    def fetch(self, file: PublishedFile, *, progress: bool) -> Path:
        """Path of one of its files in the cache; see :func:`scinfl.datasets._download.fetch`."""
        return fetch(file.url, f"{self.name}_{file.name}", known_hash=file.checksum, progress=progress)


def zenodo(number: int) -> Record:
    """Files of a record at Zenodo (https://developers.zenodo.org, records)."""

    def files(document: dict[str, Any]) -> list[PublishedFile]:
        return [
            PublishedFile(_plain(file["key"]), file["links"]["self"], file.get("checksum"))
            for file in document["files"]
        ]

    url, page = f"{server('zenodo')}/api/records/{number}", f"https://zenodo.org/records/{number}"
    return _record(f"zenodo_{number}", url, page, files)


def figshare(number: int) -> Record:
    """Files of an article at figshare (https://docs.figshare.com, public articles)."""

    def files(document: dict[str, Any]) -> list[PublishedFile]:
        found = []
        for file in document["files"]:
            digest = file.get("computed_md5") or file.get("supplied_md5")
            found.append(PublishedFile(_plain(file["name"]), file["download_url"], digest and f"md5:{digest}"))
        return found

    url, page = f"{server('figshare')}/v2/articles/{number}", f"https://doi.org/10.6084/m9.figshare.{number}"
    return _record(f"figshare_{number}", url, page, files)


def _record(name: str, url: str, page: str, read: Callable[[dict[str, Any]], list[PublishedFile]]) -> Record:
    """The list is fetched once, so that what is in the cache is found without a network."""
    try:
        path = fetch(url, f"{name}.json", progress=False)
    except ConnectionError as error:
        msg = (
            f"Expected '{url}' to list the files of {page}, found no list. Try again later, or fetch the files in "
            "another way (a browser, another machine) and pass their `path`."
        )
        raise ConnectionError(msg) from error
    with readable(path, f"the list of files of {page}", ValueError, KeyError, TypeError, AttributeError):
        files = read(json.loads(path.read_text(encoding="utf-8")))
    return Record(name, page, tuple(files))


def _plain(name: str) -> str:
    """The last part of a path that a server names: a file in the cache is never written elsewhere."""
    return PurePosixPath(name.replace("\\", "/")).name
