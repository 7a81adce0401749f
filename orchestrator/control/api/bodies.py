"""How much of a request is read, how long that may take, and for whom, before anything looks at what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.control.api import code
from orchestrator.control.api.answers import problem, status_of
from orchestrator.errors import OrchestratorError

LARGEST_BODY_BYTES = 4 * 1024 * 1024
LARGEST_CODE_BYTES = 128 * 1024 * 1024
PACKAGES_AT_ONCE = 2
"""So many are in memory, and are unpacked to be checked, at the same time: a small one may unpack to much."""
RECEIVE_LIMIT_S = 300.0


class _Refused(Exception):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BodyLimit:
    """Refuses what is larger before it is read whole. A package of code may be, from who may send one."""

    def __init__(self, app: ASGIApp, admit: Callable[[Request], Awaitable[None]], receive_limit_s: float = RECEIVE_LIMIT_S) -> None:
        """`admit` raises OrchestratorError for who may not send a package."""
        self._app = app
        self._admit = admit
        self._receive_limit_s = receive_limit_s
        self._packages = asyncio.Semaphore(PACKAGES_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._receive_limit_s):
                    body = await self._body(Request(scope), receive, held)
            except (_Refused, OrchestratorError, TimeoutError) as error:
                await self._refuse(error, scope, receive, send)
                return
            if body is not None:
                await self._app(scope, _once(body, receive), send)

    async def _body(self, request: Request, receive: Receive, held: AsyncExitStack) -> bytes | None:
        """None: who sends it has gone."""
        is_code = request.method == "PUT" and request.url.path.startswith(code.PREFIX)
        most = LARGEST_CODE_BYTES if is_code else LARGEST_BODY_BYTES
        told = request.headers.get("content-length", "")
        _check_size(int(told) if told.isdecimal() else 0, most)
        if is_code:
            await self._admit(request)
            await held.enter_async_context(self._packages)
        body: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body.append(message.get("body", b""))
            size, more = size + len(body[-1]), message.get("more_body", False)
            _check_size(size, most)
        return b"".join(body)

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        match error:
            case OrchestratorError():
                response = problem(type(error).__name__, str(error), status_of(error))
            case _Refused():
                response = problem("UserError", str(error), error.status)
            case _:
                response = problem("UserError", f"the request did not arrive within {self._receive_limit_s:g} s.", 408)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def _check_size(num_bytes: int, most: int) -> None:
    if num_bytes > most:
        raise _Refused(f"the request is too large: allowed are {most} bytes.", 413)


def _once(body: bytes, receive: Receive) -> Receive:
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay
