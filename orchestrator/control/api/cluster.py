"""The cluster's nodes, the audit log, who one is, whether the control plane is well, and what Prometheus reads."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from orchestrator.control.api.access import Api, Asker, shared
from orchestrator.control.api.answers import PROBLEMS, answer
from orchestrator.control.api.metrics import CONTENT_TYPE, exposition
from orchestrator.control.api.shapes import Forgiven, Number, PolicyChoice
from orchestrator.control.planning.policy import ChosenPolicy
from orchestrator.control.reading.totals import by_state
from orchestrator.control.scheduler.model import CPU_UNITS
from orchestrator.errors import StoreUnavailable

router = APIRouter(tags=["cluster"], responses=PROBLEMS)


@router.get("/v1/nodes")
def nodes(asker: Asker) -> Response:
    """The cluster's nodes as the controller last saw them, and what has spoken against their machines of late."""
    view, incidents = asker.nodes()
    against = [{**dataclasses.asdict(incident), "kind": incident.kind.name} for incident in incidents]
    return answer({**view.to_dict(), "incidents": against})


@router.post("/v1/nodes/{node}/forgive", response_model=Forgiven)
def forgive(asker: Asker, node: str) -> Response:
    """What has happened on a machine (a host name) counts no more."""
    return answer({"node": node, "incidents": asker.forgive(node)})


@router.get("/v1/cluster")
def cluster(asker: Asker) -> Response:
    """How much there is, and how much of it is taken."""
    view = asker.nodes()[0].there
    found = asker.totals()
    there = {
        "nodes": len(view.nodes), "draining": sum(node.draining for node in view.nodes),
        "cpus": sum(node.cpu_units for node in view.nodes) / CPU_UNITS, "gpus": sum(node.gpus for node in view.nodes),
    }  # fmt: skip
    taken = {
        "workers_placed": sum(place.workers for place in found.places),
        "gpus_taken": sum(place.gpus * place.workers for place in found.places),
    }
    return answer({**there, **taken, "jobs": {state: count for state, count in by_state(found.jobs).items() if count}})


@router.get("/v1/queue")
def queue(asker: Asker) -> Response:
    """The jobs that wait, who is next first: why, and when they start."""
    return answer({"jobs": [row.to_dict() for row in asker.queue()]})


@router.get("/v1/policy")
def policy(asker: Asker) -> Response:
    """By which the control plane decides who runs."""
    return answer(_policy(asker.policy()))


@router.put("/v1/policy")
def set_policy(asker: Asker, asked: PolicyChoice) -> Response:
    """From the next decision on. For admins."""
    return answer(_policy(asker.set_policy(asked.name, asked.settings)))


def _policy(chosen: ChosenPolicy) -> dict[str, Any]:
    return {"name": chosen.name, "settings": dict(chosen.settings)}


@router.get("/v1/audit")
def audit(asker: Asker, after: Number | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> Response:
    """Who changed or tried to change what, in order: the first entries after a number, else the newest. For admins."""
    return answer({"entries": [dataclasses.asdict(entry) for entry in asker.audit(after, limit)]})


@router.get("/v1/user")
def user(asker: Asker) -> Response:
    """Whose token this is."""
    return answer({"name": asker.user.name, "tenant": asker.user.tenant, "role": asker.user.role.value})


@router.get("/v1/health", responses={503: {"description": "the controller's loop hangs, or the job store does not answer"}})
def health(api: Api) -> Response:
    """For load balancers and probes; needs no token. `ready`: the controller has seen the cluster."""
    try:
        api.client.ping()
        store = "answers"
    except StoreUnavailable as error:
        store = str(error)
    well = api.pulse.alive and store == "answers"
    told = {"ok": well, "ready": api.pulse.ready, "controller_silent_s": round(api.pulse.silent_s, 3), "store": store}
    return answer({**told, "version": version("orchestrator")}, 200 if well else 503)


@router.get("/v1/alive", responses={503: {"description": "the controller's loop hangs"}})
async def alive(request: Request) -> Response:
    """For probes that start the service anew; needs no token. Nothing is asked of the job store, and no thread is waited for."""
    pulse = shared(request).pulse
    return answer({"ok": pulse.alive, "controller_silent_s": round(pulse.silent_s, 3)}, 200 if pulse.alive else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(asker: Asker, api: Api) -> Response:
    """For Prometheus."""
    return Response(exposition(asker, api.pulse), media_type=CONTENT_TYPE)
