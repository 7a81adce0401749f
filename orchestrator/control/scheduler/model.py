"""What the scheduler sees and what it decides. Pure data.

CPUs are counted in whole units of 1/10000, so that any number of half workers adds up exactly.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from orchestrator.spec import JobSpec

CPU_UNITS = 10_000
Placement = tuple[tuple[str, int], ...]
"""(node id, number of workers) of each bundle."""
Labels = tuple[tuple[str, str], ...]
"""(key, value), ascending."""


class Standing(enum.IntEnum):
    """By what has happened on a machine lately."""

    GOOD = 0
    SUSPECT = 1  # taken last
    EXCLUDED = 2  # not taken by a job that could ever run without it
    COMING = 3  # not there yet: the autoscaler may start it; taken after all that are there


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node has in all, not what is free on it."""

    id: str
    host: str = ""
    """Name of the machine; stays when Ray starts anew."""
    cpu_units: int
    gpus: int = 0
    alive: bool = True
    draining: bool = False
    drain_deadline_s: float | None = None
    """Seconds since 1970, of a node that is draining; None: it names none."""
    standing: Standing = Standing.GOOD
    type: str = ""
    """Of the autoscaler's configuration; empty: the autoscaler did not start it."""
    starting: bool = False
    """Of a node that is not there yet: it was asked for, and is on its way."""
    labels: Labels = ()
    """Ray's, but for the node's id."""

    @property
    def coming(self) -> bool:
        """It is not there yet."""
        return self.standing is Standing.COMING

    def has(self, labels: Labels) -> bool:
        """All of them."""
        return set(labels).issubset(self.labels)

    @property
    def name(self) -> str:
        """For people."""
        return self.host or self.id[:8]


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    nodes: tuple[Node, ...] = ()

    @cached_property
    def usable(self) -> tuple[Node, ...]:
        """Those that take jobs, in order of their ids."""
        return tuple(sorted((node for node in self.nodes if node.alive and not node.draining), key=lambda node: node.id))

    @cached_property
    def coming(self) -> dict[str, Node]:
        """Those that are not there yet, by their ids."""
        return {node.id: node for node in self.nodes if node.coming}

    @cached_property
    def there(self) -> ClusterView:
        """Without those that are not there yet."""
        return ClusterView(nodes=tuple(node for node in self.nodes if not node.coming)) if self.coming else self

    @cached_property
    def excluded(self) -> dict[str, str]:
        """The names of those that only a job takes that could never run without, by id."""
        return {node.id: node.name for node in self.usable if node.standing is Standing.EXCLUDED}

    @cached_property
    def index(self) -> dict[str, int]:
        """Where a node stands in `usable`, by its id."""
        return {node.id: position for position, node in enumerate(self.usable)}

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What plans have derived from the nodes, and from the queue and the runs that came last; the next finds most of it the same."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": [vars(node) for node in self.nodes]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClusterView:
        return cls(nodes=tuple(_node(node) for node in values["nodes"]))


def _node(values: Mapping[str, Any]) -> Node:
    return Node(**{**values, "standing": Standing(values.get("standing", 0)), "labels": as_labels(values.get("labels", ()))})


