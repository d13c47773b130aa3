"""What an operator may ask for while a server runs: who is connected, how far the run is, and what is waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scinfl.federation.rounds import write_atomically
from scinfl.flower._format import in_bytes
from scinfl.flower.server._participant import Participants
from scinfl.flower.server._run_folder import RunFolder
from scinfl.flower.setup._job import Job

STATUS = "status.json"
_SECONDS_BETWEEN = 1.0  # two writings of what changed
_SECONDS_TO_LIVE = 30.0  # a server writes at least so often, also where nothing changes
_BEAT = 10.0
_METRICS = {
    "step": ("gauge", "Sums that were added so far."),
    "round": ("gauge", "Rounds of training that were added so far."),
    "rounds": ("gauge", "Rounds that the job asks for."),
    "received_bytes": ("counter", "Masked terms that sites sent since the server started."),
}


class StatusFile:
    """Writes the state of a server beside its run, when it changes, and as a sign of life.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STATUS
        self._last: Mapping[str, Any] = {}
        self._written = -_BEAT

    def write(self, status: Mapping[str, Any], now: float, *, at_once: bool = False) -> None:
        """Write a state, unless it is as it was a moment ago."""
        waited = now - self._written
        if at_once or waited >= (_SECONDS_BETWEEN if status != self._last else _BEAT):
            self._last, self._written = status, now
            own = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "pid": os.getpid(), **status}
            write_atomically(self._file, json.dumps(own, indent=1).encode())


def status_of(
    kept: RunFolder,
    job: Job,
    expected: Collection[str],
    participants: Participants,
    finished: Collection[str],
    answered: Collection[str],
) -> dict[str, Any]:
    """State of a server: of its run, of each site, and for whom it waits."""
    stages = {str(one.site): one.stage for one in participants.values() if one.site is not None}
    stages |= dict.fromkeys(finished, "finished")
    greeted = participants.sites("greeted", "ready", "finished")
    done = finished if kept.is_closing else answered if kept.facts else greeted
    return {
        "state": "closing" if kept.is_closing else "training" if kept.facts else "waiting",
        "run": kept.run,
        "step": kept.n_sums,
        "round": kept.n_rounds,
        "rounds": job.n_rounds,
        "sites": {s: {"stage": stages.get(s, "absent"), "answered": s in answered} for s in sorted(expected)},
        "waits_for": sorted(set(expected) - set(done)),
    }


def read_status(kit: str | os.PathLike[str]) -> dict[str, Any]:
    """State of the server of a federation, as it wrote it last; works while it runs, and after.

    Parameters
    ----------
    kit
        Folder of the operator.

    Returns
    -------
    ``state`` (``"waiting"``, ``"training"``, ``"closing"``, ``"finished"``, ``"stopped"``; ``"dead"`` where a server
    ended without a word), ``time`` and ``age`` in seconds, ``run``, ``step``, ``round``, ``rounds``,
    ``received_bytes``, ``sites`` (by name: ``stage``, ``answered``) and ``waits_for``.

    Raises
    ------
    FileNotFoundError
        If no server ran in that folder.

    Examples
    --------
    >>> import scinfl as si
    >>> si.flower.read_status("kit/server")  # doctest: +SKIP
    {'state': 'training', 'step': 7, 'round': 6, ...}
    """
    path = Path(kit) / "run" / STATUS
    if not path.is_file():
        msg = f"Expected '{path}', which a server writes, found none. Name the folder that the server was started with."
        raise FileNotFoundError(msg)
    status = json.loads(path.read_text())
    status["age"] = (datetime.now(UTC) - datetime.fromisoformat(status["time"])).total_seconds()
    if status["state"] not in ("finished", "stopped") and status["age"] > _SECONDS_TO_LIVE:
        status["state"] = "dead"
    return dict(status)


def status_as_text(status: Mapping[str, Any]) -> str:
    """State for a terminal."""
    waits, run = ", ".join(status["waits_for"]), status["run"][:12]
    at = f"round {status['round']} of {status['rounds']}, step {status['step']}"
    seen = f"{in_bytes(status['received_bytes'])} received; written {status['age']:.0f} s ago (run {run})"
    lines = [f"{status['state']}: {at}, {seen}"]
    for site, own in status["sites"].items():
        lines.append(f"  {site}: {own['stage']}{', its term of this step is here' * own['answered']}")
    if waits and status["state"] in ("waiting", "training", "closing"):
        lines.append(f"waiting for {waits}")
    if status["state"] == "dead":
        lines.append("the server ended without a word: look at its log, and go on with `--resume`")
    return "\n".join([*lines, *([status["reason"]] if status.get("reason") else [])])


def status_as_metrics(status: Mapping[str, Any]) -> str:
    """State in the text format of Prometheus (version 0.0.4), for example for its collector of text files."""
    lines = []
    for name, (kind, text) in _METRICS.items():
        full = f"scinfl_{name}" + "_total" * (kind == "counter")
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {status[name]}"]
    alive = int(status["state"] in ("waiting", "training", "closing"))
    lines += ["# HELP scinfl_up Whether the server runs.", "# TYPE scinfl_up gauge", f"scinfl_up {alive}"]
    for name, text in (("connected", "Whether a site is connected."), ("answered", "Whether its term is here.")):
        lines += [f"# HELP scinfl_site_{name} {text}", f"# TYPE scinfl_site_{name} gauge"]
        for site, own in status["sites"].items():
            value = own["answered"] if name == "answered" else own["stage"] in ("greeted", "ready", "finished")
            lines.append(f'scinfl_site_{name}{{site="{site}"}} {int(value)}')
    return "\n".join(lines)
