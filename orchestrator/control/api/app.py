"""The application."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from orchestrator.control.api import cluster, code, jobs, page, users, views
from orchestrator.control.api.access import Shared, admit_code
from orchestrator.control.api.answers import tell_errors
from orchestrator.control.api.bodies import BodyLimit
from orchestrator.control.api.follow import Watch
from orchestrator.control.api.listing import Listing
from orchestrator.control.api.turns import Turns
from orchestrator.control.client import Client
from orchestrator.control.pulse import Pulse
from orchestrator.control.reading.opened import Opened, open_for_answers
from orchestrator.control.records.audit import AuditLog
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.paths import Home

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
        client=Client(home, store, opened=Opened(open_for_answers)), users=Users(store.engine), watch=Watch(store),
        listing=Listing(store.engine), pulse=pulse, turns=Turns(),
        open_reads=open_reads,
    )  # fmt: skip
    tell_errors(app)
    app.include_router(jobs.router)
    app.include_router(cluster.router)
    app.include_router(users.router)
    app.include_router(code.router)
    app.include_router(views.router)
    app.include_router(page.router)
    app.add_middleware(BodyLimit, admit=partial(admit_code, app.state.shared))
    if open_reads:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    return app
