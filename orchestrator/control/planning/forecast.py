"""When each of the jobs that wait starts, if all run as long as half of the jobs like them and nobody else comes. Pure."""

from __future__ import annotations

from orchestrator.control import scheduler
from orchestrator.control.planning.inputs import Inputs
from orchestrator.control.scheduler import Demand, Plan, Run
from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.place import Place
from orchestrator.control.scheduler.planner import Planner
from orchestrator.control.scheduler.reserve import earliest

MAX_JOBS = 100
"""From the head of the order: when those behind start is anybody's guess."""


def predicted_starts(inputs: Inputs, decided: Plan, now: float) -> dict[str, float]:
    """Seconds since 1970, by job id; of the jobs at the head of the order, those that may start at all. A reserved start is as reserved."""
    waiting = {job.id: job for job in inputs.queue}
    planner = Planner(inputs.cluster.there, inputs.queue, inputs.running, inputs.usage, now, inputs.policy)
    planner.decide(grow=False)
    estimates, soon_s = Estimates(inputs.usage.history), now + inputs.policy.grace_s
    grid = planner.room.soon.copy()
    releases: list[tuple[float, Demand, Place]] = []
    for run, held in planner.room.staying():
        releases.append((_ends_s(run, estimates, now), run.job.demand, held))
    for name, promised in planner.cleared.items():
        releases.append((soon_s + _left_s(waiting[name], estimates), waiting[name].demand, promised))
    found = dict.fromkeys(planner.cleared, soon_s)
    before_s, kept = now, {reservation.job_id: reservation.start_s for reservation in decided.reservations}
    for job in (waiting[name] for name in decided.order[:MAX_JOBS] if name not in planner.cleared):
        kind = planner.room.kind(job.demand)
        if not kind.possible or planner.accounts.refusal(job, job.demand.width):
            continue
        releases.sort(key=lambda row: (row[0], row[2]))
        place = earliest(grid, kind.demand, kind.allowed, releases, now, kind.on_one)
        if place is None:
            continue
        found[job.id] = start_s = max(before_s, place[0], kept.get(job.id, now))
        grid.take(kind.demand, place[1])
        releases.append((start_s + _left_s(job, estimates), kind.demand, place[1]))
        before_s = start_s if inputs.policy.mode == "fifo" else now
    return found | kept


def _ends_s(run: Run, estimates: Estimates, now: float) -> float:
    ran_s = run.job.ran_s + now - run.started_s
    return now + max(estimates.total_s(run.job)[0] - ran_s, ran_s)


def _left_s(job: scheduler.Job, estimates: Estimates) -> float:
    return max(estimates.total_s(job)[0] - job.ran_s, job.ran_s, 1.0)
