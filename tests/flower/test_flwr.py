"""What this package uses of Flower beyond its public API is in one file, and in the Flower that is installed."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from importlib import import_module
from pathlib import Path

import httpx
import pytest

pytest.importorskip("flwr")

from scinfl.flower import _flwr
from scinfl.flower.setup._templates import app_template

SOURCE = Path(_flwr.__file__).parents[1]
OURS = Path(_flwr.__file__)
PUBLIC = {"app", "clientapp", "serverapp"}

ATTRIBUTES = {
    "ApiErrorCode": ["FLEET_NODE_ACTIVATION_FAILED"],
    "ControlHttpClient": [
        *("from_server_address", "close"),
        *("ListNodes", "RegisterNode", "UnregisterNode", "StartRun"),
    ],
    "FleetHttpClient": [
        *("from_server_address", "close", "ActivateNode", "DeactivateNode", "SendNodeHeartbeat"),
        *("PullMessages", "PushMessages", "PullObject", "PushObject", "ConfirmMessageReceived"),
    ],
    "FlowerError": ["from_json"],
    "RuntimeHttpClient": [
        *("from_server_address", "close", "AcquireTask", "PullTaskInput", "PushTaskOutput", "SendTaskHeartbeat"),
        *("PullMessages", "PullObject", "ConfirmMessageReceived"),
    ],
    "SubStatus": ["COMPLETED", "FAILED"],
    "TaskType": ["SERVER_APP"],
}
FIELDS = {
    "AcquireTaskRequest": {"supported_task_types"},
    "ActivateNodeRequest": {"public_key", "heartbeat_interval"},
    "DeactivateNodeRequest": {"node_id"},
    "ListNodesRequest": set(),
    "Node": {"node_id"},
    "PullAppMessagesRequest": {"message_ids"},
    "PullMessagesRequest": {"node"},
    "PullTaskInputRequest": set(),
    "PushMessagesRequest": {"node", "messages_list", "message_object_trees", "clientapp_runtime_list"},
    "PushTaskOutputRequest": {"context", "sub_status", "details"},
    "RegisterNodeRequest": {"public_key", "name"},
    "SendNodeHeartbeatRequest": {"node", "heartbeat_interval"},
    "SendTaskHeartbeatRequest": set(),
    "StartRunRequest": {"fab"},
    "UnregisterNodeRequest": {"node_id"},
}
ARGUMENTS = {
    "NodeAuthHttpInterceptor": 2,
    "RuntimeVersionHttpInterceptor": ["component_name"],
    "SuperExecAuthHttpInterceptor": ["master_secret", "protected_methods"],
    "context_from_proto": 1,
    "context_to_proto": 1,
    "fab_to_proto": 1,
    "get_all_nested_objects": 1,
    "get_object_tree": 1,
    "make_confirm_message_received_fn_protobuf": 3,
    "make_pull_object_fn_protobuf": 3,
    "make_push_object_fn_protobuf": 4,
    "message_from_proto": 1,
    "message_to_proto": 1,
    "public_key_to_bytes": 1,
    "pull_and_inflate_object_from_tree": [
        *("object_tree", "pull_object_fn", "confirm_object_received_fn"),
        *("return_type", "max_time", "initial_backoff", "backoff_cap"),
    ],
    "push_objects": ["objects", "push_object_fn", "object_ids_to_push"],
    "remove_content_from_message": 1,
    "run_from_proto": 1,
}


def imports(path):
    """Modules and names that a file imports, and modules that it names in a text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"flwr[\w.]*", node.value):
            yield node.value, None


def test_one_file_alone_imports_what_is_private_to_flower():
    odd = {
        f"{path.relative_to(SOURCE)}: {module}"
        for path in SOURCE.rglob("*.py")
        for module, _ in imports(path)
        if module is not None
        and path != OURS
        and module.startswith("flwr.")
        and module.removeprefix("flwr.") not in PUBLIC
    }
    assert odd == set()


FROM_FLOWER = sorted({(m, n) for m, n in imports(OURS) if m is not None and m.startswith("flwr") and n is not None})


@pytest.mark.parametrize(("module", "name"), FROM_FLOWER)
def test_every_name_is_in_the_installed_flower(module, name):
    parent = import_module(module)
    found = getattr(parent, name) if hasattr(parent, name) else import_module(f"{module}.{name}")
    assert callable(found) or inspect.ismodule(found) or name in ATTRIBUTES


