"""Letters as messages of Flower: a ConfigRecord of text and an ArrayRecord of arrays."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree

from scinfl.flower._letter import Letter

_TYPES = {"step": MessageType.TRAIN}


def to_records(letter: Letter) -> RecordDict:
    """Content of a message."""
    text, arrays = letter.to_parts()
    return RecordDict(
        {
            "letter": ConfigRecord({"text": text}),
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        }
    )


def from_message(message: Message) -> Letter:
    """Letter of a message.

    Raises
    ------
    ValueError
        If the message holds something else.
    """
    try:
        text = message.content.config_records["letter"]["text"]
        arrays = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
    except (KeyError, ValueError, TypeError) as error:
        msg = f"Expected a message of this federation, found something else ({error}). Install the same scinfl."
        raise ValueError(msg) from error
    return Letter.from_parts(str(text), arrays)


def message_type(letter: Letter) -> str:
    """Which of Flower's kinds of message carries a letter."""
    return _TYPES.get(letter.kind, MessageType.QUERY)


def fetch(client: Any, node: Any, head: Any, tree: Any, *, seconds: float) -> Message:
    """Fetch the content of a message whose head has come; its arrays may still be on their way.

    Flower waits at least a second for an array that is not there yet, and up to two hours.
    """
    run = head.metadata.run_id
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run),
        return_type=Message,
        max_time=seconds,
        initial_backoff=0.05,
        backoff_cap=1.0,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
