"""What the server knows of the sites that are connected, and what carries messages to them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scinfl.flower.protocol._limits import MOST_FACTS, checked_count
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._preflight import SitesDifferError, compare


class Transport(Protocol):
    """Carries messages to the sites and back."""

    def nodes(self) -> Mapping[int, str]:
        """Nodes that are connected, each with what changes when it starts again."""
        ...

    def send(self, node: int, message: Message, *, seconds: float) -> str:
        """Send a message that may be answered for so long; returns a ticket."""
        ...

    def receive(self, tickets: Collection[str]) -> Sequence[tuple[str, Message | None]]:
        """Answers so far; ``None`` for a message that got lost."""
        ...


@dataclass
class Participant:
    """A connected node: which site it is, and what it did."""

    started: str
    site: str | None = None
    stage: str = "new"
    position: int = 0
    hello: dict[str, Any] = field(default_factory=dict)
    is_asked: bool = False
    n_refused: int = 0
    reason: str = ""


class Participants(dict[int, Participant]):
    """Participants by the number of their node."""

    def follow(self, nodes: Mapping[int, str]) -> list[Participant]:
        """Add nodes that appeared or started again, drop and return those that left."""
        gone = []
        for number, participant in list(self.items()):
            if nodes.get(number) != participant.started:
                del self[number]
                gone += [participant] if number not in nodes else []
        for number, started in nodes.items():
            self.setdefault(number, Participant(started))
        return gone

    def make_room(self, participant: Participant, site: str, *, moves: bool) -> None:
        """Refuse a site that another node has; where sites may move, that node is not asked again instead."""
        for other in self.values():
            if other is not participant and other.site == site and other.stage != "refused":
                if not moves:
                    msg = f"site '{site}' is here twice. Stop one of the two"
                    raise ValueError(msg)
                other.stage = "refused"

    def sites(self, *stages: str) -> set[str]:
        """Names of the sites in some stages; ``"None"`` for any whose name is not known yet."""
        return {str(participant.site) for participant in self.values() if participant.stage in stages}


def dismiss(
    transport: Transport, participants: Participants, run: str, error: Exception, poll: float, seconds: float = 15.0
) -> None:
    """Send sites the reason why a run stopped, and give them time to fetch it."""
    tickets = set()
    for number, one in participants.items():
        if one.stage not in ("finished", "refused"):
            reason = error.reason_for(one.site) if isinstance(error, SitesDifferError) else str(error)
            tickets.add(transport.send(number, Message("end", {"run": run, "reason": reason}), seconds=60))
    until = time.monotonic() + seconds
    while tickets and time.monotonic() < until:
        tickets -= {ticket for ticket, _ in transport.receive(tickets)}
        time.sleep(poll)


def checks_of(hello: Mapping[str, Any]) -> dict[str, Any]:
    """What of a greeting is compared, and nothing that cannot be."""
    version, fingerprint = hello["key"]
    checks = {str(name): str(value) for name, value in hello["checks"].items()}
    if len(bytes.fromhex(hello["facts"])) > MOST_FACTS:
        msg = f"Expected facts of at most {MOST_FACTS} bytes, found more: no other site would read them"
        raise ValueError(msg)
    return {"checks": checks, "key": [checked_count("a version of the key", version), str(fingerprint)]}


def refuse_other_job(participant: Participant, hello: Mapping[str, Any], digest: str) -> None:
    """Refuse a site that brings another job than the server, and no other site with it."""
    if checks_of(hello)["checks"].get("job") != digest:
        participant.stage = "refused"
        msg = (
            "its job is another one than that of the server. Send it the present 'job.toml', or start the server with "
            "the job that the sites agreed to; the site shows what differs"
        )
        raise ValueError(msg)


def compare_sites(checks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse sites that differ."""
    compare(
        {site: own["checks"] for site, own in checks.items()},
        {site: (int(own["key"][0]), str(own["key"][1])) for site, own in checks.items()},
    )


def named(participant: Participant) -> str:
    """Name of a participant for a message."""
    return "a site" if participant.site is None else f"site '{participant.site}'"