@pytest.mark.parametrize(("name", "attributes"), ATTRIBUTES.items())
def test_classes_have_what_is_used_of_them(name, attributes):
    assert [own for own in attributes if not hasattr(getattr(_flwr, name), own)] == []


@pytest.mark.parametrize(("name", "fields"), FIELDS.items())
def test_requests_have_the_fields_that_are_filled(name, fields):
    assert fields <= set(getattr(_flwr, name).DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS.items())
def test_functions_take_the_arguments_that_are_passed(name, arguments):
    signature = inspect.signature(getattr(_flwr, name))
    if isinstance(arguments, int):
        signature.bind(*range(arguments))
    else:
        signature.bind(**dict.fromkeys(arguments))


def test_every_layer_of_a_superlink_is_known():
    from flwr.superlink import main

    for_all_calls = {"BaseHTTPMiddleware", "ProtobufTranslationMiddleware"}
    names = {layer.cls.__name__ for layer in main._get_middleware()}
    assert names == for_all_calls | _flwr.LAYERS_OF.keys() | set(_flwr.IDLE_LAYERS)


def test_a_layer_for_some_calls_is_passed_by_all_others():
    from starlette.middleware import Middleware

    took = []

    def app_of(name):
        async def app(scope, receive, send):
            took.append((name, scope.get("path")))

        return app

    layer = Middleware(lambda app, name: app_of(name), "layer")
    routed = _flwr._OnlyFor(app_of("app"), "/v1/fleet/", layer)
    for scope in ({"type": "http", "path": "/v1/fleet/x"}, {"type": "http", "path": "/v1/x"}, {"type": "lifespan"}):
        asyncio.run(routed(scope, None, None))
    assert took == [("layer", "/v1/fleet/x"), ("app", "/v1/x"), ("app", None)]


def test_everything_that_is_used_is_checked():
    names = {name for module, name in FROM_FLOWER if module.removeprefix("flwr.") not in PUBLIC}
    elsewhere = {"Fab", "HttpGrid", "ObjectPushError", "TaskIdentity", "build_fab_from_disk", "extensions", "main"}
    elsewhere |= {"flower_superlink", "no_object_id_recompute", "verify_signature"}
    assert names == ATTRIBUTES.keys() | FIELDS.keys() | ARGUMENTS.keys() | elsewhere


def test_the_grid_has_what_is_reached_inside_it():
    grid = _flwr.connect_grid("127.0.0.1:1", b"", "a token", seconds=3.0)
    _flwr.stop_retrying(grid)
    assert grid._retry_invoker.max_time == 3.0
    assert "max_tries" in inspect.signature(type(grid._retry_invoker)).parameters
    assert "_retry_invoker" in inspect.getsource(type(grid)._connect)
    assert isinstance(inspect.getattr_static(grid, "_runtime_client"), property)
    assert {"node", "push_messages", "get_nodes", "set_run", "close"} <= set(dir(grid))


def test_an_operator_asks_for_the_sites_where_the_check_of_the_port_does():
    asked = []

    def answer(request):
        asked.append(request.url.path)
        return httpx.Response(200)

    client = _flwr.ControlHttpClient("https://127.0.0.1:1")
    client._client = httpx.Client(transport=httpx.MockTransport(answer))
    client.ListNodes(_flwr.ListNodesRequest())
    assert asked == [_flwr.OPERATOR_CALL]


def test_a_message_keeps_the_name_that_it_is_given(monkeypatch):
    from flwr.app import Message, MessageType, RecordDict

    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(_flwr.TaskIdentity, f"_{name}", None)  # and so after the test
        setattr(_flwr.TaskIdentity, name, 1)
    message = Message(RecordDict(), dst_node_id=1, message_type=MessageType.QUERY)
    _flwr.set_message_id(message, "a name")
    assert message.metadata.message_id == "a name"


def test_a_bundle_holds_what_is_in_the_folder(tmp_path):
    (tmp_path / "pyproject.toml").write_text(app_template())
    bundle = _flwr.build_bundle(tmp_path)
    assert len(bundle.hash_str) == 64
    assert bundle.content
