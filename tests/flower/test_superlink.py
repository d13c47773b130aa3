"""The port of the server answers operators on its own machine only, or the server does not start."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from tests.flower.conftest import SITES

pytest.importorskip("flwr")

from scinfl.flower._flwr import FLEET_CALLS, NodeAuthHttpInterceptor
from scinfl.flower.server import _closed_port, _superlink
from scinfl.flower.server._superlink import SuperLink
from scinfl.flower.setup import make_kit
from scinfl.flower.setup._kit import CA, LINK_KEY

WITHOUT_MIDDLEWARE = """
from flwr.superlink import main

usual = main._get_middleware
main._get_middleware = lambda: usual()[1:]  # as if Flower no longer read what `extensions` give

from scinfl.flower.server._superlink_process import main

main()
"""


def check_large_bodies(link, kit):
    """Only a registered site may send more than a little."""
    trusted = ssl.create_default_context(cafile=str(kit / "server" / CA))

    def status(headers, content):
        with httpx.Client(verify=trusted, trust_env=False) as client:
            address = f"https://{link._address}{FLEET_CALLS}push-object"
            try:
                return client.post(address, headers=headers, content=content).status_code
            except httpx.HTTPError:
                return "closed"

    def pieces():
        for _ in range(400):
            yield bytes(1 << 20)

    path = kit / f"site_{SITES[0]}" / LINK_KEY
    key = load_ssh_private_key(path.read_bytes(), password=None)
    request = httpx.Request("POST", "https://x")
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(SimpleNamespace(request=request), lambda own: None)
    signed = {name: value for name, value in request.headers.items() if name.startswith("flwr-")}
    forged = {**signed, "flwr-timestamp": "2020-01-01"}
    before = memory(link.pid)
    assert status({}, bytes(1 << 17)) == 413
    assert status(forged, bytes(1 << 17)) == 413
    assert status(signed, bytes(1 << 17)) not in (413, "closed")  # Flower reads it, and finds no call in it
    assert status(signed, bytes((1 << 26) + 1)) == 413
    assert status({}, pieces()) != 200
    assert memory(link.pid) - before < 100  # MB


def memory(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


@contextmanager
def superlink(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make_kit(folder / "kit", SITES, address=f"127.0.0.1:{port}")
    (folder / "state").mkdir()
    link = SuperLink(folder / "kit" / "server", folder / "state", "0.0.0.0", port)
    try:
        yield link
    finally:
        link.close()


def test_with_its_middleware_flower_starts_and_refuses_operators_from_elsewhere(tmp_path):
    with superlink(tmp_path) as link:
        link.wait()
        check_large_bodies(link, tmp_path / "kit")
        authority = tmp_path / "kit" / "server" / CA
        assert _closed_port._call(link._address, authority)[0] != 403
        assert _closed_port._call(link._address, authority, headers={"X-Forwarded-For": "203.0.113.7"})[0] == 403
        source = _closed_port.address_on_network()
        if source is not None:
            # who is elsewhere cannot claim to be here
            for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}):
                assert _closed_port._call(link._address, authority, source=source, headers=headers)[0] == 403


@pytest.mark.parametrize("has_network", [True, False])
def test_without_its_middleware_the_server_does_not_start(tmp_path, monkeypatch, has_network):
    (tmp_path / "open_superlink.py").write_text(WITHOUT_MIDDLEWARE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(_superlink, "_PROCESS", "open_superlink")
    if not has_network:
        monkeypatch.setattr(_closed_port, "address_on_network", lambda: None)
    with (
        superlink(tmp_path) as link,
        pytest.raises(RuntimeError, match="refuse calls of operators from other machines"),
    ):
        link.wait()


def test_the_settings_of_flower_in_the_environment_do_not_reach_the_superlink(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")  # would open a second port to operators
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # would let anybody claim to be on this machine
    monkeypatch.setenv("https_proxy", "http://203.0.113.7")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))  # would show what sites send
    found = _superlink._environment(tmp_path, tmp_path / "sites")
    assert not found.keys() & {"https_proxy", "SSLKEYLOGFILE"}
    assert "FLWR_INTERNAL_GRPC_CONTROL_API" not in found
    assert found["FORWARDED_ALLOW_IPS"] == "127.0.0.1"
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
