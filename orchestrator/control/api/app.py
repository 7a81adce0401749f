"""The application."""

from __future__ import annotations

import json
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.control.api import cluster, code, jobs, page, users, views
from orchestrator.control.api.access import Shared
from orchestrator.control.api.answers import tell_errors
from orchestrator.control.api.follow import Watch
from orchestrator.control.api.listing import Listing
from orchestrator.control.client import Client
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.audit import AuditLog
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.paths import Home

LARGEST_BODY_BYTES = 4 * 1024 * 1024
LARGEST_CODE_BYTES = 128 * 1024 * 1024
LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]


def create_app(home: Home, store: JobStore, pulse: Pulse, *, open_reads: bool = False) -> FastAPI:
    """The API on the jobs of `store`, which nobody else waits on.

    `open_reads`: requests that change nothing need no token. They are then taken only by a name of this machine, so that no page in a
    browser can reach them under a name of its own.
    """
    app = FastAPI(
        title="orchestrator", version=version("orchestrator"), description="Jobs of a Ray cluster: submit, follow, stop, resume.",
        docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json",
    )  # fmt: skip
    AuditLog(store.engine)  # its table is there from the start
    app.state.shared = Shared(
        client=Client(home, store), users=Users(store.engine), watch=Watch(store),
        listing=Listing(store.engine), pulse=pulse,
        open_reads=open_reads,
    )  # fmt: skip
    tell_errors(app)
    app.include_router(jobs.router)
    app.include_router(cluster.router)
    app.include_router(users.router)
    app.include_router(code.router)
    app.include_router(views.router)
    app.include_router(page.router)
    app.add_middleware(BodyLimit, most_bytes=LARGEST_BODY_BYTES, most_code_bytes=LARGEST_CODE_BYTES)
    if open_reads:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    return app


class BodyLimit:
    """Refuses what is larger before it is read whole."""

    def __init__(self, app: ASGIApp, most_bytes: int, most_code_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._most_code_bytes = most_code_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most_bytes = self._most_code_bytes if scope["path"].startswith(code.PREFIX) else self._most_bytes
        body: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body.append(message.get("body", b""))
            size, more = size + len(body[-1]), message.get("more_body", False)
            if size > most_bytes:
                await _refuse(send, most_bytes)
                return
        await self._app(scope, _once(b"".join(body), receive), send)


def _once(body: bytes, receive: Receive) -> Receive:
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


async def _refuse(send: Send, most_bytes: int) -> None:
    content = json.dumps({"error": "UserError", "message": f"the request is too large: allowed are {most_bytes} bytes."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})
