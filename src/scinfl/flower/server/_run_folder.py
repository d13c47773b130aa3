"""What the server keeps of a run: its name, sealed facts, masked sums, history and audit log."""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scinfl.federation import Journal
from scinfl.federation.rounds import write_atomically
from scinfl.flower.protocol._limits import MOST_MISSED
from scinfl.flower.protocol._message import Message
from scinfl.flower.setup._job import Job

_RUN = "run.json"
_MEMBERS = "members.json"
_HISTORY = "history.csv"
_SUMS = "sums"
_COLUMNS = ["step", "round", "sites", "left_out", "seconds", "bytes"]


class RunFolder:
    """A run on disk. Every file appears whole or not at all, so a server that is killed resumes from the last sum.

    Raises
    ------
    ValueError
        If there is no run to resume, one that should not be overwritten, or one of another job.
    """

    def __init__(self, path: Path, job: Job, *, resume: bool) -> None:
        self.journal = Journal(path)
        self.run = secrets.token_hex(16)
        self.facts: dict[str, str] = {}
        self.checks: dict[str, dict[str, Any]] = {}
        self.agreed = ""
        """Keyed hash of what the sites made of all facts, once enough of them sent the same."""
        self.bounds: dict[str, float] = {}
        """Bounds that sites asked for, by purpose."""
        self.n_sums = 0
        self.founders: set[str] = set()
        """Members of the sums before training, until training begins."""
        self._rounds = {"training": 0, "evaluation": 0}  # latest of each sum
        self.n_starts = 0
        """How often a server took this run up again."""
        self.is_closing = False
        """Whether most sites have the model, so that no further sum is needed."""
        self.path, self._job = path, job
        self._nonces: set[str] = set()
        self._latest: Message | None = None  # which every site asks for, one after the other
        (path / _SUMS).mkdir(exist_ok=True)
        found = (path / _RUN).exists()
        if found != resume:
            msg = (
                f"Expected a run to resume in '{path}', found none. Leave `--resume` out."
                if resume
                else f"Expected no run in '{path}', found one. Go on with it with `--resume`, or move the folder away."
            )
            raise ValueError(msg)
        if resume:
            self._load()
            self.journal.log("resume", run=self.run, step=self.n_sums)
        else:
            self.journal.log("start", run=self.run, job=job.digest, sites=job.sites)

    def _load(self) -> None:
        kept = json.loads((self.path / _RUN).read_text())
        if kept["job"] != self._job.digest:
            msg = f"Expected the job of the run in '{self.path}', found another. Resume with the job as it was."
            raise ValueError(msg)
        self.run, self.facts, self.checks = str(kept["run"]), kept["facts"], kept["checks"]
        self.bounds = {purpose: float(bound) for purpose, bound in kept.get("bounds", {}).items()}
        self.agreed, self.is_closing = str(kept.get("agreed", "")), bool(kept["closing"])
        self.n_starts = int(kept["starts"]) + 1
        for number, file in enumerate(sorted((self.path / _SUMS).glob("step-*.safetensors"))):
            message = Message.read(file)
            if message.fields["step"] != number:
                msg = f"Expected the sum of step {number} in '{self.path}', found none. Restore it from a copy."
                raise ValueError(msg)
            self._count(message)
        self.write()

    def write(self) -> None:
        """Keep what sites agreed on, and the bounds they asked for."""
        content = {
            "run": self.run,
            "job": self._job.digest,
            "facts": self.facts,
            "checks": self.checks,
            "agreed": self.agreed,
            "bounds": self.bounds,
            "closing": self.is_closing,
            "starts": self.n_starts,
        }
        write_atomically(self.path / _RUN, json.dumps(content, indent=1).encode())

    def add_members(self) -> dict[str, list[list[str]]]:
        """Note the sites of this run beside its folder; returns those of earlier runs."""
        file = self.path.parent / _MEMBERS
        earlier = json.loads(file.read_text()) if file.exists() else {}
        write_atomically(file, json.dumps({**earlier, self.run: [sorted(self.facts)]}, indent=1).encode())
        return {run: sets for run, sets in earlier.items() if run != self.run}

    def close(self) -> None:
        """Keep that most sites have the model."""
        if not self.is_closing:
            self.is_closing = True
            self.write()

    def nonces(self) -> set[str]:
        """Nonces of all terms that went into a sum: none of them may come again."""
        return set(self._nonces)

    def sums_from(self, step: int) -> list[Message]:
        """Sums from a step on, from their files, as many as a message should hold; a site asks for the others later."""
        sums: list[Message] = []
        n_bytes = 0
        for number in range(step, self.n_sums):
            n_bytes += self._file(number).stat().st_size
            if sums and n_bytes > MOST_MISSED:
                break
            latest = self._latest if number == self.n_sums - 1 else None
            sums.append(latest or Message.read(self._file(number)))
        return sums

    def add(self, sums: Message) -> None:
        """Keep the sums of a step."""
        sums.write(self._file(self.n_sums))
        self._count(sums)
        self._latest = sums

    def _count(self, sums: Message) -> None:
        self._nonces |= {str(name[1]) for members in sums.fields["members"] for name in members}
        self._rounds |= {own.purpose: own.round for own in sums.updates if own.purpose in self._rounds}
        has_begun = any(self._rounds.values())
        self.founders = set() if has_begun else {str(name[0]) for names in sums.fields["members"] for name in names}
        self.n_sums += 1

    @property
    def n_rounds(self) -> int:
        """Rounds of training that count.

        The metrics of a round travel with the parameters of the next one. So where sites validate, and stop early, the
        server has added the parameters of a round that the sites leave out.
        """
        return self._rounds["evaluation"] or self._rounds["training"]

    def _file(self, step: int) -> Path:
        return self.path / _SUMS / f"step-{step:05d}.safetensors"

    def add_to_history(self, row: Sequence[object]) -> None:
        """Keep one line per round: step, round, sites, which were left out, seconds, bytes."""
        path = self.path / _HISTORY
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if path.exists():
            text.write(path.read_text())
        else:
            writer.writerow(_COLUMNS)
        writer.writerow(row)
        write_atomically(path, text.getvalue().encode())
