"""Messages through the grid of a run of Flower."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

from flwr.app import Message as FlowerMessage

from scinfl.flower._flwr import PullAppMessagesRequest, client_of
from scinfl.flower.protocol._fetch import fetch
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, message_type, to_records

logger = logging.getLogger(__name__)

_SECONDS_TO_FETCH = 3600.0
_SECONDS_TO_ARRIVE = 0.1
_MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4  # of an answer: the server adds up several


class FlowerTransport:
    """Carries messages through Flower's grid."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._nodes: dict[int, str] = {}
        self._looked = 0.0
        self._coming: set[str] = set()
        self._came: Queue[tuple[str, Message | None]] = Queue()

    def nodes(self) -> Mapping[int, str]:
        """Nodes that are online, with the time when each started."""
        now = time.monotonic()
        if now - self._looked > 0.5:
            found = self._grid.get_nodes()
            self._nodes = {node.node_id: node.last_activated_at for node in found}
            self._looked = now
        return dict(self._nodes)

    def send(self, node: int, message: Message, *, seconds: float) -> str:
        """Send a message."""
        carrier = FlowerMessage(to_records(message), dst_node_id=node, message_type=message_type(message), ttl=seconds)
        (ticket,) = self._grid.push_messages([carrier])
        return str(ticket)

    def receive(self, tickets: Collection[str]) -> Sequence[tuple[str, Message | None]]:
        """Answers that are whole by now; others go on coming in, each by itself, so that a slow site delays nobody."""
        if answers := self._arrived(_SECONDS_TO_ARRIVE if self._coming else 0.0):
            return answers
        client = client_of(self._grid)
        waiting = [ticket for ticket in tickets if ticket not in self._coming]
        found = client.PullMessages(PullAppMessagesRequest(message_ids=waiting)) if waiting else None
        if found is not None:
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                self._coming.add(head.metadata.reply_to_message_id)
                threading.Thread(target=self._fetch, args=(client, head, tree), daemon=True).start()
        return self._arrived(0.0)

    def _arrived(self, seconds: float) -> list[tuple[str, Message | None]]:
        """Answers that are here, or come so soon."""
        answers = []
        with suppress(Empty):
            answers.append(self._came.get(timeout=seconds) if seconds else self._came.get_nowait())
            while True:
                answers.append(self._came.get_nowait())
        self._coming -= {ticket for ticket, _ in answers}
        return answers

    def _fetch(self, client: Any, head: Any, tree: Any) -> None:
        ticket, message = head.metadata.reply_to_message_id, None
        try:
            carrier = fetch(client, self._grid.node, head, tree, seconds=_SECONDS_TO_FETCH, most=_MOST_BYTES)
            message = from_flower(carrier) if carrier.has_content() else None
        except Exception as error:  # noqa: BLE001 (of a site, or the run is over)
            logger.warning("An answer of a site could not be read: %s", error)
        self._came.put((ticket, message))