def as_labels(pairs: Iterable[Iterable[str]]) -> Labels:
    """From JSON's lists."""
    return tuple((key, value) for key, value in pairs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A gang of equal workers."""

    num_workers: int
    cpu_units: int
    """Of each worker."""
    gpus: int = 0
    """Of each worker."""
    max_workers_per_node: int = 0
    """0: as many as fit."""
    group: int = 1
    """Neighbouring workers that stay together on a node; of the last ones fewer, where it does not divide the gang."""
    labels: Labels = ()
    """It runs only on nodes that have all of them."""

    @classmethod
    def of(cls, spec: JobSpec) -> Demand:
        """Tensor-parallel ranks exchange in every layer: they are neighbours (see `layout`), and so are the ranks of a bundle."""
        resources = spec.resources
        return cls(
            num_workers=resources.num_workers,
            cpu_units=max(1, round(resources.cpus_per_worker * CPU_UNITS)),
            gpus=int(resources.gpus_per_worker),
            max_workers_per_node=resources.max_workers_per_node,
            group=spec.parallelism.tensor_parallel_size,
            labels=tuple(sorted((key, str(value)) for key, value in resources.node_labels.items())),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Demand:
        return cls(**{**values, "labels": as_labels(values.get("labels", ()))})

    @property
    def width(self) -> int:
        """What is charged for it: GPUs, or workers of a job on CPUs."""
        return self.num_workers * (self.gpus or 1)

    @property
    def key(self) -> str:
        """Equal for equal demands."""
        return f"{self.num_workers} {self.cpu_units} {self.gpus} {self.max_workers_per_node} {self.group} {self.labels}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has not ended, as it was asked for and what it has had so far. Service is counted in width x seconds: GPU-seconds."""

    id: str
    demand: Demand
    """Of the whole gang."""
    submitted_s: float
    queued_s: float
    """Since when it waits, or waited last."""
    tenant: str = ""
    user: str = ""
    priority: int = 0
    """Of a class that comes before all lower ones."""
    limit_s: float | None = None
    """Run time that its user allows it in all."""
    attained: float = 0.0
    """Service until it last left its place; of a run, `Run.attained(now)` has all."""
    ran_s: float = 0.0
    """Run time until it last left its place."""
    waited_s: float = 0.0
    """In the waits before this one."""
    preemptions: int = 0
    preemptible: bool = True
    """It saves checkpoints and goes on from them."""
    reserved_s: float | None = None
    """The first start that was promised to it in this wait."""
    cleared: Placement = ()
    """The place that others were told to leave for it (`Plan.noted`): it is kept for it until it starts or that place is gone."""
    resized_s: float | None = None
    """When its number of workers last changed."""
    smaller: tuple[int, ...] = ()
    """Legal numbers of workers below the whole gang, ascending, with which it may run too; none: all or none."""
    larger: tuple[int, ...] = ()
    """Legal numbers above, ascending, that it may be given while nobody waits."""
    shrink_after_s: float = 0.0
    short_since_s: float | None = None
    """Since when nodes have been missing (`Plan.short`), as far as known."""

    @cached_property
    def turn(self) -> tuple[float, str]:
        """Among jobs that nothing else tells apart."""
        return self.submitted_s, self.id

    @cached_property
    def alike(self) -> str:
        """Equal for jobs that only their ids, users and times of submission tell apart. Empty: of none, for it has run or is elastic."""
        had = self.attained or self.ran_s or self.waited_s or self.queued_s != self.submitted_s
        if had or self.smaller or self.larger or self.cleared:
            return ""
        return f"{self.tenant}\n{self.priority} {self.limit_s} {self.demand.key}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that holds a place, from the moment it was given one."""

    job: Job
    placement: Placement
    """May hold fewer or more workers than `job.demand`."""
    started_s: float
    saved_s: float | None = None
    """When its newest durable checkpoint was taken; None: none since it started; infinite: it saves all the time."""
    save_s: float = 0.0
    """What a checkpoint takes."""
    restart_s: float = 0.0
    """What it takes from a start to the next new step."""
    may_grow: bool = False
    """It may be told to leave for a larger place."""
    growing: bool = False
    """It was told so, and has not left yet."""
    leaving: bool = False
    """It was told to leave (`Plan.preempts`), and has not left yet."""

    @cached_property
    def workers(self) -> int:
        return sum(count for _, count in self.placement)

    @cached_property
    def width(self) -> int:
        return self.workers * (self.job.demand.gpus or 1)

    def attained(self, now: float) -> float:
        return self.job.attained + self.width * max(0.0, now - self.started_s)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What has been used and learned so far: what outlives the jobs."""

    charged: Mapping[str, float] = field(default_factory=dict)
    """Service by tenant, that of running jobs included, as decayed at `charged_at_s` with the half-life of the policy."""
    charged_at_s: float = 0.0
    history: Mapping[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    """Run times, in seconds, of the last jobs that succeeded, oldest first, by (tenant, width); see `estimate.remember`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    weight: float = 1.0
    """Its share of what is contended for, beside the weights of the others that want something."""
    quota: int | None = None
    """Width that its running jobs may have together; None: no limit."""
    jobs_per_user: int | None = None
    """Of its jobs, how many of one user may run at once."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Of a cluster, not of a job; `conf/scheduler/` has the shipped ones."""

    mode: str = "fifo"  # fifo | batch | preemptive
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    """Who is not named has weight 1 and no quota."""
    levels: tuple[float, ...] = (7_200.0, 72_000.0, 720_000.0)
    """Service after which a job falls to the next level."""
    usage_half_life_s: float = 7 * 86_400.0
    max_wait_s: float = 8 * 3600.0
    """Who has waited longer is starved: it comes first, and a place is cleared for it."""
    max_gang_wait_s: float = 12 * 3600.0
    """So is a gang that is larger than any node, if that is shorter."""
    max_total_wait_s: float = 3 * 86_400.0
    """So is who has waited longer in all its waits together, and has not run for as long as that."""
    max_reservations: int = 1
    """Places that are kept at once."""
    reserve_after_s: float = 0.0
    """Who has waited longer has a place reserved when it is the first that does not fit."""
    min_run_s: float = 1800.0
    """No run is preempted before; doubles with every preemption of the same job."""
    max_doublings: int = 6
    turn_s: float = 2 * 3600.0
    """A run is left alone for so long by those that have run before and wait too long again, and do not come before it otherwise."""
    max_preemptions: int = 15
    """A job that was preempted so often is left alone."""
    gain_factor: float = 2.0
    """What a preemption gains, in service, is at least so many times what it costs."""
    grace_s: float = 60.0
    """What a job has to save and leave: a place that is being cleared is taken to be free then."""
    resize_interval_s: float = 1800.0
    """A job is resized at most so often."""
    round_s: float = 60.0
    """How often the caller plans where nothing has happened in between."""


@dataclass(frozen=True, kw_only=True)
class Start:
    job_id: str
    placement: Placement
    warning: str = ""
    """What is amiss with the place, for people; empty: nothing."""


@dataclass(frozen=True, kw_only=True)
class Preempt:
    """An order to save a checkpoint and leave. The receipt: what it costs, and for whom."""

    job_id: str
    for_job: str
    cost: float
    """Service that is lost: since the last durable checkpoint, and by the save and the next start."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """An order to go on with another number of workers."""

    job_id: str
    workers: int
    placement: Placement
    """Of all of them: a part of what the job holds, or a place that was free beside it."""
    for_job: str = ""
    """Who waits for what is given up; empty: nobody."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What nobody else is given, unless it has left by `start_s`."""

    job_id: str
    start_s: float
    placement: Placement
    cleared: bool = False
    """Others have been told to leave it."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A place of which nodes are not there yet: they are to be asked for, and what is there of it is kept."""

    job_id: str
    placement: Placement


@dataclass(frozen=True, kw_only=True)
class Plan:
    starts: tuple[Start, ...] = ()
    preempts: tuple[Preempt, ...] = ()
    resizes: tuple[Resize, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    order: tuple[str, ...] = ()
    """The ids of the jobs that wait, who is next first."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why each job that does not start waits, by job id. May be made as it is read."""
    short: tuple[str, ...] = ()
    """Jobs that wait whose whole gang would not fit if nothing else ran: nodes are missing."""
    asks: tuple[Ask, ...] = ()
    """Of jobs that wait for nodes, and of runs on fewer workers than they were to have."""
    next_change_at: float | None = None
    """The earliest time at which the plan could differ though nothing else happened; None: never."""

    def noted(self, job: Job) -> Job:
        """A job that goes on waiting after this plan, with what it was promised."""
        kept = next((kept for kept in self.reservations if kept.job_id == job.id), None)
        first_s = kept.start_s if kept is not None and job.reserved_s is None else job.reserved_s
        return replace(job, reserved_s=first_s, cleared=kept.placement if kept is not None and kept.cleared else ())

    def then(self, following: Plan) -> Plan:
        """Both, of one moment: what the second says of those that still wait is what is true."""
        return replace(
            following, starts=self.starts + following.starts, preempts=self.preempts + following.preempts,
            resizes=self.resizes + following.resizes, short=tuple(dict.fromkeys((*self.short, *following.short))),
        )  # fmt: skip
