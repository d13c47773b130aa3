"""What a run leaves on disk: the last finished round, and a log that shows later changes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary, finalize

from safetensors import SafetensorError
from safetensors.numpy import load, save

from scinfl._spelling import argument
from scinfl.federation._update import State

_CHECKPOINT = "checkpoint"
_FORMAT = ".safetensors"
_LOG = "audit.jsonl"


class Cipher(Protocol):
    """Encrypts a checkpoint, for example :class:`scinfl.privacy.Seal`."""

    def seal(self, content: bytes, **labels: str | int | None) -> bytes:
        """Encrypt content under labels."""
        ...

    def unseal(self, content: bytes, **expected: str | int | None) -> bytes:
        """Decrypt content that has these labels; ``ValueError`` otherwise."""
        ...


class Journal:
    """Checkpoint and audit log of one run, in a folder.

    The checkpoint is one file, replaced as a whole after every finished round, so that a run killed at any moment
    resumes from its last finished round. The log gains one JSON line an event; each line holds the hash of the line
    before, so that a changed, dropped or inserted line shows in :meth:`verify` (a log cut at its end does not).

    One process at a time writes: the first write locks the folder for as long as the journal is in use. Any may read.

    Parameters
    ----------
    path
        Folder; made when missing.
    cipher
        Encrypts the checkpoint; it stays readable by default. The log holds no parameters and stays readable.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = si.federation.Journal(folder)
    ...     journal.log("round", number=1)
    ...     [event["event"] for event in journal.events()], journal.verify()
    (['round'], True)
    """

    def __init__(self, path: str | os.PathLike[str], cipher: Cipher | None = None) -> None:
        self.path = Path(path)
        self._cipher = cipher
        if self.path.exists() and not self.path.is_dir():
            msg = f"Expected {argument('journal')} to be a folder, found a file at '{self.path}'. Name another path."
            raise NotADirectoryError(msg)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: _FolderLock | None = None

    def save(self, groups: Mapping[str, State], record: Mapping[str, Any], name: str = _CHECKPOINT) -> None:
        """Replace the checkpoint, or another file beside it.

        Parameters
        ----------
        groups
            Arrays by group and name.
        record
            Anything that json can hold.
        name
            Which file.

        Raises
        ------
        RuntimeError
            If another process writes this journal, or its folder cannot be locked.
        """
        self._lock = self._lock or _FolderLock.of(self.path)
        arrays = {f"{group}/{name}": array for group, state in groups.items() for name, array in state.items()}
        names = {group: list(state) for group, state in groups.items()}
        metadata = {"record": json.dumps(record), "groups": json.dumps(names)}
        content = save(arrays, metadata)
        if self._cipher is not None:
            content = self._cipher.seal(content, name=f"{name}{_FORMAT}", round=len(record.get("history", ())))
        write_atomically(self.path / f"{name}{_FORMAT}", content)

    def load(self, name: str = _CHECKPOINT) -> tuple[dict[str, State], dict[str, Any]] | None:
        """Read the checkpoint, or another file; ``None`` where there is none.

        Parameters
        ----------
        name
            Which file.

        Raises
        ------
        ValueError
            If the file is damaged, or sealed with another key.
        """
        path = self.path / f"{name}{_FORMAT}"
        if not path.exists():
            return None
        content = path.read_bytes()
        if self._cipher is not None:
            content = self._cipher.unseal(content, name=path.name)
        elif content.startswith(b"scinfl-sealed"):
            msg = f"Expected a readable checkpoint in '{path}', found a sealed one. Train with the key of that run."
            raise ValueError(msg)
        try:
            arrays = load(content)
            metadata = metadata_of(content)
            groups = {
                group: {name: arrays[f"{group}/{name}"] for name in names}
                for group, names in json.loads(metadata["groups"]).items()
            }
            return groups, json.loads(metadata["record"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            msg = f"Expected a checkpoint in '{path}', found a damaged file ({error}). Name a new folder to restart."
            raise ValueError(msg) from error

    def log(self, event: str, **fields: Any) -> None:
        """Append one event to the audit log; only the process that has the lock of the folder may, see :meth:`save`."""
        self._lock = self._lock or _FolderLock.of(self.path)
        path = self.path / _LOG
        lines = self._lines()
        previous = _digest(lines[-1]) if lines else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "event": event, **fields, "previous": previous})
        whole = sum(len(line) + 1 for line in lines)
        with path.open("ab") as file:
            file.truncate(whole)  # a line that a crash cut short is no record
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """All events of the audit log."""
        return [json.loads(line) for line in self._lines()]

    def verify(self) -> bool:
        """Whether every line of the audit log names the hash of the line before."""
        lines = self._lines()
        expected = ["", *(_digest(line) for line in lines[:-1])]
        try:
            return [json.loads(line)["previous"] for line in lines] == expected[: len(lines)]
        except (ValueError, KeyError):
            return False

    def _lines(self) -> list[bytes]:
        path = self.path / _LOG
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


class _FolderLock:
    """A lock on a folder, held by this process until its last journal there is gone."""

    _held: ClassVar[WeakValueDictionary[Path, _FolderLock]] = WeakValueDictionary()

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY)
        finalize(self, os.close, self._descriptor)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = (
                f"Expected no other process to write the journal in '{folder}', found one at work. Wait for it, or "
                "name another folder: two would lose each other's entries."
            )
            raise RuntimeError(msg) from None
        except OSError as error:
            msg = (
                f"Expected a file system that can lock the journal in '{folder}', found: {error.strerror}. Name a "
                "folder on a local disk."
            )
            raise RuntimeError(msg) from error

    @classmethod
    def of(cls, folder: Path) -> _FolderLock:
        """The lock of a folder, taken once however many journals of this process are there."""
        folder = folder.resolve()
        lock = cls._held.get(folder)
        if lock is None:
            cls._held[folder] = lock = cls(folder)
        return lock


def metadata_of(content: bytes) -> dict[str, str]:
    """Metadata of safetensors in memory: the file starts with the length of a json header."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and survives a power cut.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "state"
    ...     si.federation.rounds.write_atomically(path, b"all or nothing")
    ...     path.read_bytes()
    b'all or nothing'
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with temporary.open("xb") as file:  # with the permissions that the umask leaves
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # its new name, too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
