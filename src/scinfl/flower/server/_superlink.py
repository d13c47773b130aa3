"""Flower's SuperLink from the side of the server: start it, let sites in, and be the app of a run."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from scinfl.flower._flwr import (
    ACQUIRE_TASK,
    IN_MEMORY,
    AcquireTaskRequest,
    ControlHttpClient,
    ListNodesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    RegisterNodeRequest,
    RuntimeHttpClient,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    StartRunRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskIdentity,
    TaskType,
    UnregisterNodeRequest,
    build_bundle,
    client_of,
    connect_grid,
    context_from_proto,
    context_to_proto,
    fab_to_proto,
    public_key_to_bytes,
    run_from_proto,
    stop_retrying,
)
from scinfl.flower.server._closed_port import check_closed
from scinfl.flower.server._environment import forget_trust
from scinfl.flower.server._superlink_process import KEYS_OF_SITES, PARENT
from scinfl.flower.setup._app import APP
from scinfl.flower.setup._kit import CA, SERVER_CERTIFICATE, SERVER_KEY, SITES
from scinfl.flower.setup._templates import app_template

logger = logging.getLogger(__name__)

_SECONDS_TO_START = 90.0
_SECONDS_TO_ANSWER = 30.0
_BEAT = 10.0
_PROCESS = "scinfl.flower.server._superlink_process"


class SuperLink:
    """A SuperLink of this server, with TLS, known sites only, and no runs but ours."""

    def __init__(self, kit: Path, state: Path, host: str, port: int) -> None:
        self._kit, self._state, self._port = kit, state, port
        self._authority = (kit / CA).read_bytes()
        self._secret = secrets.token_bytes(32)
        secret = state / "executor.secret"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_bytes(self._secret)
        command = [
            *(sys.executable, "-m", _PROCESS),
            *("--host", host, "--port", str(port)),
            *("--ssl-ca-certfile", str(kit / CA), "--ssl-certfile", str(kit / SERVER_CERTIFICATE)),
            *("--ssl-keyfile", str(kit / SERVER_KEY), "--enable-supernode-auth"),
            *("--database", IN_MEMORY, "--isolation", "process"),
            *("--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation"),
        ]
        with (state / "superlink.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment(state, kit / SITES))  # noqa: S603

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def wait(self) -> None:
        """Wait until it answers, and make sure that it answers operators on this machine only."""
        until = time.monotonic() + _SECONDS_TO_START
        with self._control() as control:
            while time.monotonic() < until and self._process.poll() is None:
                try:
                    control.ListNodes(ListNodesRequest())
                except httpx.HTTPError:
                    time.sleep(0.2)
                else:
                    check_closed(self._address, self._kit / CA)
                    return
        msg = (
            f"Expected Flower's SuperLink to start on port {self._port}, found that it did not. Is the port taken? "
            f"Its log is '{self._state / 'superlink.log'}'."
        )
        raise RuntimeError(msg)

    def let_in(self, sites: Mapping[str, Path]) -> None:
        """Register the public keys of sites, and revoke those that are no longer among them."""
        with self._control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
            known = {bytes(node.public_key): node for node in nodes if node.status != "unregistered"}
            keys = {_public_key(path): site for site, path in sites.items()}
            for key, node in known.items():
                if key not in keys:
                    control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            for key, site in keys.items():
                if key not in known:
                    control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))

    def run(self, app: ServerApp) -> None:
        """Start a run and be its ServerApp, in this process."""
        with self._control() as control:
            response = control.StartRun(StartRunRequest(fab=fab_to_proto(_bundle())))
        token = self._acquire(response.run_id)
        grid = connect_grid(self._address, self._authority, token, seconds=_SECONDS_TO_ANSWER)
        client, stop = client_of(grid), threading.Event()
        beat = threading.Thread(target=_beat, args=(client, stop), daemon=True)
        beat.start()
        context: Context | None = None
        status, details = SubStatus.FAILED, "stopped"
        try:
            task = client.PullTaskInput(PullTaskInputRequest())
            context = context_from_proto(task.context)
            grid.set_run(run_from_proto(task.run))
            TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
            TaskIdentity.node_id = task.context.node_id
            app(grid, context)
            status, details = SubStatus.COMPLETED, ""
        except httpx.HTTPError as error:
            msg = (
                f"Expected Flower's SuperLink to answer, found that it does not ({type(error).__name__}). Its log is "
                f"'{self._state / 'superlink.log'}'. Go on with `--resume`."
            )
            raise RuntimeError(msg) from error
        finally:
            stop.set()
            stop_retrying(grid)
            if context is not None:
                context.state = RecordDict()
            content = None if context is None else context_to_proto(context)
            try:
                client.PushTaskOutput(PushTaskOutputRequest(context=content, sub_status=status, details=details))
            except (httpx.HTTPError, RuntimeError) as error:
                logger.debug("The end of the run could not be reported to the SuperLink: %s", error)
            grid.close()

    def _acquire(self, run: int) -> str:
        """Take on the task of being the ServerApp of a run; other runs are left alone, and so never start."""
        client = RuntimeHttpClient.from_server_address(
            self._address,
            False,
            self._authority,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=self._secret, protected_methods=[ACQUIRE_TASK]),
            ],
        )
        until = time.monotonic() + _SECONDS_TO_START
        try:
            while time.monotonic() < until:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if found.token and found.task.run_id == run:
                    return str(found.token)
                time.sleep(0.2)
        finally:
            client.close()
        msg = "Expected the SuperLink to start the run, found that it did not. Start the server again."
        raise RuntimeError(msg)

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        client = ControlHttpClient.from_server_address(
            self._address,
            False,
            self._authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """End its process."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _beat(client: RuntimeHttpClient, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except (httpx.HTTPError, RuntimeError) as error:
            logger.debug("A heartbeat to the SuperLink failed: %s", error)


def _environment(state: Path, sites: Path) -> dict[str, str]:
    """Environment in which Flower sends no telemetry, keeps its files in one folder, and trusts proxies here alone."""
    inherited = dict(os.environ)
    forget_trust(inherited)
    return {
        **inherited,
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(state / "flwr"),
        "FLWR_LOG_LEVEL": "INFO",
        PARENT: str(os.getpid()),
        KEYS_OF_SITES: str(sites),
    }


def _bundle() -> Any:
    """Bundle of a run, which carries no code: it only names what is installed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / APP).write_text(app_template())
        return build_bundle(Path(folder))


def _public_key(path: Path) -> bytes:
    key = load_ssh_public_key(path.read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        _refuse(path)
    return public_key_to_bytes(key)


def _refuse(path: Path) -> NoReturn:
    msg = f"Expected an elliptic-curve public key in '{path}', found another. Use the 'link.pub' of the kit."
    raise ValueError(msg)
