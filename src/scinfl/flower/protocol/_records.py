"""Messages as those of Flower: their bytes, in as few pieces as can be, since each takes calls of its own."""

from __future__ import annotations

from typing import cast

from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.app import Message as FlowerMessage

from scinfl.flower.protocol._message import Message

_TYPES = {"step": MessageType.TRAIN}
_BYTES = "bytes"
PIECE = 5_000_000
"""Most bytes of a message in one call."""


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
