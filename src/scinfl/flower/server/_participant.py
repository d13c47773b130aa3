"""What the server knows of the nodes that are there, and who carries messages to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._preflight import compare


class Transport(Protocol):
    """Carries messages to the sites and back."""

    def nodes(self) -> Mapping[int, str]:
        """Nodes that are there, each with what changes when it starts anew."""
        ...

    def send(self, node: int, message: Message, *, seconds: float) -> str:
        """Send a message that may be answered for so long; returns a ticket."""
        ...

    def receive(self, tickets: Collection[str]) -> Sequence[tuple[str, Message | None]]:
        """Answers so far; ``None`` for a message that got lost."""
        ...


@dataclass
class Participant:
    """A node: which site it is, and what it did.

    Parameters
    ----------
    started
        Changes when the node starts anew.
    site
        Name of the site, once it proved it.
    stage
        ``"new"``, ``"greeted"``, ``"ready"``, ``"finished"`` or ``"refused"``.
    position
        RoundHistory whose sums it has applied.
    hello
        What it greeted with.
    is_asked
        Whether an answer is due.
    n_refused
        Answers that were refused.
    reason
        Why the node is refused, until it was told.
    """

    started: str
    site: str | None = None
    stage: str = "new"
    position: int = 0
    hello: dict[str, Any] = field(default_factory=dict)
    is_asked: bool = False
    n_refused: int = 0
    reason: str = ""


def checks_of(hello: Mapping[str, Any]) -> dict[str, Any]:
    """What of a greeting is compared."""
    return {"checks": hello["checks"], "key": hello["key"]}


def compare_sites(checks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse sites that differ."""
    compare(
        {site: own["checks"] for site, own in checks.items()},
        {site: (int(own["key"][0]), str(own["key"][1])) for site, own in checks.items()},
    )


def named(node: Participant) -> str:
    """Name of a node for a message."""
    return "a site" if node.site is None else f"site '{node.site}'"
