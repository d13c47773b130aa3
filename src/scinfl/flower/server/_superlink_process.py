"""Flower's SuperLink as a process of its own: sites fetch and send messages, only this machine starts runs."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from scinfl.flower._flwr import FLEET_CALLS, SITE_HEADERS, public_key_to_bytes, run_superlink, verify_signature
from scinfl.flower.server._held_calls import PULL, SITE, HeldCalls

REFUSAL = b"only from the machine of the server"
TOO_LARGE = b"too large"
PARENT = "SCINFL_PARENT_PID"
KEYS_OF_SITES = "SCINFL_SITES"
_MOST_OF_STRANGERS = 1 << 16
_MOST_OF_SITES = 1 << 26  # arrays come in pieces of 5 MB


class Gate:
    """Refuses everything but the sites' own calls from other machines, and bodies that are too large.

    In Flower 1.41 sites, operators and executors share one port, and who may submit a run may run code here. So the
    operator's calls and the executor's are answered on this machine only; the server checks it at its start. Flower
    reads the body of a call before it looks who called: so only registered sites may send more than a little.

    Parameters
    ----------
    app
        Flower's.
    sites
        Public keys of the registered sites, in Flower's form.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], sites: Mapping[bytes, ec.EllipticCurvePublicKey] | None = None
    ) -> None:
        self._app, self._sites = app, sites or {}

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one call."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif _is_of_a_site(scope["path"]) and scope["type"] == "http":
            await self._answer_site(scope, receive, send)
        elif _is_here(scope.get("client")):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(send, 403, REFUSAL)

    async def _answer_site(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        headers = {name.decode("latin-1").lower(): value for name, value in scope.get("headers", ())}
        length = headers.get("content-length", b"")
        small = length.isdigit() and len(length) < 12 and int(length) <= _MOST_OF_STRANGERS
        known = (not small or scope["path"].endswith(PULL)) and self._knows(headers)  # takes a millisecond
        most = _MOST_OF_SITES if known and not small else _MOST_OF_STRANGERS
        if known:
            scope[SITE] = headers[SITE_HEADERS[0]].decode()
        if length and not (length.isdigit() and len(length) < 12 and int(length) <= most):
            await _refuse(send, 413, TOO_LARGE)
            return
        n_bytes = 0

        async def counted() -> Any:
            nonlocal n_bytes
            event = await receive()
            n_bytes += len(event.get("body", b""))
            return event if n_bytes <= most else {"type": "http.disconnect"}

        await self._app(scope, counted, send)

    def _knows(self, headers: Mapping[str, bytes]) -> bool:
        """Whether a registered site signed a call."""
        try:
            public, timestamp, signature = (headers[name] for name in SITE_HEADERS)
            key = self._sites[b64decode(public, validate=True)]
            return verify_signature(key, timestamp, b64decode(signature, validate=True))
        except (KeyError, ValueError):
            return False


async def _refuse(send: Callable[..., Any], status: int, reason: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": reason})


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


def _registered(folder: Path) -> dict[bytes, ec.EllipticCurvePublicKey]:
    keys = [load_ssh_public_key(path.read_bytes()) for path in folder.glob("*.pub")]
    return {public_key_to_bytes(key): key for key in keys if isinstance(key, ec.EllipticCurvePublicKey)}


def main() -> None:
    """Start the SuperLink with the arguments of ``flower-superlink``; ends when the server's process does."""
    parent = int(os.environ[PARENT])
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    sites = _registered(Path(os.environ[KEYS_OF_SITES]))
    run_superlink(lambda app: Gate(HeldCalls(app), sites))


if __name__ == "__main__":
    main()
