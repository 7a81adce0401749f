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
LARGE_AT_ONCE = 2
"""Bodies that are larger than those of all other requests: so many are in memory at the same time."""
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
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

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
        told = request.headers.get("content-length", "")
        limit = await self._limit(request, int(told) if told.isdecimal() else 0, LARGEST_BODY_BYTES, held)
        body: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body.append(message.get("body", b""))
            size, more = size + len(body[-1]), message.get("more_body", False)
            limit = await self._limit(request, size, limit, held)
        return b"".join(body)

    async def _limit(self, request: Request, num_bytes: int, limit: int, held: AsyncExitStack) -> int:
        """How many bytes may come, now that there are `num_bytes` at least and `limit` was the most until here."""
        if num_bytes <= limit:
            return limit
        most = LARGEST_CODE_BYTES if request.url.path.startswith(code.PREFIX) else LARGEST_BODY_BYTES
        if num_bytes > most:
            raise _Refused(f"the request is too large: allowed are {most} bytes.", 413)
        await self._admit(request)
        await held.enter_async_context(self._large)
        return most

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


def _once(body: bytes, receive: Receive) -> Receive:
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay
