"""Who asks. Every request that changes something needs a token; so does every other one unless reads are open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from orchestrator.control.api.follow import Watch
from orchestrator.control.api.listing import Listing
from orchestrator.control.api.turns import Turns
from orchestrator.control.client import Client
from orchestrator.control.permissions import ANYBODY
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.users import Users
from orchestrator.errors import AuthenticationError

_READS = ("GET", "HEAD")
_FORWARDED = ("X-Forwarded-For", "Forwarded", "Via")
"""Headers of a request that came through a proxy: it is not of this machine, whatever its address is."""
_bearer = HTTPBearer(auto_error=False, description="A token made by `orchestrator user add`")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all requests share."""

    client: Client
    users: Users
    watch: Watch
    listing: Listing
    pulse: Pulse
    turns: Turns
    open_reads: bool


def shared(request: Request) -> Shared:
    found: Shared = request.app.state.shared
    return found


def asker(
    request: Request, api: Annotated[Shared, Depends(shared)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Client:  # fmt: skip
    """The jobs, for the user whose token came along. Raises AuthenticationError."""
    if credentials is not None:
        return api.client.acting_for(api.users.of_token(credentials.credentials))
    if api.open_reads and request.method in _READS and not any(name in request.headers for name in _FORWARDED):
        return api.client.acting_for(ANYBODY)
    raise AuthenticationError(
        "a token is needed: `Authorization: Bearer TOKEN`; `orchestrator user add NAME` makes one, by an admin or beside the server."
    )


async def turn(request: Request) -> AsyncIterator[None]:
    """Held until the route has returned."""
    async with shared(request).turns.taken():
        yield


async def admit_code(api: Shared, request: Request) -> None:
    """Raises AuthenticationError, or PermissionDenied, for who may not send packaged working directories."""
    client = await run_in_threadpool(asker, request, api, await _bearer(request))
    await run_in_threadpool(client.check_may_keep, request.url.path.rpartition("/")[2])


Api = Annotated[Shared, Depends(shared)]
Asker = Annotated[Client, Depends(asker)]
Turn = Annotated[None, Depends(turn, scope="function")]
"""Of what waits for an object store or MLflow. It stands behind `Asker`: who may not ask takes none."""
