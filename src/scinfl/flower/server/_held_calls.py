"""Calls that look for messages are held until there may be one: sites and server need no pauses between two looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

App = Callable[..., Awaitable[None]]

SITE = "scinfl.site"
"""Where the scope of a call holds the public key of the registered site that signed it."""

PULL = "pull-messages"
"""Call that looks for messages."""

_PUSHES = ("push-messages", "push-object")
_OF_SITES, _OF_SERVER = "/v1/fleet/", "/v1/runtime/"
_SECONDS = {_OF_SITES: 3.0, _OF_SERVER: 0.25}  # the server has deadlines to look at; a held call delays a shutdown
_SOON = 0.1  # where a site found a message, another may be, which comes alone
_REFUSED = 400
_QUIET = 0.015  # the arrays of a message follow its head one by one
_LONGEST_QUIET = 0.2


class HeldCalls:
    """Answers a look for messages at once if something came since the last one, else as soon as something comes.

    Flower stores messages in a database, in which sites and server look in turn. All calls pass through here, so this
    knows when a look is in vain. Such a look waits a few seconds at most; one whose caller is gone by then is dropped,
    so that nobody fetches the message in place of the process that replaced the caller.

    Parameters
    ----------
    app
        Flower's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._news = {_OF_SITES: _News(), _OF_SERVER: _News()}  # for those who look there
        self._seen: dict[str, int] = {}  # news that each caller knew when it looked last
        self._found: set[str] = set()  # sites that found something then

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one call."""
        path = scope.get("path", "") if scope["type"] == "http" else ""
        side = next((side for side in _SECONDS if path.startswith(side)), None)
        call = path[len(side) :] if side else ""
        caller = scope.get(SITE) if side == _OF_SITES else side
        if side and call == PULL and caller:
            await self._pull(side, str(caller), scope, receive, send)
            return
        status = 0

        async def noted(event: dict[str, Any]) -> None:
            nonlocal status
            status = event.get("status", status)
            await send(event)

        await self._app(scope, receive, noted)
        if side and call in _PUSHES and status < _REFUSED:  # of a stranger nothing is stored
            self._news[_OF_SERVER if side == _OF_SITES else _OF_SITES].ring()

    async def _pull(self, side: str, caller: str, scope: dict[str, Any], receive: Any, send: Any) -> None:
        news, events = self._news[side], [await receive()]
        while events[-1].get("more_body"):
            events.append(await receive())
        leaving = asyncio.ensure_future(receive())
        try:
            if self._seen.get(caller) == news.number:
                await news.come(leaving, _SOON if caller in self._found else _SECONDS[side])
            if not leaving.done():
                await news.settle()
                number = news.number
                n_bytes = await self._look(scope, events, leaving, send)
                self._seen[caller] = number
                (self._found.add if n_bytes and side == _OF_SITES else self._found.discard)(caller)
        finally:
            leaving.cancel()

    async def _look(
        self, scope: dict[str, Any], events: list[Any], leaving: asyncio.Future[Any], send: Callable[..., Any]
    ) -> int:
        """Bytes of what is there."""
        n_bytes = 0

        async def replayed() -> Any:
            return events.pop(0) if events else await leaving

        async def counted(event: dict[str, Any]) -> None:
            nonlocal n_bytes
            n_bytes += len(event.get("body", b""))
            await send(event)

        await self._app(scope, replayed, counted)
        return n_bytes


class _News:
    """Counts what came, and lets others wait for it."""

    def __init__(self) -> None:
        self.number, self._event, self._last = 0, asyncio.Event(), 0.0

    def ring(self) -> None:
        """Something came."""
        self.number, self._last = self.number + 1, monotonic()
        self._event.set()
        self._event = asyncio.Event()

    async def come(self, leaving: asyncio.Future[Any], seconds: float) -> None:
        """Wait until something comes, the caller leaves, or the time is over."""
        ringing = asyncio.ensure_future(self._event.wait())
        await asyncio.wait({ringing, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        ringing.cancel()

    async def settle(self) -> None:
        """Wait until nothing more comes for a moment."""
        until = monotonic() + _LONGEST_QUIET
        while (wait := min(self._last + _QUIET, until) - monotonic()) > 0:
            await asyncio.sleep(wait)
