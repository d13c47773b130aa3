"""Take files out of an archive, and name a file that is damaged."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from scinfl._checks import first_of
from scinfl.datasets._download import complete, part_of

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


def unpack(archive: Path, ending: str, path: Path) -> None:
    """Write the one member of a zip archive whose name ends so to a path; the paths inside the archive are not used."""
    part = part_of(path)
    try:
        with readable(archive, "a zip archive", *DAMAGED), zipfile.ZipFile(archive) as file:
            member = only(file.namelist(), ending, archive)
            with file.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    complete(path)


def names_in(source: Path) -> list[str]:
    """Files in a folder, a zip or a tar archive, by their paths inside."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as file:
            names = [member.filename for member in file.infolist() if not member.is_dir()]
    else:
        with readable(source, "a folder, a zip or a tar archive", *DAMAGED), tarfile.open(source) as archive:
            names = [member.name for member in archive.getmembers() if member.isfile()]
    return sorted(name for name in names if not is_shadow(name))


def take(source: Path, names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Where files of :func:`names_in` are; those of an archive are written to a folder, under names of our own."""
    if source.is_dir():
        return {name: source / name for name in names}
    paths = {name: folder / f"{number}.{PurePosixPath(name).name}" for number, name in enumerate(names)}
    with readable(source, "a whole archive", *DAMAGED), ExitStack() as stack:
        if zipfile.is_zipfile(source):
            read: Callable[[str], Any] = stack.enter_context(zipfile.ZipFile(source)).open
        else:
            # a stream of one regular file: paths and links that the archive names are not followed
            read = stack.enter_context(tarfile.open(source)).extractfile
        for name, path in paths.items():
            with read(name) as stream, path.open("wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
    return paths


def existing(path: str | os.PathLike[str], what: str, *, or_folder: bool = False) -> Path:
    """Refuse a path without a file."""
    path = Path(path)
    if not (path.exists() if or_folder else path.is_file()):
        msg = f"Expected {what} at '{path}', found none. Pass another `path`, or none to download the file."
        raise FileNotFoundError(msg)
    return path


def only(names: list[str], ending: str, path: Path) -> str:
    """The one member of an archive whose name ends so."""
    fitting = [name for name in names if name.endswith(ending) and not is_shadow(name)]
    if len(fitting) != 1:
        msg = (
            f"Expected one file '…{ending}' in '{path}', found {len(fitting)} among {first_of(names) or 'no files'}. "
            "Pass the published archive."
        )
        raise ValueError(msg)
    return fitting[0]


def is_shadow(name: str) -> bool:
    """Whether macOS put it beside a file, as ``._NAME``."""
    return PurePosixPath(name).name.startswith("._")


@contextmanager
def readable(path: Path, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Errors name the file that is damaged, and what to do."""
    try:
        yield
    except errors as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk or a lack of rights is no damage
            raise
        msg = (
            f"Expected '{path}' to be {what}, found a damaged file or another kind ({error}). "
            "Delete it and fetch it again."
        )
        raise ValueError(msg) from error
