"""Fetches the content of a message of Flower, piece by piece, through calls that are not Flower's public API."""

from __future__ import annotations

from math import inf
from threading import Lock
from typing import Any

from flwr.app import Message as FlowerMessage

from scinfl.flower._flwr import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    message_from_proto,
    pull_and_inflate_object_from_tree,
    set_message_id,
)
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import to_records


class TooLargeError(ValueError):
    """A message is larger than it can need to be."""


def fetch(client: Any, node: Any, head: Any, tree: Any, *, seconds: float, most: float = inf) -> FlowerMessage:
    """Fetch the content of a message whose head has come; its arrays may still be on their way.

    Flower waits at least a second for an array that is not there yet, and up to two hours.

    Raises
    ------
    TooLargeError
        As soon as there are more than so many bytes.
    """
    run, n_bytes, lock = head.metadata.run_id, 0, Lock()
    pull = make_pull_object_fn_protobuf(client.PullObject, node, run)

    def counted(name: str) -> bytes:
        nonlocal n_bytes
        content = pull(name)
        with lock:
            n_bytes += len(content)
            if n_bytes > most:
                msg = f"Expected a message of at most {most:.0f} bytes, found a larger one. It was not read to the end."
                raise TooLargeError(msg)
        return content

    carrier = pull_and_inflate_object_from_tree(
        tree,
        counted,
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run),
        return_type=FlowerMessage,
        max_time=seconds,
        initial_backoff=0.05,
        backoff_cap=1.0,
    )
    set_message_id(carrier, tree.object_id)
    return carrier


def refusal(head: Any, tree: Any, reason: str) -> FlowerMessage:
    """Answer to a message whose content is not read."""
    carrier = message_from_proto(head)
    set_message_id(carrier, tree.object_id)
    return FlowerMessage(to_records(Message("unread", {"message": reason})), reply_to=carrier)
