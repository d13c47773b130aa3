"""A look for messages is answered when there may be one, and never for a caller that left."""

from __future__ import annotations

import asyncio
import time

import pytest

from scinfl.flower.server import _held_calls
from scinfl.flower.server._held_calls import SITE, HeldCalls

REFUSED = "/v1/fleet/push-messages"
PULL, PUSH = "/v1/fleet/pull-messages", "/v1/runtime/push-messages"


class Store:
    """Stands for Flower: a queue of messages for each site."""

    def __init__(self):
        self.messages, self.looks, self.refuses = [], 0, False
        self.held = HeldCalls(self)

    async def __call__(self, scope, receive, send):
        assert (await receive())["type"] == "http.request"
        if self.refuses and scope["path"] == REFUSED:
            await send({"type": "http.response.start", "status": 401})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["path"].endswith("push-messages"):
            self.messages.append(b"a message")
        else:
            self.looks += 1
        body = self.messages.pop(0) if scope["path"].endswith("pull-messages") and self.messages else b""
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})

    async def call(self, path, *, caller="site", leaves_after=None):
        """Body of the answer, ``None`` if there was none, and the seconds that it took."""
        asked, sent, started = False, [], time.monotonic()

        async def receive():
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(60 if leaves_after is None else leaves_after)
            return {"type": "http.disconnect"}

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "path": path} | ({SITE: caller} if caller else {})
        await self.held(scope, receive, send)
        return (sent[-1]["body"] if sent else None), time.monotonic() - started


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setitem(_held_calls._SECONDS, "/v1/fleet/", 0.5)
    return Store()


def test_a_look_in_vain_is_held_until_a_message_comes(store):
    async def play():
        assert (await store.call(PULL))[0] == b""  # the first look knows of nothing
        looking = asyncio.ensure_future(store.call(PULL))
        await asyncio.sleep(0.1)
        assert not looking.done()
        await store.call(PUSH)
        body, seconds = await looking
        assert body == b"a message"
        assert 0.1 < seconds < 0.3
        body, seconds = await store.call(PULL)  # where one was, another may be
        assert body == b""
        assert 0.05 < seconds < 0.3
        assert 0.4 < (await store.call(PULL))[1] < 0.8  # in vain to the end
        assert store.looks == 4

    asyncio.run(play())


def test_a_message_that_came_between_two_looks_is_found_at_once(store):
    async def play():
        await store.call(PULL)
        await store.call(PUSH)
        body, seconds = await store.call(PULL)
        assert body == b"a message"
        assert seconds < 0.2

    asyncio.run(play())


def test_a_caller_that_left_takes_no_message(store):
    async def play():
        await store.call(PULL)
        looking = asyncio.ensure_future(store.call(PULL, leaves_after=0.05))
        assert (await looking)[0] is None
        await store.call(PUSH)
        assert (await store.call(PULL))[0] == b"a message"

    asyncio.run(play())


def test_strangers_are_not_held(store):
    async def play():
        for _ in range(3):
            assert (await store.call(PULL, caller=None))[1] < 0.1

    asyncio.run(play())


@pytest.mark.parametrize("refuses", [True, False])
def test_a_push_that_was_refused_wakes_nobody(store, refuses):
    """A stranger could otherwise keep the server looking without end."""

    async def play():
        await store.call("/v1/runtime/pull-messages")
        looking = asyncio.ensure_future(store.call("/v1/runtime/pull-messages"))
        await asyncio.sleep(0.02)
        store.refuses = refuses
        await store.call(REFUSED, caller=None)
        _, seconds = await looking
        assert (seconds > 0.2) == refuses

    asyncio.run(play())


def test_many_pushes_wake_a_site_once(store):
    async def play():
        await store.call(PULL)
        looking = asyncio.ensure_future(store.call(PULL))
        await asyncio.sleep(0.02)
        for _ in range(10):
            await store.call("/v1/runtime/push-object")
        before = store.looks
        await looking
        assert store.looks == before + 1

    asyncio.run(play())
