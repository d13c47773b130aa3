"""A server on loopback that holds the certificate of the federation, and answers the calls of a site with lies."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("flwr")

from flwr.app import Message as FlowerMessage
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from tests.flower.conftest import SITES

from scinfl.flower._flwr import TaskIdentity, message_to_proto, remove_content_from_message
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import PIECE, to_records
from scinfl.flower.setup._kit import CA, LINK_KEY, SERVER_CERTIFICATE, SERVER_KEY, make_kit
from scinfl.flower.site._bounded_calls import MOST_RESPONSE
from scinfl.flower.site._client_app import client_app
from scinfl.flower.site._connection import FleetConnection
from scinfl.flower.site._mailbox import Mailbox

ROOM = 30_000_000
BUFFERS = 16_000_000  # of the kernel, for both directions


class Liar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers["content-length"]))
        call = self.path.rpartition("/")[2]
        self.server.calls.append(call)
        try:
            getattr(self, self.server.lie)(call)
        except OSError:
            self.close_connection = True

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in {"content-length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)
        self.server.n_bytes += len(content)

    def honest(self, call):
        answers = {"activate-node": ActivateNodeResponse(node_id=1), "pull-messages": PullMessagesResponse()}
        self.answer(answers[call].SerializeToString() if call in answers else b"")

    # ---- lies

    def is_endless(self, call, status=200):
        if call != "pull-messages":
            self.honest(call)
            return
        self.send_response(status)
        self.send_header("content-length", str(1 << 40))
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 20))
            self.server.n_bytes += 1 << 20

    def is_an_endless_refusal(self, call):
        self.is_endless(call, 500)

    def is_packed(self, call):
        if call == "pull-messages":
            self.answer(gzip.compress(bytes(1 << 24)), content_encoding="gzip")
        else:
            self.honest(call)

    def points_elsewhere(self, call):
        if call == "pull-messages":
            self.answer(b"", 307, location=f"http://127.0.0.1:{self.server.elsewhere.server_port}/v1/fleet/push-object")
        else:
            self.honest(call)

    def has_no_end_of_pieces(self, call):
        if call == "pull-messages":
            message = self.server.message
            tree = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id=f"{n:064}") for n in range(10_000)])
            head = message_to_proto(remove_content_from_message(message))
            response = PullMessagesResponse(messages_list=[head], message_object_trees=[tree])
            self.answer(response.SerializeToString())
        elif call == "pull-object":
            response = PullObjectResponse(object_found=True, object_available=True, object_content=bytes(PIECE))
            self.answer(response.SerializeToString())
        elif call == "push-messages":
            (tree,) = PushMessagesRequest.FromString(self.body).message_object_trees
            names = [own.object_id for own in iterate_object_tree(tree)]
            self.answer(PushMessagesResponse(session_id="1", objects_to_push=names).SerializeToString())
        elif call == "push-object":
            self.server.pushed += self.body
            self.answer(PushObjectResponse(stored=True).SerializeToString())
        else:
            self.honest(call)

    def has_no_tree(self, call):
        if call == "pull-messages":
            head = message_to_proto(remove_content_from_message(self.server.message))
            self.answer(PullMessagesResponse(messages_list=[head]).SerializeToString())
        else:
            self.honest(call)


def serve(server):
    server.calls, server.n_bytes, server.pushed = [], 0, b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def liar(tmp_path, monkeypatch):
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", None)  # and so after the test
        setattr(TaskIdentity, name, 1)
    make_kit(tmp_path / "kit", SITES, address="127.0.0.1:1")
    kit, server = tmp_path / "kit" / "server", serve(ThreadingHTTPServer(("127.0.0.1", 0), Liar))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / SERVER_CERTIFICATE, kit / SERVER_KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.message = FlowerMessage(to_records(Message("end", {})), dst_node_id=1, message_type="query")
    server.elsewhere = serve(ThreadingHTTPServer(("127.0.0.1", 0), Liar))
    server.elsewhere.lie = "honest"
    yield server
    for own in (server, server.elsewhere):
        own.shutdown()
        own.server_close()


LIES = ["is_endless", "is_an_endless_refusal", "is_packed", "points_elsewhere", "has_no_end_of_pieces", "has_no_tree"]


@pytest.mark.parametrize("lie", LIES)
def test_a_response_is_bounded_before_it_is_read_and_the_site_goes_on(tmp_path, liar, lie):
    liar.lie, kit = lie, tmp_path / "kit" / f"site_{SITES[0]}"
    address = f"127.0.0.1:{liar.server_port}"
    connection = FleetConnection(address, kit / CA, kit / LINK_KEY, site=SITES[0], poll=0.05, room=lambda: ROOM)
    app = client_app(Mailbox(lambda message: message), stop=connection.stop)
    thread = threading.Thread(target=connection.serve, args=(app,), daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while liar.calls.count("pull-messages") < 3 and time.monotonic() < until:
        time.sleep(0.02)
    connection.stop()
    thread.join(30)
    assert not thread.is_alive()
    n_looks = liar.calls.count("pull-messages")
    assert n_looks >= 3, liar.calls[-9:]
    most = MOST_RESPONSE if lie != "has_no_end_of_pieces" else ROOM + 8 * MOST_RESPONSE
    assert liar.n_bytes < n_looks * (most + BUFFERS)
    assert not liar.elsewhere.calls
    assert (lie == "has_no_end_of_pieces") == (f"Expected a message of at most {ROOM} bytes".encode() in liar.pushed)
