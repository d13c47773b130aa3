"""Connection of a site to Flower's SuperLink: fetches messages and sends answers, never runs what others ship."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from scinfl.flower._flwr import (
    ActivateNodeRequest,
    ApiErrorCode,
    DeactivateNodeRequest,
    FleetHttpClient,
    FlowerError,
    Node,
    NodeAuthHttpInterceptor,
    ObjectPushError,
    PullMessagesRequest,
    PushMessagesRequest,
    RuntimeVersionHttpInterceptor,
    SendNodeHeartbeatRequest,
    get_all_nested_objects,
    get_object_tree,
    make_push_object_fn_protobuf,
    message_to_proto,
    no_object_id_recompute,
    public_key_to_bytes,
    push_objects,
    remove_content_from_message,
    set_message_id,
)
from scinfl.flower._format import readable
from scinfl.flower.protocol._fetch import TooLargeError, fetch, refusal
from scinfl.flower.protocol._limits import MOST_MISSED
from scinfl.flower.site._bounded_calls import BoundedCalls

logger = logging.getLogger(__name__)

_HEARTBEAT = 10.0
_PATIENCE = 2 * _HEARTBEAT  # after which Flower takes a site for gone, and lets its next process in
_LONGEST_WAIT = 10.0
_SECONDS_TO_FETCH = 600.0
_SECONDS_TO_LINGER = 3.0
_SECONDS_TO_DOUBT = _PATIENCE + 4.0
_SOON = 0.02
_HELD = 1.0
_SECONDS_BETWEEN_NOTES = 60.0


class RefusedError(RuntimeError):
    """The server does not let this site in."""


class FleetConnection:
    """Speaks Flower's Fleet protocol (1.41) from the process of the site.

    A SuperNode would fetch the bundle that a run came with and run what it names. This connection fetches no bundles:
    all it can do is pass a message to the app that is installed here.

    Parameters
    ----------
    address
        Host and port of the server.
    authority
        File of the certificate authority that vouches for the server.
    key
        File of the private key that the server knows this site by.
    site
        Name of the site, for messages.
    poll
        Most seconds between two looks for messages, where the server does not hold a look until there is one.
    room
        Most bytes that a message may have at present.
    """

    def __init__(
        self,
        address: str,
        authority: Path,
        key: Path,
        *,
        site: str,
        poll: float = 0.5,
        room: Callable[[], float] = lambda: MOST_MISSED,
    ) -> None:
        self._address, self._site, self._poll, self._room = address, site, poll, room
        private = load_ssh_private_key(key.read_bytes(), password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            msg = f"Expected an elliptic-curve key in '{key}', found another. Use the one of the kit."
            raise TypeError(msg)
        self._calls = BoundedCalls(authority)
        self._public = public_key_to_bytes(private.public_key())
        self._client = FleetHttpClient.from_server_address(
            address,
            False,
            str(authority),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
                self._calls,
            ],
        )
        self._node: Node | None = None
        self._was_in = False
        self._stop = threading.Event()
        self._sent = 0.0
        self._refused: float | None = None
        self._noted = -_SECONDS_BETWEEN_NOTES

    def serve(self, app: ClientApp) -> None:
        """Answer messages until :meth:`stop`; waits for a server that is away.

        Raises
        ------
        RefusedError
            If the server does not know this site, or is not the one that the certificate authority vouches for.
        """
        heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heartbeat.start()
        try:
            self._serve(app)
        finally:
            self._stop.set()
            self._leave()

    def _serve(self, app: ClientApp) -> None:
        wait, busy = self._poll, 0.0
        while not self._stop.is_set():
            try:
                started, handled = time.monotonic(), self._handle_one(app, self._node or self._activate())
                now = time.monotonic()
                busy = now if handled else busy
                was_held = now - started > _HELD  # the server waited for a message, so this need not
                wait = 0.0 if handled or was_held else min(self._poll, _SOON + (now - busy) / 10)
            except (httpx.TransportError, httpx.HTTPStatusError, ObjectPushError, ValueError) as error:
                # what is no response of Flower, or one of a server that started again
                self._refuse_or_note(error)
                wait = min(max(2 * wait, self._poll), _LONGEST_WAIT)
            self._stop.wait(wait)

    def _leave(self) -> None:
        if self._node is not None:
            # Flower drops the last answer of a site that is gone before the answer was fetched
            time.sleep(max(0.0, self._sent + _SECONDS_TO_LINGER - time.monotonic()))
            self._try(partial(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id)))
        self._client.close()
        self._calls.close()

    def stop(self) -> None:
        """Leave."""
        self._stop.set()

    def _activate(self) -> Node:
        response = self._client.ActivateNode(
            ActivateNodeRequest(public_key=self._public, heartbeat_interval=_HEARTBEAT)
        )
        self._node, self._refused, self._was_in = Node(node_id=response.node_id), None, True
        logger.info("Connected to %s.", self._address)
        return self._node

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT * 0.6):
            node = self._node
            if node is not None:
                request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=_HEARTBEAT)
                self._try(partial(self._client.SendNodeHeartbeat, request))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (httpx.HTTPError, RuntimeError) as error:
            logger.debug("A call to the server failed: %s", error)

    def _handle_one(self, app: ClientApp, node: Node) -> bool:
        """Fetch one message, let the app answer it, and send the answer; whether that was done."""
        response = self._client.PullMessages(PullMessagesRequest(node=node))
        if not response.messages_list:
            return False
        try:
            head, tree = response.messages_list[0], response.message_object_trees[0]
            message = fetch(self._client, node, head, tree, seconds=_SECONDS_TO_FETCH, most=self._room())
        except httpx.HTTPError:
            raise
        except TooLargeError as error:
            logger.warning("A message of the server was refused: %s", error)
            self._send(refusal(head, tree, str(error)), node, head.metadata.run_id, 0.0)
            return False
        except Exception as error:  # noqa: BLE001 (whatever the server sent)
            logger.info("A message came without its content (%s); the server will send it again.", readable(error))
            return False
        run, started = head.metadata.run_id, time.perf_counter()
        context = Context(run_id=run, node_id=node.node_id, node_config={}, state=RecordDict(), run_config={})
        try:
            answer = app(message, context)
        except ValueError as error:  # a type of message that the app has no function for
            logger.warning("A message of the server was dropped: %s", readable(error))
            return False
        self._send(answer, node, run, time.perf_counter() - started)
        return True

    def _send(self, answer: Message, node: Node, run: int, seconds: float) -> None:
        set_message_id(answer, answer.object_id)
        head = message_to_proto(remove_content_from_message(answer))
        with no_object_id_recompute():
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[head],
                    message_object_trees=[get_object_tree(answer)],
                    clientapp_runtime_list=[seconds],
                )
            )
            push_objects(
                get_all_nested_objects(answer),
                make_push_object_fn_protobuf(self._client.PushObject, node, run, response.session_id),
                object_ids_to_push=set(response.objects_to_push),
            )
        self._sent = time.monotonic()

    def _refuse_or_note(self, error: Exception) -> None:
        """Raise an error that explains why the server refuses this site, or note that it does not answer."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            msg = (
                f"Expected at {self._address} the server that 'ca.pem' vouches for, found another certificate "
                f"({getattr(cause, 'verify_message', cause)}). Ask the operator for the present kit; if nothing "
                "changed there, somebody may be between you and the server."
            )
            raise RefusedError(msg) from None
        if isinstance(error, httpx.HTTPStatusError) and _is_refusal(error):
            now = time.monotonic()
            self._refused = self._refused or now
            self._node = None  # a server that started again knows sites by other numbers
            if now - self._refused >= _SECONDS_TO_DOUBT:  # it may still wait for the process that this one replaces
                why = "it was revoked" if self._was_in else "it was never registered, or revoked"
                msg = (
                    f"Expected the server at {self._address} to know site '{self._site}', found that it does not: "
                    f"{why}. Ask the operator whether the site is in the job and its public key in the server's "
                    "folder, and compare the clocks of both machines."
                )
                raise RefusedError(msg) from None
            return
        now = time.monotonic()
        if now - self._noted >= _SECONDS_BETWEEN_NOTES:
            logger.info("The server at %s does not answer (%s); waiting for it.", self._address, type(error).__name__)
            self._noted = now


def _is_refusal(error: httpx.HTTPStatusError) -> bool:
    found = FlowerError.from_json(error.response.text)
    known = found is not None and found.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
    return known or error.response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}
