"""Fetch a published file once, keep it whole, and notice when it changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pooch
from tqdm import tqdm

from scinfl import __version__

_CHUNK = 1 << 16  # bytes that a broken connection loses at most
_TIMEOUT = 30  # seconds to connect, and between two pieces
_SERVERS = {
    "dataverse": "https://dataverse.harvard.edu",
    "figshare": "https://api.figshare.com",
    "gdc": "https://api.gdc.cancer.gov",
    "github": "https://raw.githubusercontent.com",
    "zenodo": "https://zenodo.org",
}


def cache_folder() -> Path:
    """Folder of fetched files: ``SCINFL_DATA`` of the environment, else the system's place for caches."""
    chosen = os.environ.get("SCINFL_DATA")
    folder = Path(chosen).expanduser() if chosen else Path(pooch.os_cache("scinfl"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def server(name: str) -> str:
    """Address of a public server; ``SCINFL_DATAVERSE``, ``SCINFL_FIGSHARE``, … of the environment name others."""
    return (os.environ.get(f"SCINFL_{name.upper()}") or _SERVERS[name]).rstrip("/")


def dataverse_url(file_id: int) -> str:
    """Address of a Dataverse file."""
    return f"{server('dataverse')}/api/access/datafile/{file_id}"


def fetch(url: str, name: str, *, known_hash: str | None = None, progress: bool = True) -> Path:
    """Path of a file in the cache; what is not there is downloaded.

    A download that breaks off is kept as ``NAME.part`` and goes on at the next call, where the server can send the
    rest of a file. The name of the file appears when it is complete. Its SHA-256 is written to ``NAME.sha256``, in the
    form that ``sha256sum -c`` reads, and every later call compares the file with it.
    """
    path = cache_folder() / name
    if not path.is_file():
        with one_at_a_time(path.parent):
            if not path.is_file():
                _download(url, path, known_hash, progress=progress)
    verify(path, known_hash)
    return path


def verify(path: Path, known_hash: str | None = None) -> None:
    """Compare a file with its published hash, else with its record; without either, write the record."""
    record = _record(path)
    if known_hash is None and not record.is_file():
        with one_at_a_time(path.parent), suppress(OSError):  # a read-only folder keeps no record
            part = part_of(record)
            part.write_text(f"{pooch.file_hash(str(path))}  {path.name}\n")
            part.replace(record)
        return
    expected = known_hash or record.read_text().partition(" ")[0].strip()
    if (found := _hash_like(expected, path)) != expected:
        cure = "" if known_hash else f" If you replaced it on purpose, delete '{record.name}' beside it instead."
        msg = (
            f"Expected '{path}' to have the hash {expected}, found {found}: it is damaged or another file. "
            f"Delete it and call again.{cure}"
        )
        raise ValueError(msg)


def part_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f"{path.name}.part")


def complete(path: Path) -> None:
    """Give the whole ``NAME.part`` its name; a record of an older file of that name is void."""
    _record(path).unlink(missing_ok=True)
    part_of(path).replace(path)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let other processes wait while this one writes parts, so that two never append to the same one."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _hash_like(expected: str, path: Path) -> str:
    """Hash of a file in the form of another hash."""
    algorithm, colon, _ = expected.rpartition(":")
    return f"{algorithm}{colon}{pooch.file_hash(str(path), alg=algorithm or 'sha256')}"


def _download(url: str, path: Path, known_hash: str | None, *, progress: bool) -> None:
    part = part_of(path)
    resumed = part.is_file()
    _receive(url, path, progress=progress)
    if known_hash is not None and (found := _hash_like(known_hash, part)) != known_hash:
        part.unlink()
        if resumed:  # the older piece may be to blame
            _download(url, path, known_hash, progress=progress)
            return
        msg = (
            f"Expected '{url}' to send '{path.name}' with the hash {known_hash}, found {found}. Nothing was kept. "
            "Try again; if it stays so, the published file has changed or the way to it is not safe."
        )
        raise ValueError(msg)
    complete(path)


def _receive(url: str, path: Path, *, progress: bool) -> None:
    """Write to ``NAME.part`` what it lacks, or all of it."""
    import requests

    part = part_of(path)
    start = part.stat().st_size if part.is_file() else 0
    with _ask(url, path, start) as response:
        offset, total = _extent(response)
        if response.status_code == 416 and total == start:
            return
        if response.status_code == 416 or offset not in (0, start):
            part.unlink()
            _receive(url, path, progress=progress)
            return
        try:
            with (
                part.open("ab" if offset else "wb") as file,
                tqdm(
                    total=total, initial=offset, unit="B", unit_scale=True, desc=path.name, disable=not progress
                ) as bar,
            ):
                for piece in response.iter_content(_CHUNK):
                    bar.update(file.write(piece))
        except requests.RequestException as error:
            raise _broken(url, path, total) from error
    if total is not None and part.stat().st_size != total:
        raise _broken(url, path, total)


def _ask(url: str, path: Path, start: int) -> Any:
    """Response of the server to a request for all bytes from ``start``."""
    import requests

    # the server turns away requests that carry the default agent of `requests`
    headers = {"User-Agent": f"scinfl/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    except (requests.ConnectionError, requests.Timeout) as error:
        reason = "no answer: this machine seems offline, or the server is down"
        raise _unreachable(url, path, reason) from error
    except requests.RequestException as error:
        raise _unreachable(url, path, f"no way to ask it ({error})") from error
    if response.status_code not in ({200, 206, 416} if start else {200}):  # 202 asks for a browser and sends no file
        response.close()
        raise _unreachable(url, path, f"the answer {response.status_code} {response.reason}".rstrip())
    return response


def _extent(response: Any) -> tuple[int, int | None]:
    """First byte that is sent, and the size of the whole file if the server states it."""
    if response.status_code == 200:
        size = response.headers.get("Content-Length")
        return 0, None if size is None else int(size)
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return -1, None
    first, size = found.groups()
    return int(first or -1), None if size == "*" else int(size)


def _broken(url: str, path: Path, total: int | None) -> ConnectionError:
    part = part_of(path)
    found = part.stat().st_size
    if total is not None and found > total:
        part.unlink()
        return _unreachable(url, path, f"{found} bytes instead of {total}, which were deleted")
    of = "" if total is None else f" of {total}"
    return _unreachable(url, path, f"an answer that broke off; {found}{of} bytes are kept and the next call goes on")


def _unreachable(url: str, path: Path, reason: str) -> ConnectionError:
    msg = (
        f"Expected '{url}' to send '{path.name}', found {reason}. Try again later, or fetch the file in another way (a "
        f"browser, another machine), put it at '{path}' and call again. The environment variable SCINFL_DATA names "
        f"another folder for data; {', '.join(f'SCINFL_{name.upper()}' for name in _SERVERS)} other servers."
    )
    return ConnectionError(msg)
