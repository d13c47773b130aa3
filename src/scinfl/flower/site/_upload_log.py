"""Which terms of a site left it, in each step: what a sum must hold in its name, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


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
    """Keeps uploads in a file that only grows, each before it leaves.

    Parameters
    ----------
    file
        Where to keep them; in memory alone by default.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._uploads: dict[int, Upload] = {}
        for line in file.read_bytes().split(b"\n") if file is not None and file.exists() else []:
            try:
                upload = Upload(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut off by a crash: that upload did not leave
            self._uploads[upload.step] = upload

    def of(self, step: int) -> Upload | None:
        """Latest upload of a step.

        Parameters
        ----------
        step
            Number of the step.
        """
        return self._uploads.get(step)

    def add(self, upload: Upload) -> None:
        """Keep an upload that is about to leave.

        Parameters
        ----------
        upload
            The upload.
        """
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(b"\n" + json.dumps(asdict(upload)).encode())
                file.flush()
                os.fsync(file.fileno())
        self._uploads[upload.step] = upload
