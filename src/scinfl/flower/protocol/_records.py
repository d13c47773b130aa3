"""Messages as those of Flower: their bytes, in as few pieces as can be, since each takes calls of its own."""

from __future__ import annotations

from math import inf
from threading import Lock
from typing import Any, cast

from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.app import Message as FlowerMessage

from scinfl.flower._flwr import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    message_from_proto,
    pull_and_inflate_object_from_tree,
    set_message_id,
)
from scinfl.flower.protocol._message import Message

_TYPES = {"step": MessageType.TRAIN}
_BYTES = "bytes"
PIECE = 5_000_000
"""Most bytes of a message in one call."""


class TooLargeError(ValueError):
    """A message is larger than it can need to be."""


def to_records(message: Message) -> RecordDict:
    """Content of a message."""
    content = message.to_bytes()
    starts = range(0, len(content), PIECE)
    return RecordDict({str(n): ConfigRecord({_BYTES: content[at : at + PIECE]}) for n, at in enumerate(starts)})


def from_flower(carrier: FlowerMessage) -> Message:
    """Message that a message of Flower carries.

    Raises
    ------
    ValueError
        If the message holds something else.
    """
    try:
        records = carrier.content.config_records
        content = b"".join(cast("bytes", records[str(n)][_BYTES]) for n in range(len(records)))
    except Exception as error:  # whatever the sender made fail
        msg = f"Expected a message of this federation, found something else ({error}). Install the same scinfl."
        raise ValueError(msg) from error
    return Message.from_bytes(content)


def message_type(message: Message) -> str:
    """Which of Flower's kinds of message carries a message."""
    return _TYPES.get(message.kind, MessageType.QUERY)


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
