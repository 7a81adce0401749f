"""The page: plain files of the package. They hold nothing about jobs, so they need no token; what they show comes from the API.

Nothing but these files runs in it (Content-Security-Policy), and no text becomes markup: scripts may not even ask for that (Trusted Types).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from orchestrator.control.api.etags import tagged

FOLDER = Path(__file__).parent / "ui"
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'", "base-uri 'none'",
    "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
))  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGES = {"": "queue.html", "job": "job.html"}
"""By their address under `/ui/`; the other files are there under their names."""

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/ui")
def find() -> Response:
    return RedirectResponse("ui/", status_code=307, headers=HEADERS)


@router.get("/ui/{name:path}")
def file(name: str, match: Annotated[str, Header(alias="If-None-Match")] = "") -> Response:
    """A file of the page."""
    content = files().get(PAGES.get(name, name))
    if content is None:
        raise HTTPException(404, f"the page has no '{name[:100]}'", HEADERS)
    kind = TYPES[Path(PAGES.get(name, name)).suffix]
    return tagged(content, kind, match, **HEADERS)


@cache
def files() -> dict[str, bytes]:
    """By name. They do not change while the program runs."""
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
