"""/v1/jobs: submit, list, look at, follow, stop and resume jobs."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.control.api.access import Api, Asker, Turn
from orchestrator.control.api.answers import PROBLEMS, answer, encoded
from orchestrator.control.api.shapes import (
    EventPage,
    JobPage,
    JobView,
    LogPage,
    Number,
    Priority,
    Rank,
    Removal,
    RemovedView,
    Resumption,
    Stop,
    Submission,
    Wait,
)
from orchestrator.control.client import Client
from orchestrator.control.reading import pages
from orchestrator.control.reading.logs import LogLine
from orchestrator.events import Event
from orchestrator.job import Job, JobState, job_to_dict

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)

LOOK_S = 1.0
"""Between two looks at a job's logs while somebody waits for more."""
_MOST = 10_000
_EVENTS = 1000

JobName = Annotated[str, Path(description="Its id, or the beginning of it")]


@router.post("", status_code=201, response_model=JobView)
def submit(asker: Asker, asked: Submission) -> Response:
    """Queue a job. When the answer comes it is durable."""
    return answer(job_to_dict(asker.submit(asked.spec, asked.secrets, asked.id)), 201)


@router.get("", response_model=JobPage)
def list_jobs(
    asker: Asker, api: Api, state: JobState | None = None, tenant: str | None = None, user: str | None = None,
    after: Annotated[str, Query(description="`next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 1000, view: Literal["short", "full"] = "short",
) -> Response:  # fmt: skip
    """Jobs in the order of their submission, in short or whole."""
    found = api.listing.page(state=state, tenant=tenant, user=user, after=after, limit=limit + 1)
    shown, now = found[:limit], time.time()
    jobs = (kept.shown(now) if view == "short" else encoded(job_to_dict(asker.job(kept.summary.id))) for kept in shown)
    following = encoded(shown[-1].summary.id if len(found) > limit else "")
    return Response(b'{"jobs": [%b], "next": %b}' % (b", ".join(jobs), following), media_type="application/json")


@router.get("/{job}", response_model=JobView)
def job(asker: Asker, job: JobName) -> Response:
    """One job, whole."""
    return answer(job_to_dict(asker.job(job)))


@router.get("/{job}/events", response_model=EventPage)
async def events(
    asker: Asker, api: Api, job: JobName, after: Number = 0, limit: Annotated[int, Query(ge=1, le=_EVENTS)] = _EVENTS, wait_s: Wait = 0.0
) -> Response:
    """What happened to a job, from the event number `after` on. With `wait_s` the answer waits for the next one."""
    deadline_s = time.monotonic() + wait_s
    while True:
        found, told = await run_in_threadpool(_events, asker, job, after, limit)
        ended = found.state.terminal and len(told) < limit
        if told or ended or not await api.watch.change(deadline_s):
            shown = [_event(seq, event) for seq, event in told]
            return answer({"events": shown, "next": told[-1][0] if told else after, "ended": ended})


@router.get("/{job}/logs", response_model=LogPage)
async def logs(
    asker: Asker, api: Api, job: JobName, rank: Rank | None = None,
    after: Annotated[str, Query(description="`next` of the page before; empty: from the beginning")] = "", wait_s: Wait = 0.0,
    offsets: Annotated[bool, Query(description="Each line with the offset of what comes after it")] = False,
) -> Response:  # fmt: skip
    """What the ranks printed, over all restarts, about a megabyte at a time. With `wait_s` the answer waits for more."""
    deadline_s = time.monotonic() + wait_s
    while True:
        found = await run_in_threadpool(asker.job, job)
        async with api.turns.taken():
            page = await run_in_threadpool(asker.logs, found, after, rank)
        if page.lines or page.ended or not await api.watch.pause(LOOK_S, deadline_s):
            return await run_in_threadpool(shown, page, offsets)


@router.get("/{job}/artifacts/{name}", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
def artifact(asker: Asker, _turn: Turn, job: JobName, name: str) -> Response:
    """A file that the job has left: `evaluation.json`, `history.json`, `sample.txt` ..."""
    return Response(asker.artifact(asker.job(job), name), media_type="application/octet-stream")


@router.post("/{job}/stop", response_model=JobView)
def stop(asker: Asker, job: JobName, asked: Stop) -> Response:
    """Ask a job to stop. Of two requests the stronger one holds; a job that has ended stays as it is."""
    return answer(job_to_dict(asker.request_stop(job, asked.mode)))


@router.get("/{job}/explanation")
def explanation(asker: Asker, job: JobName) -> Response:
    """Why a job waits, who holds what it needs, when it starts, and what would let it start now."""
    return answer(asker.explain(job).to_dict())


@router.post("/{job}/priority", response_model=JobView)
def priority(asker: Asker, job: JobName, asked: Priority) -> Response:
    """Of a job that has not ended, from the next decision on."""
    return answer(job_to_dict(asker.set_priority(job, asked.priority)))


@router.post("/{job}/resume", response_model=JobView)
def resume(asker: Asker, job: JobName, asked: Resumption) -> Response:
    """Queue a job that has ended once more: it goes on from its newest commit."""
    return answer(job_to_dict(asker.resume(job, asked.spec, asked.secrets)))


@router.post("/{job}/remove", response_model=RemovedView)
def remove(asker: Asker, _turn: Turn, job: JobName, asked: Removal) -> Response:
    """Delete what a job that has ended keeps in its object store, and its MLflow run: some seconds' worth; ask until it is done."""
    job_id = asker.job(job).id
    return answer({"id": job_id, **dataclasses.asdict(asker.remove(job_id, asked.secrets))})


def _events(asker: Client, job_id: str, after: int, limit: int) -> tuple[Job, list[tuple[int, Event]]]:
    """The job first: what was told before it ended is then seen."""
    found = asker.job(job_id)
    return found, asker.events(found.id, after, limit)


def shown(page: pages.LogPage, offsets: bool) -> Response:
    return answer({"lines": [_line(line, offsets) for line in page.lines], "next": page.offset, "ended": page.ended})


def _line(line: LogLine, offsets: bool) -> dict[str, Any]:
    told = {"rank": line.rank, "epoch": line.epoch, "time_s": line.time_s, "text": line.text}
    return {**told, "offset": line.offset} if offsets else told


def _event(seq: int, event: Event) -> dict[str, Any]:
    return {"seq": seq, **dataclasses.asdict(event), "kind": event.kind.value}
