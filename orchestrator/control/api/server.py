"""The API's thread beside the controller, with an event loop and connections to the store of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.control.api.answers import problem
from orchestrator.control.api.app import create_app
from orchestrator.control.api.follow import Watch
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.store import JobStore
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.paths import Home

GRACE_S = 2
"""That requests have to end when the server stops. Those that wait for news end at once, and who asked comes back by himself."""

log = logging.getLogger("api")


class ApiServer:
    """Listens from its construction on, so that a port that is taken is told at once; answers from `start` on."""

    def __init__(self, host: str, port: int, *, open_reads: bool = False) -> None:
        """`port` 0: any. Raises ConfigError for open reads elsewhere than on this machine, ClusterError if nobody can listen there."""
        if open_reads and not is_loopback(host):
            raise ConfigError(f"--open-reads with --host {host} would show the jobs to the network: allowed is it with --host 127.0.0.1.")
        self._open_reads = open_reads
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            raise ClusterError(f"the API cannot listen at {host}:{port}: {error.strerror or error}.") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, home: Home, store: JobStore, pulse: Pulse) -> None:
        app = create_app(home, store, pulse, open_reads=self._open_reads)
        config = uvicorn.Config(
            _told_of_the_end(app), http="httptools", loop="uvloop", log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S,
            server_header=False, lifespan="off", ws="none",
        )  # fmt: skip
        self._server = _Server(config, app.state.shared.watch)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="api", daemon=True)
        self._thread.start()
        threading.Thread(target=app.state.shared.listing.page, name="first list", daemon=True).start()  # so that the first one is as quick
        log.info("the API answers at %s", self.url)

    def close(self) -> None:
        """Listens no more."""
        self._socket.close()

    def stop(self) -> None:
        """Within a few seconds."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(GRACE_S + 3)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, watch: Watch) -> None:
        super().__init__(config)
        self._watch = watch

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watch.stop()
        await super().shutdown(sockets)


def _told_of_the_end(app: ASGIApp) -> ASGIApp:
    """A request that is cut off after the grace is answered, and a line of the log, not a traceback."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:
            log.warning("the server stops before %s %s is answered", scope.get("method"), scope.get("path"))
            if not begun:
                await problem("ClusterError", "the server stops; ask again", 503)(scope, receive, send)

    return asked


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
