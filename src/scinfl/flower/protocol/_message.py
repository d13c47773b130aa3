"""What server and sites write to each other, as text and arrays."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from scinfl.federation import Update
from scinfl.federation.rounds import metadata_of, write_atomically
from scinfl.flower._format import readable
from scinfl.flower.protocol._limits import (
    MOST_ATTEMPTS,
    check_updates,
    checked_count,
    checked_name,
    own_array,
    read_json,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """One message of the federation: a kind, fields that json can hold, and updates.

    Parameters
    ----------
    kind
        What it is: ``"hello"``, ``"agree"``, ``"step"``, ``"end"``, or an answer to one of them.
    fields
        Its content.
    updates
        Masked updates of a site, or sums of the server.

    Examples
    --------
    >>> message = Message("step", {"step": 3})
    >>> Message.from_parts(*message.to_parts()) == message
    True
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    updates: tuple[Update, ...] = ()

    def to_parts(self) -> tuple[str, dict[str, np.ndarray]]:
        """Text and arrays; nothing else is ever sent, so nothing needs to be unpickled."""
        heads: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for number, update in enumerate(self.updates):
            heads.append(
                {
                    "site": update.site,
                    "round": update.round,
                    "purpose": update.purpose,
                    "key_version": update.key_version,
                    "header": {name: value.hex() for name, value in update.header.items()},
                    "arrays": list(update.state),
                }
            )
            arrays |= {f"{number}/{name}": array for name, array in update.state.items()}
        return json.dumps({"kind": self.kind, "fields": self.fields, "updates": heads}), arrays

    @classmethod
    def from_parts(cls, text: str, arrays: Mapping[str, np.ndarray]) -> Message:
        """Read what :meth:`to_parts` gave.

        Raises
        ------
        ValueError
            If it is something else, or exceeds a limit.
        """
        try:
            content = read_json(text)
            check_updates(content["updates"])
            updates = tuple(
                Update(
                    site=str(head["site"]),
                    round=checked_count("a round", head["round"]),
                    state={str(name): own_array(arrays[f"{number}/{name}"]) for name in head["arrays"]},
                    n_obs=0,
                    weight=0.0,
                    key_version=_version(head["key_version"]),
                    purpose=str(head["purpose"]),
                    header={str(name): bytes.fromhex(value) for name, value in head["header"].items()},
                )
                for number, head in enumerate(content["updates"])
            )
            return cls(str(content["kind"]), dict(content["fields"]), updates)
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
            msg = f"Expected a message of this federation, found something else ({error}). Install the same scinfl."
            raise ValueError(msg) from error

    def to_bytes(self) -> bytes:
        """The parts in one, as safetensors."""
        text, arrays = self.to_parts()
        return save_tensors(arrays, {"message": text})

    @classmethod
    def from_bytes(cls, content: bytes) -> Message:
        """Read what :meth:`to_bytes` gave.

        Raises
        ------
        ValueError
            If it is something else, or exceeds a limit.
        """
        try:
            arrays = load_tensors(content)  # checks the header, too
            text = metadata_of(content)["message"]
        except (SafetensorError, KeyError) as error:
            msg = f"Expected a message of this federation, found something else ({error}). Install the same scinfl."
            raise ValueError(msg) from error
        return cls.from_parts(text, arrays)

    def write(self, path: Path) -> None:
        """Write to a file that appears whole or not at all."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def read(cls, path: Path) -> Message:
        """Read what :meth:`write` wrote."""
        try:
            return cls.from_bytes(path.read_bytes())
        except ValueError as error:
            msg = f"Expected a stored sum in '{path}', found a damaged file ({error}). Restore it from a copy."
            raise ValueError(msg) from error


def sums_message(step: int, sums: Sequence[tuple[Update, Sequence[tuple[str, ...]]]]) -> Message:
    """Sums of one step, each with the sites, nonces and exchanges of what went into it."""
    members = [list(map(list, own)) for _, own in sums]
    return Message("sums", {"step": step, "members": members}, tuple(combined for combined, _ in sums))


HELLO_FIRST = Message("hello first")
"""Answer of a site that does not know the run: it is greeted again."""


def unread(reason: str) -> Message:
    """Answer to a message that makes no sense."""
    reason = readable(reason)
    logger.warning("A message of the server was refused: %s", reason)
    return Message("unread", {"message": reason})


def asked_run(message: Message) -> str:
    """Name of the run that a message of the server is about, once it is known to be one that a site can be asked.

    Raises
    ------
    ValueError
        If it is another.
    """
    if message.kind not in ("hello", "agree", "step"):
        msg = f"it knows no messages of kind '{message.kind[:20]}': install the same scinfl"
        raise ValueError(msg)
    run = checked_name("the name of a run", message.fields.get("run"))
    if message.kind == "step":
        check_step(message)
    return run


def check_step(message: Message) -> None:
    """Refuse a question about a step whose numbers or sums make no sense, before training sees it.

    Raises
    ------
    ValueError
        If it is none.
    """
    step = checked_count("a step", message.fields.get("step"))
    checked_count("an attempt", message.fields.get("attempt", 0), MOST_ATTEMPTS)
    n_updates = 0
    for head in message.fields["sums"]:
        checked_count("the step of a sum", head["step"], step)
        n_updates += len(head["members"])
        for names in head["members"]:
            for name, *header in names:
                checked_name("the name of a site", name)
                _ = [bytes.fromhex(value) for value in header]
    if n_updates != len(message.updates):
        msg = f"Expected {n_updates} sums, found {len(message.updates)}. Nothing of them was used."
        raise ValueError(msg)


def members_of(names: Sequence[Sequence[str]], combined: Update) -> list[Update]:
    """Members of a sum, as a protection decodes with them."""
    members = []
    for site, *header in names:
        known = zip(("nonce", "exchange"), header, strict=False)
        own = {name: bytes.fromhex(value) for name, value in known if value}
        members.append(Update(str(site), combined.round, {}, 0, purpose=combined.purpose, header=own))
    return members


def _version(value: object) -> int | None:
    return None if value is None else checked_count("a version of the key", value)
