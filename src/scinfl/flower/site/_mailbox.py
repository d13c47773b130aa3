"""Passes messages of the server to the training of a site, which runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import Queue

from scinfl.flower.protocol._message import Message


class OtherRunError(Exception):
    """The server began another run."""


class EndedError(RuntimeError):
    """The server ended the run."""


class Mailbox:
    """Answers messages as they come; passes those about training on, and waits for the answers of training.

    Parameters
    ----------
    greet
        Answers ``"hello"``: checks of the site for a run.
    """

    def __init__(self, greet: Callable[[Message], Message]) -> None:
        self._greet = greet
        self._lock = threading.Condition()
        self._run: str | None = None
        self._facts: Mapping[str, str] | None = None
        self._ready: Message | None = None
        self._failed: Message | None = None
        self._end: str | None = None
        self._asked: Queue[Message | None] = Queue()
        self._answers: Queue[Message] = Queue()

    # ---- in the thread of the connection

    def handle(self, message: Message) -> Message:
        """Answer one message of the server."""
        if message.kind == "end":
            self._stop(str(message.fields.get("reason", "")))
            return Message("bye", {"message": "the server ended the run"})
        if self._failed is not None:
            return self._failed
        if message.kind == "hello":
            answer = self._greet(message)
            self._begin(str(message.fields["run"]))
            return answer
        if message.kind == "agree":
            return self._agree(message)
        if message.kind == "step":
            self._asked.put(message)
            return self._answers.get()
        return Message("failed", {"message": f"it knows no messages of kind '{message.kind}': install the same scinfl"})

    def _begin(self, run: str) -> None:
        with self._lock:
            if self._run is not None and run != self._run:
                self._facts = self._ready = None
                self._asked.put(None)
            self._run = run

    def _agree(self, message: Message) -> Message:
        with self._lock:
            self._facts = message.fields["facts"]
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._ready is not None or self._failed is not None)
            return self._failed or self._ready  # type: ignore[return-value]

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._end = reason
            self._lock.notify_all()
        self._asked.put(None)

    # ---- in the thread of training

    def wait_for_facts(self) -> tuple[str, Mapping[str, str]]:
        """Run and sealed facts of all sites, once the server sent them."""
        with self._lock:
            while True:
                self._lock.wait_for(lambda: self._facts is not None or self._end is not None, timeout=0.5)
                self._check_end()
                if self._facts is not None and self._run is not None:
                    return self._run, self._facts

    def be_ready(self, message: Message) -> None:
        """Report to the server that training can begin."""
        with self._lock:
            self._ready = message
            self._lock.notify_all()

    def next(self) -> Message:
        """Next question about training."""
        message = self._asked.get()
        if message is None:
            self._check_end()
            raise OtherRunError
        return message

    def answer(self, message: Message) -> None:
        """Answer it."""
        with self._lock:
            if self._ready is not None and "position" in message.fields:
                self._ready = Message("ready", {**self._ready.fields, "position": message.fields["position"]})
        self._answers.put(message)

    def fail(self, message: str) -> None:
        """Report to the server, now and whenever it asks, that this site stopped."""
        with self._lock:
            self._failed = Message("failed", {"message": message})
            self._lock.notify_all()
        self._answers.put(self._failed)

    def _check_end(self) -> None:
        if self._end is not None:
            msg = f"The server ended the run: {self._end}"
            raise EndedError(msg)
