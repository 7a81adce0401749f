"""A way to a server on which things go wrong: a reverse proxy with faults, in front of S3 each at its n-th request."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from patience import LIMIT_S

CODES = {"503": "SlowDown", "429": "", "400": "", "301": "PermanentRedirect", "404": "NoSuchUpload"}
KINDS = (*CODES, "skewed", "no_answer", "lost_answer", "cut_answer", "early_answer", "closed_later", "silent", "stalled")


@dataclass(frozen=True, kw_only=True)
class HttpFault:
    """At the `number`-th request (from 1; 0: at every one) whose method is `method` and whose query has `parameter` (if given).

    `no_answer`: the request does not arrive; `lost_answer`: it does; both then find the connection closed. `cut_answer`: half of the body
    comes. `early_answer`: 403 and the end, before the body was read. `closed_later`: all is well, then the connection is closed.
    `silent`: no answer and no end; `stalled`: half of the body, then the same. `skewed`: the server's clock is an hour behind. A number:
    the status, and the request does not arrive.
    """

    kind: str
    method: str
    number: int = 1
    parameter: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def matches(self, method: str, query: dict[str, str]) -> bool:
        return self.method == method and (not self.parameter or self.parameter in query)


@dataclass
class Proxy:
    endpoint: str = ""
    upstream: str = ""
    faults: tuple[HttpFault, ...] = ()
    seen: list[str] = field(default_factory=list)
    """Method and query parameters of each request, in the order of arrival: `PUT partNumber uploadId`."""
    ranges: list[str] = field(default_factory=list)
    presigned: int = 0
    """Requests signed in their URL that were passed on."""
    forwarded: int = 0
    """Requests that named a whole URL, as they do to a proxy of the environment."""
    failed: int = 0
    connections: int = 0
    open: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    _counts: dict[HttpFault, int] = field(default_factory=dict)

    def fault(self, method: str, query: dict[str, str]) -> str:
        """What goes wrong with this request."""
        with self.changed:
            self.seen.append(" ".join([method, *sorted(name for name in query if not name.startswith("X-Amz-") and name != "x-id")]))
            kind = ""
            for fault in self.faults:
                if fault.matches(method, query):
                    count = self._counts[fault] = self._counts.get(fault, 0) + 1
                    kind = fault.kind if fault.number in (0, count) else kind
            self.failed += bool(kind)
            self.presigned += "X-Amz-Signature" in query and not kind
            return kind

    def wait_closed(self) -> None:
        """Until no connection is open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.open == 0, timeout=LIMIT_S)


@contextmanager
def s3_proxy(upstream: str, tls: tuple[Path, Path] | None = None, proxy: Proxy | None = None) -> Iterator[Proxy]:
    """In front of the server at `upstream`; with `tls`, a certificate and its key, by https. `proxy`: with another choice of faults."""
    proxy = proxy or Proxy()
    proxy.upstream = upstream
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    proxy.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*pem))
    return chain, secret


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def setup(self) -> None:
        super().setup()
        with self.proxy.changed:
            self.proxy.connections += 1
            self.proxy.open += 1

    def finish(self) -> None:
        super().finish()
        self.connection.close()
        with self.proxy.changed:
            self.proxy.open -= 1
            self.proxy.changed.notify_all()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True  # a client that does not trust us, or has gone

    def _serve(self) -> None:
        self.proxy.forwarded += self.path.startswith("http://")
        self.proxy.ranges.append(self.headers.get("Range", ""))
        kind = self.proxy.fault(self.command, dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))
        if kind == "early_answer":
            self._refuse(403, "AccessDenied")
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind in ("no_answer", "silent"):
            self.close_connection = True
            self._wait_until_left(kind)
        elif kind == "skewed":
            self._refuse(403, "RequestTimeTooSkewed", seconds_behind=3600)
        elif kind in CODES:
            self._refuse(int(kind), CODES[kind])
        else:
            self._pass_on(body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _pass_on(self, body: bytes, kind: str) -> None:
        address = urlsplit(self.proxy.upstream).netloc
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        upstream = HTTPConnection(address, timeout=LIMIT_S)
        try:
            upstream.request(self.command, self.path.removeprefix(f"http://{address}"), body=body, headers=headers)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        self.close_connection = kind in ("lost_answer", "cut_answer", "closed_later", "stalled")
        if kind != "lost_answer":
            self._answer(response, content[: len(content) // 2] if kind in ("cut_answer", "stalled") else content)
        self._wait_until_left(kind)

    def _wait_until_left(self, kind: str) -> None:
        if kind in ("silent", "stalled"):
            self.connection.recv(1)

    def _answer(self, response: HTTPResponse, content: bytes) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", response.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, seconds_behind: float = 0.0) -> None:
        content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() if code else b""
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() - seconds_behind, usegmt=True))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Tests look at what was seen themselves."""
