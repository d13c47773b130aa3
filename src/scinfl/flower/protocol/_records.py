"""Messages as those of Flower: a ConfigRecord of text and an ArrayRecord of arrays."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from flwr.app import Message as FlowerMessage

from scinfl.flower._flwr import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    pull_and_inflate_object_from_tree,
    set_message_id,
)
from scinfl.flower.protocol._limits import read_array
from scinfl.flower.protocol._message import Message

_TYPES = {"step": MessageType.TRAIN}


def to_records(message: Message) -> RecordDict:
    """Content of a message."""
    text, arrays = message.to_parts()
    return RecordDict(
        {
            "message": ConfigRecord({"text": text}),
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        }
    )


def from_flower(carrier: FlowerMessage) -> Message:
    """Message that a message of Flower carries.

    Raises
    ------
    ValueError
        If the message holds something else.
    """
    try:
        text = carrier.content.config_records["message"]["text"]
        arrays = {name: read_array(array.data) for name, array in carrier.content.array_records["arrays"].items()}
    except Exception as error:  # whatever the sender made fail
        msg = f"Expected a message of this federation, found something else ({error}). Install the same scinfl."
        raise ValueError(msg) from error
    return Message.from_parts(str(text), arrays)


def message_type(message: Message) -> str:
    """Which of Flower's kinds of message carries a message."""
    return _TYPES.get(message.kind, MessageType.QUERY)


def fetch(client: Any, node: Any, head: Any, tree: Any, *, seconds: float) -> FlowerMessage:
    """Fetch the content of a message whose head has come; its arrays may still be on their way.

    Flower waits at least a second for an array that is not there yet, and up to two hours.
    """
    run = head.metadata.run_id
    carrier = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run),
        return_type=FlowerMessage,
        max_time=seconds,
        initial_backoff=0.05,
        backoff_cap=1.0,
    )
    set_message_id(carrier, tree.object_id)
    return carrier
