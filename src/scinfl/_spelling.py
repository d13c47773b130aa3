"""How messages refer to arguments and calls of the Python API while a command of the command line runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_SPELLING: ContextVar[Mapping[str, str]] = ContextVar("spelling", default={})  # noqa: B039 (never changed in place)


@contextmanager
def spelling(phrases: Mapping[str, str]) -> Iterator[None]:
    """Spell phrases of the Python API in another way, for messages that are written inside of the context."""
    token = _SPELLING.set(phrases)
    try:
        yield
    finally:
        _SPELLING.reset(token)


def spelled(phrase: str) -> str:
    """A phrase of the Python API, as the user would type it."""
    return _SPELLING.get().get(phrase, phrase)


def argument(name: str) -> str:
    """Name of an argument in backticks, or of the option that sets it."""
    return spelled(f"`{name}`")
