"""Messages through Flower's grid, by its public methods alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flwr.app import Message as FlowerMessage

from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, message_type, to_records

logger = logging.getLogger(__name__)

_SECONDS_TO_LIVE = 900.0  # at least: a SuperNode starts a process for each message, which imports, reads and sets up
_SECONDS_BETWEEN_LOOKS = 1.0


class GridTransport:
    """Carries messages through a grid of any kind: of a SuperLink, or of a simulation.

    A site that starts again may be another node to Flower; its state is in its folder, so nothing else changes.

    Parameters
    ----------
    grid
        Grid of the run.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._nodes: dict[int, str] = {}
        self._looked = -_SECONDS_BETWEEN_LOOKS
        self._lost: set[str] = set()

    def nodes(self) -> Mapping[int, str]:
        """Nodes that are online."""
        now = time.monotonic()
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._nodes, self._looked = {int(number): "" for number in self._grid.get_node_ids()}, now
        return dict(self._nodes)

    def send(self, node: int, message: Message, *, seconds: float) -> str:
        """Send a message."""
        ttl = max(seconds, _SECONDS_TO_LIVE)
        carrier = FlowerMessage(to_records(message), dst_node_id=node, message_type=message_type(message), ttl=ttl)
        (ticket,) = list(self._grid.push_messages([carrier])) or [None]
        if ticket is None:  # the node has just left
            ticket = f"lost {id(carrier)}"
            self._lost.add(ticket)
        return str(ticket)

    def receive(self, tickets: Collection[str]) -> Sequence[tuple[str, Message | None]]:
        """Answers so far; Flower waits for one that is on its way until all of it is there."""
        lost, self._lost = self._lost, set()
        found: list[tuple[str, Message | None]] = [(ticket, None) for ticket in lost]
        if waiting := [ticket for ticket in tickets if ticket not in lost]:
            found += [(own.metadata.reply_to_message_id, _read(own)) for own in self._grid.pull_messages(waiting)]
        return found


def _read(carrier: FlowerMessage) -> Message | None:
    if not carrier.has_content():
        logger.warning("A message got lost: %s", carrier.error.reason if carrier.has_error() else "no reason was given")
        return None
    try:
        return from_flower(carrier)
    except ValueError as error:
        logger.warning("An answer of a site could not be read: %s", error)
        return None
