"""The control plane and its Ray cluster: is there one, does it answer, and does it do what waits for it?"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning
from orchestrator.control.client import Client
from orchestrator.control.database import exists, place_of, shown
from orchestrator.control.environment import remote_environment
from orchestrator.control.lease import living
from orchestrator.control.lock import Holder, holder
from orchestrator.control.scheduler import Standing
from orchestrator.control.store import JobStore
from orchestrator.errors import ClusterError, StateError
from orchestrator.job import JobState
from orchestrator.paths import Home

ANSWER_LIMIT_S = 10.0


def check_control_plane(subject: Subject) -> Iterator[Finding]:
    home, found = subject.home, holder(subject.home)
    try:
        live, elsewhere = _jobs_and_lease(home)
    except (StateError, sa.exc.SQLAlchemyError) as error:
        where, fix = shown(place_of(home)), f"orchestrator ... --home ANOTHER, or mv {_quoted(home)} aside"
        yield problem(f"the job store {where} cannot be used: {str(error).splitlines()[0]}", fix)
        return
    if found is None and elsewhere is not None:
        yield ok(f"the controller on {elsewhere['host']} (pid {elsewhere['pid']}) serves these jobs; {live} have not ended")
    elif found is None:
        yield _nobody(home, live)
    elif not found.ready:
        yield warning(
            f"the controller (pid {found.pid}) is not ready: it waits for Ray at {found.address}", f"tail {home.log('controller')}"
        )
    else:
        yield ok(f"the controller (pid {found.pid}) serves {found.address}; {live} jobs have not ended")


def _nobody(home: Home, live: int) -> Finding:
    left = _last_holder(home)
    if live:
        died = f" since the one with pid {left.pid} died" if left else ""
        return problem(
            f"{live} jobs wait and no controller runs{died}", f"orchestrator up{_of(home)}   (or `down` and `up`, if that does not help)"
        )
    return ok("none runs, and none is needed: the first job starts one")


def _last_holder(home: Home) -> Holder | None:
    try:
        return Holder(**json.loads(home.controller_lock.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _jobs_and_lease(home: Home) -> tuple[int, dict[str, Any] | None]:
    """(how many jobs have not ended, who holds the lease of their store). Raises StateError."""
    if not exists(home):
        return 0, None
    store = JobStore(place_of(home))
    return store.count([state for state in JobState if not state.terminal]), living(store.engine)


def check_cluster(subject: Subject, limit_s: float = ANSWER_LIMIT_S) -> Iterator[Finding]:
    """By Ray itself: does its head let us in, and how are its nodes?"""
    found = holder(subject.home)
    address = subject.cluster.address or (found.address if found else "")
    if not address:
        yield ok("none runs, and none is needed: the first job starts one")
        return
    os.environ.update(remote_environment(subject.home, address))  # before Ray is imported
    from orchestrator.control.cluster import wait_for_ray

    try:
        wait_for_ray(address, limit_s)
    except ClusterError as error:
        fix = (
            "give the right cluster.address, and its token as ~/.ray/auth_token"
            if subject.cluster.address
            else f"orchestrator down{_of(subject.home)}"
        )
        yield problem(f"Ray at {address}: {error}", fix)
        return
    yield from _nodes(subject.home, address)


def _nodes(home: Home, address: str) -> Iterator[Finding]:
    """As the controller saw them last."""
    view = Client(home).nodes()[0].nodes if exists(home) else ()
    gpus, cpus = sum(node.gpus for node in view), sum(node.cpu_units for node in view) / 1e4
    yield ok(f"Ray at {address} answers" + (f": {len(view)} nodes, {cpus:g} CPUs, {gpus} GPUs" if view else ""))
    for node in view:
        if node.standing is not Standing.GOOD:
            said = f"node {node.name} is {node.standing.name.lower()}: failures of late speak against it"
            yield warning(said, f"orchestrator nodes{_of(home)}, and once it is mended: orchestrator nodes forgive {node.name}{_of(home)}")


def _of(home: Home) -> str:
    return "" if home.root == Home.find().root else f" --home {_quoted(home)}"


def _quoted(home: Home) -> str:
    return shlex.quote(str(home.root))
