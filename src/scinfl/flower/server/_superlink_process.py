"""Flower's SuperLink as a process of its own: sites fetch and send messages, only this machine starts runs."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from scinfl.flower._flwr import FLEET_CALLS, run_superlink

REFUSAL = b"only from the machine of the server"
PARENT = "SCINFL_PARENT_PID"


class LoopbackOnly:
    """Refuses everything but the sites' own calls from other machines.

    In Flower 1.41 sites, operators and executors share one port, and who may submit a run may run code here. So the
    operator's calls and the executor's are answered on this machine only; the server checks it at its start.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one call."""
        if scope["type"] == "lifespan" or _is_of_a_site(scope["path"]) or _is_here(scope.get("client")):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": REFUSAL})


def _is_of_a_site(path: str) -> bool:
    return path.startswith(FLEET_CALLS) and ".." not in path


def _is_here(client: tuple[str, int] | None) -> bool:
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Start the SuperLink with the arguments of ``flower-superlink``; ends when the server's process does."""
    parent = int(os.environ[PARENT])
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    run_superlink(LoopbackOnly)


if __name__ == "__main__":
    main()
