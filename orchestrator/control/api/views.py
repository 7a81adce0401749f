"""What the page shows, put together so that it asks once in a while and learns with an ETag that nothing has changed."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from orchestrator.control.api.access import Api, Asker, Turn
from orchestrator.control.api.answers import PROBLEMS, encoded
from orchestrator.control.api.etags import tagged
from orchestrator.control.api.jobs import JobName, shown
from orchestrator.control.api.shapes import LogPage, Number, Rank
from orchestrator.control.reading.curve import Curves
from orchestrator.control.reading.job_page import job_page
from orchestrator.control.reading.logs import LogReader
from orchestrator.control.reading.overview import Window
from orchestrator.control.reading.pages import read_tail

router = APIRouter(tags=["views"], responses={**PROBLEMS, 304: {"description": "as the ETag says"}})
_curves = Curves()

Match = Annotated[str, Header(alias="If-None-Match", description="ETag of the answer before")]


class Part(BaseModel):
    jobs: list[dict[str, Any]]
    total: int
    offset: int


class Overview(BaseModel):
    cluster: dict[str, float]
    nodes: list[dict[str, Any]]
    tenants: list[dict[str, Any]]
    jobs: dict[str, int]
    running: Part
    waiting: Part
    ended: Part


class JobPage(BaseModel):
    job: dict[str, Any]
    ledger: dict[str, Any] | None
    links: dict[str, str]


class Curve(BaseModel):
    training: list[list[float]] = Field(description="[step, loss] of each point")
    validation: list[list[float]]


@router.get("/v1/overview", response_model=Overview)
def overview(
    asker: Asker, find: Annotated[str, Query(max_length=200, description="Only jobs with this in their id, user or tenant")] = "",
    running: Number = 0, waiting: Number = 0, ended: Number = 0, limit: Annotated[int, Query(ge=1, le=500)] = 50, match: Match = "",
) -> Response:  # fmt: skip
    """What is in use, by node and by tenant, and of each list of jobs the part that begins at an offset."""
    window = Window(find=find.replace("\0", ""), limit=limit, offsets={"running": running, "waiting": waiting, "ended": ended})
    return tagged(encoded(asker.overview(window)), "application/json", match)


@router.get("/v1/jobs/{job}/page", response_model=JobPage)
def page(asker: Asker, api: Api, job: JobName, match: Match = "") -> Response:
    """A job, its goodput ledger as of now, and links to its MLflow run and to Ray's dashboard."""
    return tagged(encoded(job_page(asker.job(job), time.time(), api.pulse.dashboard)), "application/json", match)


@router.get("/v1/jobs/{job}/curve", response_model=Curve)
def curve(
    asker: Asker, _turn: Turn, job: JobName, points: Annotated[int, Query(ge=4, le=10_000)] = 500, match: Match = ""
) -> Response:  # fmt: skip
    """Its loss by step up to the newest commit, thinned out so that no spike is lost."""
    found = asker.job(job)
    return tagged(encoded(_curves.read(asker.object_store(found), found.id, points)), "application/json", match)


@router.get("/v1/jobs/{job}/tail", response_model=LogPage)
def tail(
    asker: Asker, _turn: Turn, job: JobName, rank: Rank | None = None, lines: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> Response:
    """The last lines that its ranks printed, about a megabyte at most; `next` is where `logs` goes on."""
    found = asker.job(job)
    return shown(read_tail(LogReader(asker.object_store(found), found.id, rank), found, lines), offsets=False)
