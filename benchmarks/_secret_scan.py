"""Search for secrets where they must not be: in files, and in the memory of processes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from scinfl.federation import State
from scinfl.privacy import Key

_BLOCK = 2**24
_OVERLAP = 256


def secret_bytes(key: Key, state: State, coordinates: Sequence[str] = ()) -> dict[str, bytes]:
    """Bytes that only the sites are allowed to hold.

    Parameters
    ----------
    key
        Secret of the sites.
    state
        Parameters of a model.
    coordinates
        Labels of coordinates to look for.

    Returns
    -------
    Bytes by what they are: the key, raw and as its file has it, coordinates, and four parameters in a row of every
    matrix.
    """
    import base64

    found = {"key": key._secret, "key as text": base64.b64encode(key._secret)}
    for label in coordinates:
        values = key.coordinates(label, (4,))
        found[f"coordinates of {label}"] = values.tobytes()
        found[f"coordinates of {label} (float32)"] = values.astype(np.float32).tobytes()
    for name, array in state.items():
        values = np.ravel(array)[:4]
        if array.ndim == 2 and len(values) == 4 and np.ptp(values) > 0:
            found[f"parameters of {name}"] = values.astype(np.float32).tobytes()
            found[f"parameters of {name} (float64)"] = values.astype(np.float64).tobytes()
    return found


def find_in_files(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Which of the secrets are in the files of a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{what} in {path.name}" for what, secret in secrets.items() if secret in content]
    return found


def find_in_memory(pid: int, secrets: Mapping[str, bytes]) -> list[str]:
    """Which of the secrets are in the memory of a process, which should be stopped meanwhile (Linux)."""
    found = set()
    for block in _memory(pid):
        found |= {what for what, secret in secrets.items() if secret in block}
    return [f"{what} in process {pid}" for what in sorted(found)]


def _memory(pid: int) -> Iterator[bytes]:
    # what no process of ours may write is read from files of the system
    regions = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (rw\S+)", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for first, last, _ in regions:
            start, stop = int(first, 16), int(last, 16)
            while start < stop:
                try:
                    memory.seek(start)
                    block = memory.read(min(_BLOCK, stop - start))
                except (OSError, ValueError, OverflowError):
                    break  # a page of the kernel
                if not block:
                    break
                yield block
                start += len(block) if len(block) <= _OVERLAP or start + len(block) >= stop else len(block) - _OVERLAP
