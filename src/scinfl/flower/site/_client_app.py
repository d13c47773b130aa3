"""Flower's app of a site: every message of the server goes to the mailbox, and nothing else is run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, to_records

logger = logging.getLogger(__name__)


class Handler(Protocol):
    """Answers messages of the server."""

    def handle(self, message: Message) -> Message:
        """Answer one message."""
        ...


def client_app(mailbox: Handler, *, stop: Callable[[], None]) -> ClientApp:
    """App that answers with what the mailbox answers."""
    app = ClientApp()

    def answer(carrier: FlowerMessage, context: Context) -> FlowerMessage:
        del context
        try:
            reply = mailbox.handle(from_flower(carrier))
        except ValueError as error:
            logger.warning("A message of the server could not be read: %s", error)
            reply = Message("unread", {"message": str(error)[:500]})
        if reply.kind in ("finished", "failed", "bye"):
            stop()
        return FlowerMessage(to_records(reply), reply_to=carrier)

    app.train()(answer)
    app.query()(answer)
    return app
