"""A server on this machine that replaces those with published data."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from scinfl.datasets import _download, _public, _tcga

CONTENT = np.random.default_rng(0).bytes(50_000)


class Server:
    """Serves the files it is given, and can be made to misbehave."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.ranges, self.sent_start = True, None
        self.cut_at = self.status = None
        self.sized = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, self.headers.get("Range")))
                assert self.headers["User-Agent"].startswith("scinfl/")
                outer.answer(self, self.path.removeprefix("/api/access/datafile/"))

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, handler, name):
        if name == "moved":
            handler.send_response(303)
            handler.send_header("Location", f"{self.url}/api/access/datafile/blob")
            handler.end_headers()
            return
        content = self.files.get(name)
        status = self.status or (404 if content is None else 200)
        content, start = content or b"", 0
        headers = {"Content-Length": len(content)}
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted and self.ranges and status == 200:
            start = int(wanted[1])
            sent = start if self.sent_start is None else self.sent_start
            status = 206 if start < len(content) else 416
            extent = f"{sent}-{len(content) - 1}" if status == 206 else "*"
            headers = {"Content-Range": f"bytes {extent}/{len(content)}", "Content-Length": len(content) - start}
        handler.send_response(status)
        for name_, value in headers.items():
            if self.sized or name_ != "Content-Length":
                handler.send_header(name_, str(max(value, 0) if isinstance(value, int) else value))
        handler.end_headers()
        if status in (200, 206):
            handler.wfile.write(content[start : self.cut_at])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = Server()
    for name in ("DATAVERSE", "FIGSHARE", "GDC", "GITHUB", "ZENODO"):
        monkeypatch.setenv(f"SCINFL_{name}", running.url + "/")
    monkeypatch.setenv("SCINFL_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_public, "_HASHES", {})
    monkeypatch.setattr(_tcga, "_HASHES", {})
    monkeypatch.setattr(_download, "_TIMEOUT", 5)
    monkeypatch.setattr(_download, "_CHUNK", 1000)
    running.files["blob"] = CONTENT
    yield running
    running.close()
