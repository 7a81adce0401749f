"""A way to an S3 server on which things go wrong: a reverse proxy with faults, each at its n-th request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

KINDS = (
    *("503", "429", "400", "301", "skewed"),
    *("no_answer", "lost_answer", "cut_answer", "early_answer"),
    "unconditional",
)


@dataclass(frozen=True, kw_only=True)
class HttpFault:
    """At the `number`-th request (from 1; 0: at every one) whose method is `method` and whose query has `parameter` (if given).

    `no_answer`: the request does not arrive; `lost_answer`: it does; both then find the connection closed. `cut_answer`: half of the body
    comes. `early_answer`: 403 and the end, before the body was read. `unconditional`: If-None-Match does not arrive. `skewed`: the
    server's clock is an hour behind. A number: the status; the request does not arrive.
    """

    kind: str
    method: str
    number: int = 1
    parameter: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


@dataclass
class Proxy:
    endpoint: str = ""
    upstream: str = ""
    faults: tuple[HttpFault, ...] = ()
    seen: list[str] = field(default_factory=list)
    """Method and query parameters of each request, in the order of arrival: `PUT partNumber uploadId`."""
    presigned: int = 0
    forwarded: int = 0
    """Requests that named a whole URL, as they do to a proxy of their own choice."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, query: dict[str, str]) -> HttpFault | None:
        names = sorted(name for name in query if not name.startswith("X-Amz-") and name != "x-id")
        with self.lock:
            self.seen.append(" ".join([method, *names]))
            self.presigned += "X-Amz-Signature" in query
            for fault in self.faults:
                if fault.method == method and (not fault.parameter or fault.parameter in query):
                    same = [s for s in self.seen if s.split()[0] == method and (not fault.parameter or fault.parameter in s.split())]
                    if fault.number in (0, len(same)):
                        return fault
        return None


@contextmanager
def s3_proxy(upstream: str) -> Iterator[Proxy]:
    """In front of the server at `upstream`."""
    proxy = Proxy(upstream=upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _serve(self) -> None:
        self.proxy.forwarded += self.path.startswith("http://")
        fault = self.proxy.fault(self.command, dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))
        kind = fault.kind if fault else ""
        if kind == "early_answer":
            self.close_connection = True
            self._refuse(403, "AccessDenied", close=True)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind == "no_answer":
            self.close_connection = True
        elif kind == "skewed":
            self._refuse(403, "RequestTimeTooSkewed", seconds_behind=3600)
        elif kind.isdigit():
            self._refuse(int(kind), "SlowDown" if kind == "503" else "")
        else:
            self._pass_on(body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _pass_on(self, body: bytes, kind: str) -> None:
        address = urlsplit(self.proxy.upstream).netloc
        path = self.path.removeprefix(f"http://{address}")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        if kind == "unconditional":
            headers.pop("If-None-Match", None)
        upstream = HTTPConnection(address, timeout=60)
        try:
            upstream.request(self.command, path, body=body, headers=headers)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        if kind == "lost_answer":
            self.close_connection = True
        else:
            self._answer(response, content[: len(content) // 2] if kind == "cut_answer" else content, cut=kind == "cut_answer")

    def _answer(self, response: HTTPResponse, content: bytes, cut: bool) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", response.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = cut

    def _refuse(self, status: int, code: str, *, seconds_behind: float = 0.0, close: bool = False) -> None:
        import time

        content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() if code else b""
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() - seconds_behind, usegmt=True))
        self.send_header("Content-Length", str(len(content)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Tests say what they saw themselves."""
