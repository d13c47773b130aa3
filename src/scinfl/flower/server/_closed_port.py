"""Whether the port of the server answers operators on this machine only."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from scinfl._extras import install_line
from scinfl.flower._flwr import OPERATOR_CALL
from scinfl.flower._require import TESTED
from scinfl.flower.server._superlink_process import REFUSAL

_ELSEWHERE = "203.0.113.7"  # an address for documentation, which no machine has


def check_closed(address: str, authority: Path) -> None:
    """Refuse to go on where an operator on another machine is answered: who may start a run may run code.

    Tried at the port itself, with a call that a proxy forwards for another machine, and with one from an address of
    this machine that is not loopback, if it has one. So a Flower that no longer reads the middleware is noticed.

    Raises
    ------
    RuntimeError
        If a call is answered.
    """
    answers = [_call(address, authority, headers={"X-Forwarded-For": _ELSEWHERE})]
    if (source := address_on_network()) is not None:
        with suppress(httpx.TransportError):  # a firewall may keep addresses of one machine apart
            answers.append(_call(address, authority, source=source))
    if odd := [status for status, content in answers if (status, content) != (httpx.codes.FORBIDDEN, REFUSAL)]:
        msg = (
            "Expected Flower's SuperLink to refuse calls of operators from other machines, found that it answers them "
            f"(HTTP {odd[0]}): anybody could start a run. The server stops before it lets a site in. Install the "
            f"Flower that this was tested with, {TESTED}: `{install_line('flower')}`."
        )
        raise RuntimeError(msg)


def _call(
    address: str, authority: Path, *, source: str | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and content of the answer to an operator."""
    trusted = ssl.create_default_context(cafile=str(authority))
    with httpx.Client(transport=httpx.HTTPTransport(verify=trusted, local_address=source), trust_env=False) as client:
        answer = client.post(f"https://{address}{OPERATOR_CALL}", headers=headers)
    return answer.status_code, answer.content


def address_on_network() -> str | None:
    """Address of this machine that others see, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE, 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(address).is_loopback else address
