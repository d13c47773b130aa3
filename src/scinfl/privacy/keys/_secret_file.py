"""Files that only their owner may read, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scinfl._spelling import spelled

_MOST_BYTES = 1 << 20  # what is larger is data


def write_secret_file(path: str | os.PathLike[str], content: Mapping[str, Any], what: str, *, overwrite: bool) -> None:
    """Write json with mode 0600, in one step; an existing file is kept unless ``overwrite`` is set."""
    path = Path(path)
    if not path.parent.is_dir():
        msg = f"Expected an existing folder for the {what}, found none at '{path.parent}'. Create it first."
        raise FileNotFoundError(msg)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created with mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)  # fails if the path exists, also in a race
    except FileExistsError:
        msg = (
            f"Expected no file at '{path}', found one. A lost {what} cannot be recovered: "
            f"save under another name{spelled(', or pass `overwrite=True`')}."
        )
        raise FileExistsError(msg) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_secret_file(path: str | os.PathLike[str], kind: str, what: str, cure: str) -> dict[str, Any]:
    """Read json of one kind; refuse a file that others than its owner may read or write."""
    path = Path(path)
    if path.is_dir():
        msg = f"Expected a {what} file at '{path}', found a folder. Name the file in it."
        raise IsADirectoryError(msg)
    if not path.is_file():
        msg = f"Expected a {what} file at '{path}', found none. {cure}"
        raise FileNotFoundError(msg)
    content = parse_file(path, kind, what)  # first: no other file needs to be private
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        msg = (
            f"Expected {what} file '{path}' to be readable by its owner only (0600), found {mode:04o}. "
            f"Run `chmod 600 {path}`; if others could read it, make a new {what}."
        )
        raise PermissionError(msg)
    return content


def parse_file(path: Path, kind: str, what: str) -> dict[str, Any]:
    """Content of a json file of one kind."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError  # noqa: TRY301
        content = json.loads(path.read_text())
        if content["format"] != kind:
            raise ValueError  # noqa: TRY301
    except (ValueError, KeyError, TypeError):
        raise ValueError(damaged(path, what)) from None
    return content


def damaged(path: str | os.PathLike[str], what: str) -> str:
    """Message about a file that does not hold what it should."""
    found = "something else or a damaged file"
    return f"Expected a scinfl {what} in '{path}', found {found}. Check the path, or restore it from a copy."
