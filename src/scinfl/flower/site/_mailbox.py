"""Passes messages of the server to the training of a site, which runs in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from scinfl.flower._format import readable
from scinfl.flower.protocol._limits import MOST_MISSED
from scinfl.flower.protocol._message import HELLO_FIRST, Message, asked_run, unread

logger = logging.getLogger(__name__)

_PATIENCE = 15.0  # seconds after which a question is answered with "busy"; shorter than any message lives
_BUSY = Message("busy")


class OtherRunError(Exception):
    """The server began another run."""


class EndedError(RuntimeError):
    """The server ended the run."""


class Mailbox:
    """Answers every message of the server within a bound, whatever comes first.

    Training is a computation that is suspended wherever it needs the server: it holds one question at a time, and takes
    the next one only after it has answered that. The side of the connection waits for an answer only so long, and
    reports that the site is busy; the same question then gets the answer as soon as it is there.

    Parameters
    ----------
    greet
        Answers ``"hello"``: checks of the site for a run.
    patience
        Seconds to wait for training.
    room
        Bytes that any message may need, with the facts of all sites.
    """

    def __init__(
        self, greet: Callable[[Message], Message], *, patience: float = _PATIENCE, room: int = MOST_MISSED
    ) -> None:
        self._greet, self._patience, self._room, self._n_bytes = greet, patience, room, 0
        self._lock = threading.Condition()
        self._run: str | None = None  # that the server asks for
        self._greeting = self._trained = 0  # how often the run changed, now and when training began
        self._facts: Mapping[str, bytes] | None = None
        self._ready: Message | None = None
        self._failed: Message | None = None
        self._end: str | None = None
        self._finished: Message | None = None
        self._is_delivered = False
        self._asked: Message | None = None
        self._is_taken = False
        self._answer: Message | None = None  # to what was asked last

    # ---- in the thread of the connection

    @property
    def room(self) -> int:
        """Most bytes that a message may have: what all may need, sums that were missed, and the next sum."""
        return self._room + 2 * MOST_MISSED + 2 * self._n_bytes

    def handle(self, message: Message) -> Message:
        """Answer one message of the server; what makes no sense is refused with a reason, and changes nothing."""
        if message.kind == "end":
            self._stop(readable(message.fields.get("reason", "")))
            return Message("bye", {"message": "the server ended the run"})
        if self._failed is not None:
            return self._failed
        try:
            run = asked_run(message)
        except Exception as error:  # noqa: BLE001 (whatever the server made fail)
            return unread(str(error))
        try:
            return {"hello": self._hello, "agree": self._agree, "step": self._step}[message.kind](run, message)
        except OSError:
            raise  # of our own files
        except Exception as error:
            logger.debug("A message of kind '%s' could not be used.", message.kind, exc_info=True)
            return unread(f"it cannot use a message of kind '{message.kind}' ({type(error).__name__})")

    def _hello(self, run: str, message: Message) -> Message:
        answer = self._greet(message)
        with self._lock:
            if run != self._run:
                self._facts = self._ready = self._asked = self._answer = self._finished = None
                self._is_taken = False
                self._greeting += 1  # and not the name: the server may come back to a run before training looks up
            self._run = run
            self._lock.notify_all()
        return answer

    def _agree(self, run: str, message: Message) -> Message:
        facts = {str(site): bytes.fromhex(own) for site, own in message.fields["facts"].items()}
        with self._lock:
            if run != self._run:
                return HELLO_FIRST
            self._facts = facts if self._facts is None else self._facts
            self._lock.notify_all()
            return self._first(lambda: self._ready, self._patience)

    def _step(self, run: str, message: Message) -> Message:
        until = time.monotonic() + self._patience
        with self._lock:
            if run != self._run or self._ready is None:
                return HELLO_FIRST
            if self._asked is None or self._asked.fields != message.fields:
                self._lock.wait_for(lambda: self._is_free() or self._has_ended(), self._patience)
                if not self._is_free():
                    return self._failed or _BUSY
                self._asked, self._is_taken, self._answer = message, False, None
                self._lock.notify_all()
            answer = self._first(lambda: self._finished or self._answer, max(0.0, until - time.monotonic()))
            self._is_delivered = answer is self._finished
            self._lock.notify_all()
            return answer

    def _is_free(self) -> bool:
        """Whether training works on no other question."""
        return not self._is_taken or self._answer is not None or self._finished is not None

    def _has_ended(self) -> bool:
        return self._failed is not None or self._end is not None

    def _first(self, find: Callable[[], Message | None], seconds: float) -> Message:
        """Wait for an answer of training, with the lock held."""
        self._lock.wait_for(lambda: find() is not None or self._has_ended(), seconds)
        return self._failed or find() or _BUSY

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._end = reason
            self._lock.notify_all()

    # ---- in the thread of training

    def wait_for_facts(self) -> tuple[str, Mapping[str, bytes]]:
        """Run and sealed facts of all sites, once the server sent them."""
        with self._lock:
            self._lock.wait_for(lambda: self._facts is not None or self._end is not None)
            self._check_end()
            self._trained = self._greeting
            return str(self._run), self._facts or {}

    def be_ready(self, message: Message) -> None:
        """Report to the server that training can begin."""
        with self._lock:
            self._check()
            self._ready = message
            self._lock.notify_all()

    def expect(self, n_bytes: int) -> None:
        """Make ready for a question that brings a sum of so many bytes."""
        self._n_bytes = n_bytes

    def next(self) -> Message:
        """Next question about training."""
        with self._lock:
            self._lock.wait_for(
                lambda: self._end is not None or self._greeting != self._trained or (self._asked and not self._is_taken)
            )
            self._check()
            self._is_taken = True
            return self._asked  # type: ignore[return-value]

    def answer(self, message: Message) -> None:
        """Answer it; that training is finished answers whatever is asked next, which is waited for so long."""
        with self._lock:
            self._check()
            if self._ready is not None and "position" in message.fields:
                self._ready = Message("ready", {**self._ready.fields, "position": message.fields["position"]})
            if message.kind == "finished":
                self._finished = message
            self._answer = message
            self._lock.notify_all()
            if message.kind == "finished":
                self._lock.wait_for(lambda: self._is_delivered or self._has_ended(), 4 * self._patience)

    def fail(self, message: str) -> None:
        """Report to the server, now and whenever it asks, that this site stopped."""
        with self._lock:
            self._failed = Message("failed", {"message": message})
            self._lock.notify_all()

    def _check(self) -> None:
        self._check_end()
        if self._greeting != self._trained:
            raise OtherRunError

    def _check_end(self) -> None:
        if self._end is not None:
            msg = f"The server ended the run: {self._end}"
            raise EndedError(msg)
