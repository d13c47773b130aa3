"""All of Flower that is not its public API (``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``), and what it is for.

No other file imports it, so a new version of Flower is read here, and checked by ``tests/flower/test_flwr.py``. What
loads the web server of a SuperLink (seconds, 30 MB) is imported in the function that needs it: a site never does.
"""
# ruff: noqa: F401 (these names are for the other files)

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flwr.supercore.logger  # sets a level and a handler of its own, which `quiet_logs` comes after
from flwr.app import Message
from flwr.app.message import remove_content_from_message  # head of an answer: its arrays follow one by one
from flwr.common.constant import SubStatus  # how a run ended
from flwr.common.serde import (
    context_from_proto,  # state of a run, as its task brings it
    context_to_proto,  # the same, as it is given back
    fab_to_proto,  # bundle of a run
    message_from_proto,  # head of a message whose content is not read
    message_to_proto,  # head of an answer
    run_from_proto,  # what the grid must know of a run
)

# requests of the operator: which sites are known, and the start of a run
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest

# requests of a site: appear, leave, fetch messages, send answers
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node  # a site, in these requests

# requests of the process that runs the server's app: take the task, fetch answers, stay alive, end
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType  # the task of a run's app
from flwr.supercore.control import ControlHttpClient  # calls of the operator
from flwr.supercore.error import ApiErrorCode, FlowerError  # why a SuperLink refused a call
from flwr.supercore.fab import Fab  # bundle of a run
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,  # arrays of an answer
    get_object_tree,  # their names
    no_object_id_recompute,  # hash each of them once
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,  # confirms that a message is whole
    make_pull_object_fn_protobuf,  # fetches one array
    make_push_object_fn_protobuf,  # sends one array
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,  # a server that started again does not know the answer that an array belongs to
    pull_and_inflate_object_from_tree,  # fetches a message with its arrays
    push_objects,  # sends arrays
)
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,  # names our version of Flower in a call
    SuperExecAuthHttpInterceptor,  # proves with a secret that a call is that of the server's own executor
)
from flwr.supercore.primitives.asymmetric import (
    public_key_to_bytes,  # key of a site, as Flower compares it
    verify_signature,  # of a call
)
from flwr.supercore.runtime import RuntimeHttpClient  # calls of the process that runs the server's app
from flwr.supercore.task_identity import TaskIdentity  # what that process is, where Flower looks for it
from flwr.supernode.fleet_http_client import FleetHttpClient  # calls of a site
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor  # signs them with the key of the site

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
"""Name of the call that the server's executor must prove itself for."""

FLEET_CALLS = "/v1/fleet/"
"""Where a SuperLink answers sites."""

LAYERS_OF = {
    "ControlSensitiveResponseMiddleware": "/v1/control/",
    "ControlAuthenticationMiddleware": "/v1/control/",
    "ControlLicenseMiddleware": "/v1/control/",
    "NodeAuthMiddleware": FLEET_CALLS,
}
"""Layers of a SuperLink that do nothing but for the calls below one path."""

IDLE_LAYERS = ("RuntimeTracingMiddleware", "ControlEventLogMiddleware", "FleetEventLogMiddleware")
"""Layers that do nothing unless tracing or event logs are switched on, which they are not here."""

IN_MEMORY = ":flwr-in-memory:"
"""Name of the database of a SuperLink that keeps nothing on disk."""

SITE_HEADERS = ("flwr-public-key", "flwr-timestamp", "flwr-signature")
"""Headers by which a site proves a call: its public key, a time, and its signature of that."""

OPERATOR_CALL = "/v1/control/list-nodes"
"""Where it answers an operator who asks for the sites: a call that changes nothing."""

_NOISY = ("alembic", "flwr", "httpcore", "httpx", "sqlalchemy")


def quiet_logs() -> None:
    """Let Flower, and what it is built on, log errors only."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def set_message_id(message: Message, name: str) -> None:
    """Give a message the name that Flower would on its way through a SuperNode."""
    message.metadata.__dict__["_message_id"] = name


def build_bundle(folder: Path) -> Fab:
    """Bundle of the files in a folder."""
    from flwr.cli.build import build_fab_from_disk

    content = build_fab_from_disk(folder)
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def connect_grid(address: str, authority: bytes, token: str, *, seconds: float) -> HttpGrid:
    """Grid of a run, which gives up after so long; Flower would wait for a SuperLink that died without end."""
    from flwr.superlink.grid import HttpGrid

    grid = HttpGrid(address, insecure=False, root_certificates=authority, token=token)
    grid._retry_invoker.max_time = seconds
    return grid


def client_of(grid: Any) -> RuntimeHttpClient:
    """Calls that a grid is made of: its own way to fetch an answer waits until all of it is there."""
    return grid._runtime_client


def stop_retrying(grid: Any) -> None:
    """Make a last call of a grid end at once."""
    grid._retry_invoker.max_tries = 1


def run_superlink(middleware: Any) -> None:
    """Be a SuperLink, whose calls all pass through a middleware first; takes arguments from the command line.

    Each of Flower's own nine layers costs a call a millisecond, also where it only looks at the path and passes the
    call on. So those of one kind of call are passed by all others, and those that log and trace, which is off here, are
    left out.
    """
    from flwr.superlink import extensions, main
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    others, usual = extensions.get_middleware, main._get_middleware
    extensions.get_middleware = lambda: (Middleware(middleware), *others())
    main._get_middleware = lambda: [_for_its_calls(one) for one in usual() if _name(one) not in IDLE_LAYERS]
    flower_superlink()


def _for_its_calls(layer: Any) -> Any:
    """The same layer, which calls of another kind pass by."""
    from starlette.middleware import Middleware

    calls = LAYERS_OF.get(_name(layer))
    return layer if calls is None else Middleware(_OnlyFor, calls, layer)


def _name(layer: Any) -> str:
    return str(layer.cls.__name__)


class _OnlyFor:
    """A layer for the calls below one path."""

    def __init__(self, app: Any, path: str, layer: Any) -> None:
        self._app, self._path = app, path
        self._layer = layer.cls(app, *layer.args, **layer.kwargs)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        is_its_own = scope["type"] == "http" and scope["path"].startswith(self._path)
        await (self._layer if is_its_own else self._app)(scope, receive, send)
