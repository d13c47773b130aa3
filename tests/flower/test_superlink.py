"""The port of the server answers operators on its own machine only, or the server does not start."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import pytest
from tests.flower.conftest import SITES

pytest.importorskip("flwr")

from scinfl.flower.server import _closed_port, _superlink
from scinfl.flower.server._superlink import SuperLink
from scinfl.flower.setup import make_kit
from scinfl.flower.setup._kit import CA

WITHOUT_MIDDLEWARE = """
from flwr.superlink import main

usual = main._get_middleware
main._get_middleware = lambda: usual()[1:]  # as if Flower no longer read what `extensions` give

from scinfl.flower.server._superlink_process import main

main()
"""


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
    found = _superlink._environment(tmp_path)
    assert "FLWR_INTERNAL_GRPC_CONTROL_API" not in found
    assert found["FORWARDED_ALLOW_IPS"] == "127.0.0.1"
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
