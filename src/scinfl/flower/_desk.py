"""Where the letters of the server meet the training of a site, which runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import Queue

from scinfl.flower._letter import Letter


class OtherRunError(Exception):
    """The server began another run."""


class EndedError(RuntimeError):
    """The server ended the run."""


class Desk:
    """Answers letters as they come; hands those about training on, and waits for what training says.

    Parameters
    ----------
    greet
        Answers ``"hello"``: checks of the site for a run.
    """

    def __init__(self, greet: Callable[[Letter], Letter]) -> None:
        self._greet = greet
        self._lock = threading.Condition()
        self._run: str | None = None
        self._facts: Mapping[str, str] | None = None
        self._ready: Letter | None = None
        self._failed: Letter | None = None
        self._end: str | None = None
        self._asked: Queue[Letter | None] = Queue()
        self._answers: Queue[Letter] = Queue()

    # ---- in the thread of the link

    def handle(self, letter: Letter) -> Letter:
        """Answer one letter of the server."""
        if letter.kind == "end":
            self._stop(str(letter.fields.get("reason", "")))
            return Letter("bye", {"message": "it was told to"})
        if self._failed is not None:
            return self._failed
        if letter.kind == "hello":
            answer = self._greet(letter)
            self._begin(str(letter.fields["run"]))
            return answer
        if letter.kind == "agree":
            return self._agree(letter)
        if letter.kind == "step":
            self._asked.put(letter)
            return self._answers.get()
        return Letter("failed", {"message": f"it does not know what '{letter.kind}' is: install the same scinfl"})

    def _begin(self, run: str) -> None:
        with self._lock:
            if self._run is not None and run != self._run:
                self._facts = self._ready = None
                self._asked.put(None)
            self._run = run

    def _agree(self, letter: Letter) -> Letter:
        with self._lock:
            self._facts = letter.fields["facts"]
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

    def be_ready(self, letter: Letter) -> None:
        """Let the server know that training can begin."""
        with self._lock:
            self._ready = letter
            self._lock.notify_all()

    def next(self) -> Letter:
        """Next question about training."""
        letter = self._asked.get()
        if letter is None:
            self._check_end()
            raise OtherRunError
        return letter

    def answer(self, letter: Letter) -> None:
        """Answer it."""
        with self._lock:
            if self._ready is not None and "position" in letter.fields:
                self._ready = Letter("ready", {**self._ready.fields, "position": letter.fields["position"]})
        self._answers.put(letter)

    def fail(self, message: str) -> None:
        """Tell the server, now and whenever it asks, that this site stopped."""
        with self._lock:
            self._failed = Letter("failed", {"message": message})
            self._lock.notify_all()
        self._answers.put(self._failed)

    def _check_end(self) -> None:
        if self._end is not None:
            msg = f"The server ended the run: {self._end}"
            raise EndedError(msg)
