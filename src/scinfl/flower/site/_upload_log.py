"""Which terms of a site left it, and which sums it read: what later sums must fit to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scinfl.privacy.aggregation import digest_of


@dataclass(frozen=True)
class Upload:
    """The latest upload of a step; all of it is public.

    Parameters
    ----------
    step, attempt
        Number of the step in the run, and of the attempt at it.
    bounds
        Logarithm of the bound, by purpose.
    nonces, exchanges
        What the masks of each term were made with, as text, by purpose.
    """

    step: int
    attempt: int
    bounds: Mapping[str, int]
    nonces: Mapping[str, str]
    exchanges: Mapping[str, str]


class UploadLog:
    """Keeps uploads in a file that only grows, each before it leaves, and a hash of the sums that were read.

    Parameters
    ----------
    file
        Where to keep them; in memory alone by default.
    mark
        File in another folder that holds how many lines there were after each step: an old copy has fewer.

    Raises
    ------
    ValueError
        If there are fewer lines than there were.
    """

    def __init__(self, file: Path | None = None, mark: Path | None = None) -> None:
        self._file, self._mark, self._n = file, mark, 0
        self._uploads: dict[int, Upload] = {}
        self._history: dict[int, bytes] = {}  # of all sums before a step
        for line in file.read_bytes().split(b"\n") if file is not None and file.exists() else []:
            try:
                content = json.loads(line)
                if "history" in content:
                    self._history[content["step"]] = bytes.fromhex(content["history"])
                else:
                    upload = Upload(**content)
                    self._uploads[upload.step] = upload
            except (ValueError, TypeError, KeyError):
                continue  # cut off by a crash: that upload did not leave
            self._n += 1
        marks = mark.read_bytes().split() if mark is not None and mark.exists() else []
        if self._n < (n := max((int(own) for own in marks if own.isdigit()), default=0)):
            msg = (
                f"Expected {n} lines of what this site sent and read in '{file}', found {self._n}: an old copy was put "
                "back. A server could ask for a sum that was read before again, without a site. Restore the latest "
                "copy, or let the operator start a new run."
            )
            raise ValueError(msg)

    def of(self, step: int) -> Upload | None:
        """Latest upload of a step."""
        return self._uploads.get(step)

    def add(self, upload: Upload) -> None:
        """Keep an upload that is about to leave."""
        self._write(asdict(upload))
        self._uploads[upload.step] = upload

    def history(self, step: int) -> bytes:
        """Hash of all sums before a step; empty before the first.

        Parameters
        ----------
        step
            Number of the step.
        """
        return self._history.get(step, b"")

    def close(self, step: int, sums: Sequence[str | bytes]) -> None:
        """Add the sums of a step to the history.

        Parameters
        ----------
        step
            Number of the step.
        sums
            What distinguishes them from others: members, nonces, tags.
        """
        history = digest_of([self.history(step), *sums])
        self._write({"step": step + 1, "history": history.hex()})
        self._history[step + 1] = history
        if self._mark is not None:
            with self._mark.open("ab") as file:
                file.write(b"%d\n" % self._n)

    def _write(self, content: Mapping[str, Any]) -> None:
        self._n += 1
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(b"\n" + json.dumps(content).encode())
                file.flush()
                os.fsync(file.fileno())
