"""What a server sends to the connection of a site, below the messages of this federation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from flwr.app import Message as FlowerMessage
from tests.flower.conftest import SITES

from scinfl.flower._flwr import TaskIdentity
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, to_records
from scinfl.flower.setup._kit import CA, LINK_KEY, make_kit
from scinfl.flower.site import _connection
from scinfl.flower.site._client_app import client_app
from scinfl.flower.site._mailbox import Mailbox


def test_neither_bytes_that_are_no_response_nor_types_that_nobody_knows_end_a_site(tmp_path, monkeypatch):
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", None)  # and so after the test
        setattr(TaskIdentity, name, 1)
    make_kit(tmp_path / "kit", SITES)
    kit, types = tmp_path / "kit" / f"site_{SITES[0]}", ["evaluate", "query.other", "system", "query"]
    connection = _connection.FleetConnection("127.0.0.1:1", kit / CA, kit / LINK_KEY, site=SITES[0], poll=0.01)
    responses = ["garbage", *types]

    class Client:
        def ActivateNode(self, request):
            return SimpleNamespace(node_id=1)

        def PullMessages(self, request):
            response = responses.pop(0)
            if response == "garbage":
                msg = "Invalid protobuf response payload"
                raise ValueError(msg)
            head = SimpleNamespace(metadata=SimpleNamespace(run_id=1))
            return SimpleNamespace(messages_list=[head], message_object_trees=[response])

        def close(self):
            pass

    def fetch(client, node, head, tree, **limits):
        return FlowerMessage(to_records(Message("end", {"reason": "over"})), dst_node_id=1, message_type=tree)

    sent = []
    monkeypatch.setattr(connection, "_client", Client())
    monkeypatch.setattr(connection, "_leave", lambda: None)
    monkeypatch.setattr(connection, "_send", lambda answer, *others: sent.append(from_flower(answer).kind))
    monkeypatch.setattr(_connection, "fetch", fetch)
    connection.serve(client_app(Mailbox(lambda message: message), stop=connection.stop))
    assert not responses
    assert sent == ["bye"]
