"""Calls of a site to a server that may lie: what comes back is bounded before it is read."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from scinfl.flower.protocol._records import PIECE

MOST_RESPONSE = PIECE + (1 << 16)
"""Bytes of one response: a piece of a message, or the list of all pieces."""


class BoundedCalls:
    """Makes the calls of Flower's client, as the last of its interceptors.

    Flower's own would read whatever comes, unpack it, and carry a call on to wherever a server points.

    Parameters
    ----------
    authority
        File of the certificate authority that vouches for the server.
    """

    def __init__(self, authority: Path) -> None:
        trusted = ssl.create_default_context(cafile=str(authority))
        self._client = httpx.Client(verify=trusted, follow_redirects=False)

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Make a call.

        Parameters
        ----------
        context
            With the request.
        call_next
            Not used.

        Raises
        ------
        httpx.RemoteProtocolError
            If the response is larger than one of this federation, or packed.
        """
        del call_next
        context.request.headers["accept-encoding"] = "identity"
        response = self._client.send(context.request, stream=True)
        try:
            content = _read(response)
        finally:
            response.close()
        return httpx.Response(response.status_code, content=content, request=context.request)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    if "content-encoding" in response.headers:
        msg = "Expected a response as it is, found a packed one: a few bytes may unpack to any number."
        raise httpx.RemoteProtocolError(msg)
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MOST_RESPONSE:
            msg = f"Expected a response of at most {MOST_RESPONSE} bytes, found more. The rest was not read."
            raise httpx.RemoteProtocolError(msg)
    return bytes(content)
