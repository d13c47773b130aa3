"""One message at a time: a site whose process ends with each answer, and whose state is its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scinfl.federation.rounds import write_atomically
from scinfl.flower.protocol._message import Message

_FOR_A_STEP = ("step", "advertise", "reveal")


class AnsweredError(Exception):
    """Training gave its answer, and would now wait for the next message."""


class OneMessage:
    """Gives one message to training, and stops it where it needs another one.

    Parameters
    ----------
    message
        What the server asks: to be ready, or for a step.
    """

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message
        self.reply: Message | None = None

    def be_ready(self, ready: Message) -> None:
        """Note that training can begin, which is the answer to a server that asks for that."""
        if self._message is not None and self._message.kind == "agree":
            self._message, self.reply = None, ready
            raise AnsweredError

    def expect(self, n_bytes: int) -> None:
        """Nothing to do: Flower has read the message by now, however large it is."""

    def next(self) -> Message:
        """The message, once."""
        if self._message is None:
            raise AnsweredError
        message, self._message = self._message, None
        return message

    def answer(self, message: Message) -> None:
        """Keep the answer."""
        self.reply = message


class KeptFacts:
    """Sealed facts of the sites of a run, as the server sent them first: later ones change nothing.

    Parameters
    ----------
    file
        Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, message: Message) -> dict[str, bytes] | None:
        """Facts to train with; ``None`` where the server asks for a step of a run that this site was not shown.

        Raises
        ------
        ValueError
            If the message holds none.
        """
        if self._file.exists():
            return _read(json.loads(self._file.read_text()))
        return _read(message.fields["facts"]) if message.kind == "agree" else None

    def keep(self, facts: Mapping[str, bytes]) -> None:
        """Keep the first ones, in the folder of a run that was agreed to."""
        if self._file.parent.is_dir() and not self._file.exists():
            write_atomically(self._file, json.dumps({site: own.hex() for site, own in facts.items()}).encode())


class LastAnswer:
    """The last answer, for the same question once more: it may have got lost, and masks hide one term.

    Parameters
    ----------
    file
        Where it is kept, masked as it leaves.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def to(self, message: Message) -> Message | None:
        """The answer to this very question, if it is the last one."""
        if not self._file.exists():
            return None
        kept = Message.read(self._file)
        return replace(kept, fields=kept.fields["answer"]) if kept.fields["question"] == _digest(message) else None

    def keep(self, message: Message, answer: Message) -> Message:
        """Keep an answer before it leaves, if it brings something for a step."""
        if answer.kind in _FOR_A_STEP:
            replace(answer, fields={"question": _digest(message), "answer": answer.fields}).write(self._file)
        return answer


def _digest(message: Message) -> str:
    return hashlib.sha256(json.dumps([message.kind, message.fields], sort_keys=True).encode()).hexdigest()


def _read(facts: Mapping[str, str]) -> dict[str, bytes]:
    return {str(site): bytes.fromhex(own) for site, own in facts.items()}
