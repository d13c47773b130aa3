"""The steps of a run at one site: what it sends when it is asked, and the sums that come back, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from scinfl.federation import Update
from scinfl.flower.protocol._message import Message, members_of

WITH_ROUNDS = ("training", "evaluation")
"""Purposes of the sums that every round has; others are taken before."""

Sum = tuple[Update, list[Update]]
"""A sum, and what went into it, without arrays."""


class Counterpart(Protocol):
    """The server, as a site sees it: it asks for steps, and is answered."""

    def expect(self, n_bytes: int) -> None:
        """Make ready for a question that brings a sum of so many bytes."""
        ...

    def next(self) -> Message:
        """Wait for what the server asks for next."""
        ...

    def answer(self, message: Message) -> None:
        """Answer it."""
        ...


class Summing(Protocol):
    """Gives the sums of the next step."""

    position: int

    def sums(self, make: Callable[[Mapping[str, Any]], Message], *, n_bytes: int, keep: bool = False) -> list[Sum]:
        """Sums of the next step, which take so many bytes."""
        ...


class RoundHistory:
    """Takes a site from step to step, in the order in which all sites go.

    A site makes its term only if that is still wanted. Where the sum of a step exists already, because the site was
    away or started again, it receives that sum only.

    Parameters
    ----------
    counterpart
        Who asks.
    ready
        Called with the number of steps behind this site, when it needs the server for the first time.
    folder
        Where sums are kept (masked, as they came) that a site must read again after a restart.
    """

    def __init__(self, counterpart: Counterpart, *, ready: Callable[[int], None], folder: Path | None = None) -> None:
        self.position = 0
        self._counterpart, self._ready, self._folder = counterpart, ready, folder
        self._is_ready = False
        self._came: dict[int, Message] = {}
        self._asked: Message | None = None  # still to be answered
        self._unkept: tuple[Path, Message] | None = None  # sum that was not read yet

    def go_to(self, position: int) -> None:
        """Continue at the step that a journal holds."""
        self.position = position

    def sums(self, make: Callable[[Mapping[str, Any]], Message], *, n_bytes: int, keep: bool = False) -> list[Sum]:
        """Sums of the next step, which take so many bytes, those of metrics before those of parameters."""
        self._keep()
        path = self._folder / f"step-{self.position:05d}.safetensors" if keep and self._folder else None
        if path is not None and path.exists():
            message = Message.read(path)
        else:
            self._counterpart.expect(n_bytes)
            while self.position not in self._came:
                self._converse(make)
            message = self._came.pop(self.position)
            self._unkept = None if path is None else (path, message)
        self.position += 1
        pairs = zip(message.updates, message.fields["members"], strict=True)
        found = [(combined, members_of(names, combined)) for combined, names in pairs]
        return sorted(found, key=lambda pair: pair[0].purpose)

    def _keep(self) -> None:
        """Keep the last sum: who comes for the next one could read it."""
        if self._unkept is not None:
            path, message = self._unkept
            path.parent.mkdir(parents=True, exist_ok=True)
            message.write(path)
            self._unkept = None

    def finish(self) -> None:
        """Report to the server that the model is written."""
        self._be_ready()
        self._counterpart.answer(Message("finished", {}))

    def _be_ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._ready(self.position)

    def _converse(self, make: Callable[[Mapping[str, Any]], Message]) -> None:
        """Receive what the server asks, and answer it unless it brings the sum of this step."""
        self._be_ready()
        asked = self._asked = self._asked or self._counterpart.next()
        self._take(asked)
        if self.position in self._came:
            return
        if asked.fields["step"] == self.position:
            answer = make(asked.fields)
            answer = replace(answer, fields={**answer.fields, "position": self.position, "step": self.position})
        else:
            answer = Message("behind", {"position": self.position})
        self._asked = None
        self._counterpart.answer(answer)

    def _take(self, asked: Message) -> None:
        """Keep the sums of a question from the present step on; those of an earlier question were read by now."""
        start = 0
        self._came = {}
        for sums in asked.fields["sums"]:
            updates = asked.updates[start : start + len(sums["members"])]
            start += len(updates)
            if sums["step"] >= self.position:
                self._came[sums["step"]] = Message("sums", sums, updates)
