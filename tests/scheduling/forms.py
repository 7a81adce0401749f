"""A moment in other forms: in another order, as it is stored, as Python that makes it, and after its plan was carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from random import Random
from typing import Any

from scheduling.fairness import used
from scheduling.machine import Machine
from scheduling.strategies import Moment, Planner

from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Plan, Policy, Run, Tenant, Usage


def told(plan: Plan) -> dict[str, Any]:
    """The plan, with what may be made as it is read."""
    return {**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, "reasons": dict(plan.reasons)}


def shuffled(moment: Moment, rng: Random) -> Moment:
    def mixed(items: Any) -> tuple[Any, ...]:
        return tuple(rng.sample(tuple(items), len(tuple(items))))

    return replace(
        moment, cluster=ClusterView(nodes=mixed(moment.cluster.nodes)), queue=mixed(moment.queue), running=mixed(moment.running),
        usage=replace(moment.usage, charged=dict(mixed(moment.usage.charged.items()))),
        policy=replace(moment.policy, tenants=dict(mixed(moment.policy.tenants.items()))),
    )  # fmt: skip


def stored(moment: Moment) -> dict[str, Any]:
    """As a controller keeps it; the policy is configuration."""
    return {
        "cluster": moment.cluster.to_dict(),
        "queue": [asdict(job) for job in moment.queue],
        "running": [asdict(run) for run in moment.running],
        "usage": {**asdict(moment.usage), "history": [[*key, times] for key, times in moment.usage.history.items()]},
        "now": moment.now,
        "policy": asdict(moment.policy),
    }


def restored(values: Mapping[str, Any], planner: Planner) -> Moment:
    usage = values["usage"]
    tenants = {name: Tenant(**tenant) for name, tenant in values["policy"]["tenants"].items()}
    history = {(tenant, width): tuple(times) for tenant, width, times in usage["history"]}
    return Moment(
        cluster=ClusterView.from_dict(values["cluster"]),
        queue=tuple(map(job_from, values["queue"])),
        running=tuple(map(run_from, values["running"])),
        usage=Usage(**{**usage, "history": history}),
        now=values["now"],
        planner=planner,
        policy=Policy(**{**values["policy"], "tenants": tenants, "levels": tuple(values["policy"]["levels"])}),
    )


def applied(moment: Moment, plan: Plan) -> Moment:
    """The moment after the plan was carried out, at the same time."""
    machine = Machine(moment.cluster.nodes, moment.policy, moment.now, leave_s=30.0)
    machine.waiting = {job.id: job for job in moment.queue}
    machine.runs = {run.job.id: run for run in moment.running}
    machine.apply(plan)
    after = machine.moment()
    return replace(moment, queue=after.queue, running=after.running)


def after_leaving(moment: Moment) -> Moment:
    """The moment after all runs that were told to leave have left, at the same time."""
    gone = [run for run in moment.running if run.leaving]
    waiting = [
        replace(
            run.job,
            queued_s=moment.now,
            attained=run.attained(moment.now),
            ran_s=run.job.ran_s + moment.now - run.started_s,
            preemptions=run.job.preemptions + 1,
        )
        for run in gone
    ]
    tenants = {*moment.usage.charged, *(run.job.tenant for run in moment.running)}
    charged = {name: used(moment, name) * moment.policy.tenants.get(name, Tenant()).weight for name in sorted(tenants)}
    return replace(
        moment,
        queue=(*moment.queue, *waiting),
        running=tuple(run for run in moment.running if run not in gone),
        usage=replace(moment.usage, charged=charged, charged_at_s=moment.now),
    )


def job_from(values: Mapping[str, Any]) -> Job:
    lists = {name: tuple(values[name]) for name in ("smaller", "larger")}
    cleared = tuple((node, count) for node, count in values["cleared"])
    return Job(**{**values, "demand": Demand.from_dict(values["demand"]), "cleared": cleared, **lists})


def run_from(values: Mapping[str, Any]) -> Run:
    return Run(**{**values, "job": job_from(values["job"]), "placement": tuple((node, count) for node, count in values["placement"])})


def code(value: Any) -> str:
    """Python that makes it; what is as by default is left out."""
    if is_dataclass(value):
        said = [(field.name, getattr(value, field.name), field) for field in fields(value) if field.compare]
        return f"{type(value).__name__}({', '.join(f'{name}={code(item)}' for name, item, field in said if not _is_default(item, field))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(code, value))}{',' if len(value) == 1 else ''})"
    return f"{value!r}" if not isinstance(value, Mapping) else f"{{{', '.join(f'{key!r}: {code(item)}' for key, item in value.items())}}}"


def shrunk(moment: Moment, fails: Callable[[Moment], bool]) -> Moment:
    """A smaller moment that fails too: without any node, job, run or tenant that can be left out one by one."""
    for smaller in _smaller(moment):
        if _still(smaller, fails):
            return shrunk(smaller, fails)
    return moment


def _smaller(moment: Moment) -> Iterator[Moment]:
    for name in ("queue", "running"):
        items = getattr(moment, name)
        yield from (replace(moment, **{name: items[:at] + items[at + 1 :]}) for at in range(len(items)))
    nodes, tenants = moment.cluster.nodes, moment.policy.tenants
    yield from (replace(moment, cluster=ClusterView(nodes=nodes[:at] + nodes[at + 1 :])) for at in range(len(nodes)))
    for name in tenants:
        yield replace(moment, policy=replace(moment.policy, tenants={key: tenants[key] for key in tenants if key != name}))
    for name in ("charged", "history"):
        if getattr(moment.usage, name):
            yield replace(moment, usage=replace(moment.usage, **{name: {}}))


def _still(moment: Moment, fails: Callable[[Moment], bool]) -> bool:
    try:
        return fails(moment)
    except Exception:  # noqa: BLE001 - left out was what makes it a moment, or it is another defect
        return False


def _is_default(value: Any, field: Any) -> bool:
    return bool(value == field.default) or (callable(field.default_factory) and value == field.default_factory())
