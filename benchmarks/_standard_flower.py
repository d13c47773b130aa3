"""A SuperLink, SuperNodes and runs of standard Flower as processes of this machine, without TLS, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

NAME = "here"  # of the SuperLink, in the configuration of `flwr`


class StandardFlower:
    """Starts processes, and ends them; each writes a log."""

    def __init__(self, folder: Path, *, simulation: bool = False, nodes: Path | None = None) -> None:
        self.folder, self.running = folder, {}
        self.port = free_port()
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            **({} if nodes is None else {"SCINFL_NODES": str(nodes)}),
        }
        home = self._home("operator")
        home.mkdir(parents=True)
        (home / "config.toml").write_text(f'[superlink.{NAME}]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n')
        self.start(
            "superlink",
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", self.port),
            *(() if simulation else ("--database", folder / "superlink.db")),
            *(("--simulation",) if simulation else ()),
            "--disable-runtime-dependency-installation",
        )
        until = time.monotonic() + 90
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        msg = f"Expected a SuperLink on port {self.port}, found none; its log is '{folder / 'superlink.log'}'."
        raise RuntimeError(msg)

    def _home(self, role: str) -> Path:
        return self.folder / "flwr" / role

    def start(self, name: str, *command: object) -> None:
        """Start a process, with a home of its own."""
        environment = {**self._environment, "FLWR_HOME": str(self._home(name.partition("-")[0]))}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(  # noqa: S603
                [*map(str, command)], stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def start_node(self, name: str, config: Mapping[str, object]) -> None:
        """Start the SuperNode of a site."""
        entries = (f"scinfl-{key}={value if isinstance(value, int) else chr(34) + str(value) + chr(34)}"
                   for key, value in config.items())  # fmt: skip
        self.start(
            name,
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"),
            *("--host", "127.0.0.1", "--port", free_port(), "--node-config", " ".join(entries)),
        )

    def run(self, app: Path, *options: object, name: str = "operator-run") -> None:
        """Submit a run, and follow its log until it ends."""
        self.start(name, "flwr", "run", app, NAME, "--stream", *options)

    def text(self, name: str) -> str:
        """Log of a process."""
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_for(self, name: str, *texts: str, seconds: float) -> str:
        """Wait until a log holds one of some texts; returns the log."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.text(name)
            if any(text in found for text in texts):
                return found
            time.sleep(0.2)
        msg = f"Expected one of {texts} in the log of {name} within {seconds:g} s, found:\n{self.text(name)[-3000:]}"
        raise RuntimeError(msg)

    def kill(self, name: str) -> None:
        """End a process and all that it started, without a warning."""
        process = self.running[name]
        for number in [*descendants(process.pid), process.pid]:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def close(self) -> None:
        """End all processes."""
        for name in reversed(list(self.running)):
            self.kill(name)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    found, last = [], [pid]
    while last:
        last = [child for one in last for child in children.get(one, [])]
        found += last
    return found


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
