"""What happened: a job, its states and the reasons why it ended.

    QUEUED -> STARTING -> RUNNING <-> RECOVERING        RUNNING -> DRAINING -> QUEUED | SUCCEEDED
    STARTING | RECOVERING -> QUEUED                     RUNNING | RECOVERING -> SUCCEEDED
    any that is not terminal -> CANCELLED | FAILED      terminal -> QUEUED only by the verb `resume`

Only the controller moves a job between states.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import IllegalTransition
from orchestrator.service import Order, Service, known, order_from_dict, order_to_dict, placement_from_list, placement_to_list
from orchestrator.spec import JobSpec, from_dict, to_dict

WAITS_FOR_CONTROLLER = "waits for the controller"
"""The reason of a job that nobody has looked at yet."""


class JobState(enum.Enum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    DRAINING = "draining"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    FAILED = "failed"

    def __init__(self, value: str) -> None:
        self.terminal = value in ("succeeded", "cancelled", "failed")
        self.active = value in ("starting", "running", "recovering", "draining")
        """Holds a place on the cluster."""


_S = JobState
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.CANCELLED, _S.FAILED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.RECOVERING, _S.DRAINING, _S.QUEUED, _S.SUCCEEDED, _S.CANCELLED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.RECOVERING, _S.DRAINING, _S.QUEUED, _S.SUCCEEDED, _S.CANCELLED, _S.FAILED}),
    _S.RECOVERING: frozenset({_S.RUNNING, _S.DRAINING, _S.QUEUED, _S.SUCCEEDED, _S.CANCELLED, _S.FAILED}),
    _S.DRAINING: frozenset({_S.QUEUED, _S.SUCCEEDED, _S.CANCELLED, _S.FAILED}),
    _S.SUCCEEDED: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
    _S.FAILED: frozenset({_S.QUEUED}),
}


def check_transition(old: JobState, new: JobState) -> None:
    """Raises IllegalTransition unless `old` -> `new` stands in the table."""
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(state.value for state in TRANSITIONS[old]))
        raise IllegalTransition(f"a job that is {old.value} cannot become {new.value}; it can become {allowed}")


class Remedy(enum.Enum):
    """What may help against a failure."""

    NONE = "none"  # trying again would end in the same way
    RETRY_ONCE = "retry once"  # it may have been chance; the second time it was none
    RETRY = "retry"  # the cause is not known: a few times
    RESTART = "restart"  # it came from outside and says nothing about the job: any number of times
    WAIT = "wait"  # something that the job needs is out of service for now
    OTHER_NODE = "other node"  # this machine has it, not the job
    SMALLER_MICRO_BATCH = "smaller micro batch"


class EndReason(enum.Enum):
    """Why an attempt or a job ended: (label, what may help where nothing more is known, is it the user's to mend)."""

    COMPLETED = ("completed", Remedy.NONE, False)
    CANCELLED = ("cancelled by the user", Remedy.NONE, False)
    TIME_LIMIT = ("time limit reached", Remedy.NONE, True)
    DEPENDENCY = ("a job that it waits for did not succeed", Remedy.NONE, True)
    PREEMPTED = ("preempted", Remedy.RESTART, False)
    RESIZED = ("leaves for another number of workers", Remedy.RESTART, False)
    USER_ERROR = ("error in the workload", Remedy.RETRY_ONCE, True)
    CONFIGURATION = ("impossible configuration", Remedy.NONE, True)
    DATA = ("data set unusable", Remedy.NONE, True)
    STORAGE = ("storage unusable", Remedy.NONE, True)
    TRACKING = ("tracking server unusable", Remedy.WAIT, True)
    CHECKPOINT = ("checkpoint unusable", Remedy.NONE, True)
    OUT_OF_MEMORY = ("out of device memory", Remedy.SMALLER_MICRO_BATCH, True)
    HOST_OUT_OF_MEMORY = ("out of host memory", Remedy.SMALLER_MICRO_BATCH, True)
    NAN = ("loss or gradient not finite", Remedy.RETRY_ONCE, True)
    SPIKE = ("loss spike", Remedy.RETRY_ONCE, True)
    DRIFT = ("replicas differ", Remedy.OTHER_NODE, False)
    DEVICE_FAULT = ("device failed", Remedy.RETRY, False)
    NETWORK = ("connection between ranks lost", Remedy.WAIT, False)
    RANK_KILLED = ("rank killed by a signal", Remedy.RETRY, False)
    NODE_LOST = ("node or agent lost", Remedy.RESTART, False)
    START_UP = ("worker group could not start", Remedy.RETRY, False)
    HANG = ("no progress", Remedy.RETRY, False)
    FENCED = ("another supervisor owns the job", Remedy.NONE, False)
    INTERNAL = ("error in the orchestrator", Remedy.RETRY, False)

    def __init__(self, label: str, remedy: Remedy, users: bool) -> None:
        self.label = label
        self.remedy = remedy
        self.users = users


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The newest known figures of a job."""

    phase: str = ""
    """What it does now, in words: `preparing data`, `starting 2 workers`, `training`, `evaluating`, `saving` ..."""
    step: int = 0
    max_steps: int = 0
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None
    committed_step: int | None = None
    best_step: int | None = None
    """Step of the best checkpoint (`checkpoint.keep_best`), and its figure of `training.best_metric`."""
    best_value: float | None = None
    restarts: int = 0
    preemptions: int = 0
    epoch: int = 0
    updated_s: float = 0.0
    waits_since_s: float = 0.0
    """When the job lost its place, while it waits for another; 0: it has none to regain."""
    nodes_asked_s: float = 0.0
    """When nodes were asked for it that were not there, in its newest wait for some; 0: never."""
    nodes_launched_s: float = 0.0
    """When all of these were first on their way; before `nodes_asked_s`: not yet."""
    mlflow_run_id: str = ""
    """As soon as the tracking server has told it."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """`supervision.ledger.Ledger` as a dict; empty: no supervisor has begun it yet."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a life of the supervisor ended, as it stands in `result-<run>.json`."""

    end_reason: EndReason
    message: str
    step: int = 0
    committed_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    mlflow_run_id: str = ""
    resumable: bool = False
    """There is a commit to continue from."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the store. Times are seconds since 1970."""

    id: str
    spec: JobSpec
    state: JobState = JobState.QUEUED
    version: int = 0
    """Grows with every write; a write with a stale version is refused."""
    run: int = 1
    """Grows with every `resume`; names the result the controller waits for."""
    submitted_s: float = 0.0
    queued_s: float = 0.0
    started_s: float | None = None
    """When it was given its place, the last time."""
    ended_s: float | None = None
    reason: str = ""
    """Why it waits, or why it ended, in words."""
    stop_requested: str = ""
    """'' | 'drain' (checkpoint, then stop) | 'now'."""
    progress: Progress = field(default_factory=Progress)
    result: JobResult | None = None
    placement: tuple[tuple[str, int], ...] = ()
    """While it holds a place: (Ray node id, number of workers) of each bundle of its worker group."""
    user: str = ""
    """Who has submitted it, by the token or, on this machine, by the account."""
    tenant: str = ""
    """Whose users may change it, and who is charged for it: `spec.scheduling.tenant`; empty: nobody in particular."""
    service: Service = field(default_factory=Service)
    order: Order | None = None
    """What the scheduler has told it, until it trains again."""
    position: int = 0
    """While it waits: its place in the order of the scheduler, from 1; 0: not known, or it waits for other jobs to succeed."""
    start_s: float | None = None
    """While it waits: when it starts, as reserved or predicted, as far as known."""
    reserved_s: float | None = None
    """The first start that was promised to it in this wait."""
    cleared: tuple[tuple[str, int], ...] = ()
    """While it waits: the place that others were told to leave for it."""
    standby: tuple[str, ...] = ()
    """While it holds a place: names of actors that were up for it, the supervisor and the agent of each bundle; '': it starts its own."""

    @property
    def num_placed(self) -> int:
        """Workers that have a place: all that it asks for or, where nodes are missing, fewer; 0 while it waits."""
        return sum(workers for _, workers in self.placement)

    @property
    def waits_since_s(self) -> float:
        """While it waits: since when, this time."""
        return max(self.queued_s, self.progress.waits_since_s)

    @property
    def leaving(self) -> bool:
        """It holds a place, and was told to leave it for another job."""
        return self.order is not None and self.order.kind == "preempt" and not self.order.left


def result_to_dict(result: JobResult) -> dict[str, Any]:
    """JSON-ready; the content of `result-<run>.json`."""
    return {**dataclasses.asdict(result), "end_reason": result.end_reason.name}


def result_from_dict(values: Mapping[str, Any]) -> JobResult:
    """The inverse of `result_to_dict`. Unknown fields of a newer version are passed over."""
    return JobResult(**{**known(JobResult, values), "end_reason": EndReason[values["end_reason"]]})


def progress_to_dict(progress: Progress) -> dict[str, Any]:
    return dict(vars(progress))  # nobody changes its ledger: to copy that deeply took longer than all else


def progress_from_dict(values: Mapping[str, Any]) -> Progress:
    return Progress(**known(Progress, values))


_TO_JSON: dict[str, Callable[[Any], Any]] = {
    "spec": to_dict,
    "state": lambda state: state.value,
    "progress": progress_to_dict,
    "result": lambda result: None if result is None else result_to_dict(result),
    "placement": placement_to_list,
    "cleared": placement_to_list,
    "standby": list,
    "service": dataclasses.asdict,
    "order": order_to_dict,
}


def fields_to_dict(job: Job, names: Iterable[str]) -> dict[str, Any]:
    """Some fields of a job, JSON-ready."""
    return {name: _TO_JSON[name](getattr(job, name)) if name in _TO_JSON else getattr(job, name) for name in names}


def job_to_dict(job: Job) -> dict[str, Any]:
    """JSON-ready: the spec as by `spec.to_dict`, the state by its value."""
    return fields_to_dict(job, (f.name for f in dataclasses.fields(Job)))


def job_from_dict(values: Mapping[str, Any]) -> Job:
    """The inverse of `job_to_dict`."""
    result = values.get("result")
    return Job(
        **{
            **known(Job, values),
            "spec": from_dict(JobSpec, values["spec"]),
            "state": JobState(values["state"]),
            "progress": progress_from_dict(values.get("progress") or {}),
            "result": None if result is None else result_from_dict(result),
            "placement": placement_from_list(values.get("placement")),
            "cleared": placement_from_list(values.get("cleared")),
            "standby": tuple(values.get("standby") or ()),
            "service": Service(**known(Service, values.get("service") or {})),
            "order": order_from_dict(values.get("order")),
        }
    )
