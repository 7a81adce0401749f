"""A plan carried out: places are given, orders to leave are written, each in the job's row before anything else happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from orchestrator.control.nodes.groups import WorkerGroups
from orchestrator.control.planning.live import LiveJobs
from orchestrator.control.planning.receipt import opened
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, Demand, Plan
from orchestrator.control.scheduler.model import Placement, Preempt, Resize
from orchestrator.control.scheduler.place import Grid
from orchestrator.errors import StaleWrite
from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobState
from orchestrator.service import Order
from orchestrator.supervision.ledger import Wait

log = logging.getLogger("controller")


class Execution:
    def __init__(self, store: JobStore, groups: WorkerGroups, jobs: LiveJobs, admitted: Callable[[Job], None]) -> None:
        """`admitted` hears of each job that was given a place."""
        self._store, self._groups, self._jobs, self._admitted = store, groups, jobs, admitted

    def carry_out(self, decided: Plan, now: float) -> bool:
        """Whether all of it was done; what was not is decided anew."""
        short = set(decided.short)
        acts: list[tuple[str, Callable[[Job], Job]]] = [
            *((order.job_id, lambda job, order=order: self._preempt(job, order, now)) for order in decided.preempts),
            *((order.job_id, lambda job, order=order: self._resize(job, order, now)) for order in decided.resizes),
            *(
                (start.job_id, lambda job, start=start: self._start(job, start.placement, start.warning, job.id in short, now))
                for start in decided.starts
            ),
        ]
        done = [self._guarded(job_id, act) for job_id, act in acts]
        return all(done)

    def go_on(self, cluster: ClusterView, now: float) -> None:
        """Jobs that have left to be resized start where they were told to; those whose place is not free any more wait as others do."""
        for job in self._jobs.waiting():
            order = job.order
            if order is not None and order.kind == "resize" and order.left and order.placement and not job.stop_requested:
                self._guarded(job.id, lambda job, order=order: self._go_on(job, order, cluster, now))  # type: ignore[misc]

    def _guarded(self, job_id: str, act: Callable[[Job], Job]) -> bool:
        """False if a client has changed the row meanwhile."""
        try:
            self._jobs.wrote(act(self._jobs[job_id]))
        except StaleWrite as stale:
            log.info("%s: %s", job_id, stale)
            return False
        return True

    def _start(self, job: Job, placement: Placement, warning: str, is_short: bool, now: float) -> Job:
        where = ", ".join(f"{workers} on {node[:8]}" for node, workers in placement)
        events = [Event(kind=EventKind.ADMITTED, job_id=job.id, time_s=now, message=f"workers: {where}{_after_nodes(job, now)}")]
        if warning:
            events.append(Event(kind=EventKind.WARNING, job_id=job.id, time_s=now, message=warning))
        given, asked = sum(workers for _, workers in placement), job.spec.resources.num_workers
        if given < asked:
            why = "because nodes are missing" if is_short else "because others have the rest"
            message = f"{given} of {asked} workers, {why}"
            events.append(Event(kind=EventKind.RESIZED, job_id=job.id, time_s=now, message=message, fields={"workers": given}))
        order = None if job.order is None else replace(job.order, placement=())  # tried once
        service = replace(job.service, waited_s=job.service.waited_s + max(0.0, now - job.waits_since_s))
        standby = self._groups.take_standby(job, placement)
        try:
            new = self._store.update(
                job, events, state=JobState.STARTING, placement=placement, standby=standby, started_s=now, reason=warning, service=service,
                order=order, position=0, start_s=None, reserved_s=None, cleared=(),
            )  # fmt: skip
        except StaleWrite:
            self._groups.return_standby(placement, standby)
            raise
        log.info("%s admitted: %s", job.id, where)
        self._admitted(new)
        return new

    def _go_on(self, job: Job, order: Order, cluster: ClusterView, now: float) -> Job:
        if not self._is_free(job, order.placement, cluster):
            return self._store.update(job, order=replace(order, placement=()))
        return self._start(job, order.placement, "", False, now)

    def _is_free(self, job: Job, placement: Placement, cluster: ClusterView) -> bool:
        grid = Grid(cluster)
        for other in self._jobs.all():
            if other.state.active:
                grid.take(Demand.of(other.spec), grid.indexed(other.placement))
        place = grid.indexed(placement)
        grid.take(Demand.of(job.spec), place)
        return len(place) == len(placement) and all(grid.gpus[i] >= 0 and grid.cpus[i] >= 0 for i, _ in place)

    def _preempt(self, job: Job, told: Preempt, now: float) -> Job:
        if job.order is not None and not job.order.left:
            return job
        order = self._order(job, "preempt", told.why, told.for_job)
        fields = {"for_job": told.for_job, "expected_gpu_s": told.cost}
        event = Event(kind=EventKind.PREEMPTED, job_id=job.id, time_s=now, message=told.why, fields=fields)
        log.info("%s is told to leave: %s", job.id, told.why)
        return self._store.update(job, [event], order=replace(order, cost=told.cost))

    def _resize(self, job: Job, told: Resize, now: float) -> Job:
        if job.order is not None and not job.order.left:
            return job
        asked = job.spec.resources.num_workers
        which = f"all {asked} workers have" if told.workers == asked else f"{told.workers} of {asked} workers have"
        why = f"{which} a place again" if not told.for_job else f"it makes room for {told.for_job} with {told.workers} of {asked} workers"
        order = replace(self._order(job, "resize", why, told.for_job), placement=told.placement)
        log.info("%s is told to change its workers: %s", job.id, why)
        return self._store.update(job, order=order, service=replace(job.service, resized_s=now))

    def _order(self, job: Job, kind: str, why: str, for_job: str) -> Order:
        ledger, ledger_s = opened(job)
        return Order(kind=kind, why=why, for_job=for_job, ledger=ledger, ledger_s=ledger_s)


def _after_nodes(job: Job, now: float) -> str:
    """How long it has waited for nodes; empty if none were asked for."""
    wait = Wait.of(job)
    if not wait.asked_s:
        return ""
    launched_s = wait.launched_s or now
    return (
        f"; nodes were asked for {now - wait.asked_s:.0f} s before: {launched_s - wait.asked_s:.0f} s until all were on their way, "
        f"{now - launched_s:.0f} s until the place was there"
    )
