"""Where a job runs and keeps what it makes: workers, checkpoints, storage, tracking, recovery, cluster."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from orchestrator.errors import ConfigError
from orchestrator.spec.checks import Options, at_least, require

_LABEL = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(rf"([a-z0-9.-]+/)?{_LABEL.pattern}")


@dataclass(frozen=True, kw_only=True)
class ResourcesSpec:
    """What each of the job's workers needs; a worker is one rank, one OS process."""

    num_workers: int = 1
    min_workers: int = 0
    """Where nodes are lost, the job goes on with fewer workers, with so many at least (`recovery.shrink_after_s`); 0: with all or none."""
    gpus_per_worker: float = 0
    """Whole numbers, or 0 for a job on CPUs."""
    cpus_per_worker: float = 1.0
    threads_per_worker: int = 1
    """Threads of torch's CPU kernels in each rank. Part of what makes results repeatable."""
    max_workers_per_node: int = 0
    """Ranks on one node at most; 0: as many as fit."""
    node_labels: Options = field(default_factory=dict)
    """The job runs only on nodes with all of these labels of Ray: its own, as `ray.io/accelerator-type`, or such as
    `ray start --labels zone=a` gives."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, "resources.num_workers", self.num_workers, "a whole number of at least 1")
        allowed = f"0 (all or none) to resources.num_workers={self.num_workers}"
        require(0 <= self.min_workers <= self.num_workers, "resources.min_workers", self.min_workers, allowed)
        require(self.cpus_per_worker > 0, "resources.cpus_per_worker", self.cpus_per_worker, "more than 0")
        require(
            self.gpus_per_worker in (0, 1),
            "resources.gpus_per_worker", self.gpus_per_worker, "0 or 1 (a rank drives one GPU)",
        )
        require(self.threads_per_worker >= 1, "resources.threads_per_worker", self.threads_per_worker, "at least 1")
        require(self.max_workers_per_node >= 0, "resources.max_workers_per_node", self.max_workers_per_node, "0 or more")
        for key, value in self.node_labels.items():
            ok = _LABEL.fullmatch(str(value)) is not None and not isinstance(value, bool) and _LABEL_KEY.fullmatch(key) is not None
            require(ok, f"resources.node_labels.{key}", value, "a name of letters, digits, '-', '_' and '.', up to 63, for key and value")


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    interval_steps: int = 50
    """Commit a checkpoint every so many steps, and always after the last; 0: at the interval that loses the least time."""
    node_mtbf_hours: float = 1000
    """Mean time between failures of one node, for `interval_steps=0`. Meta saw jobs of 128 nodes fail after 7.9 hours
    (arXiv:2410.21680)."""
    buffers: int = 2
    """Copies of its state that a rank keeps in host memory: so many saves may be on their way to the store while it trains."""
    max_upload_mb_per_s: float = 0
    """Of a node, on average; 0: as fast as it goes."""
    peer_copy: bool = True
    """With more than one node, what a node's ranks keep in host memory is kept in that of one other node too."""
    keep_last: int = 3
    """Newest commits that stay in the store, damaged ones not counted; 0: all."""
    keep_every_hours: float = 0
    """The first commit of every so many hours stays as well; 0: none for its age."""
    grace_minutes: float = 2
    """From the mark that a checkpoint is going to be deleted to its deletion: who has begun to read it can finish."""
    keep_best: int = 0
    """Commits of the best evaluations (`training.best_metric`) that stay as well; each is committed at the step of its evaluation."""

    def __post_init__(self) -> None:
        require(self.interval_steps >= 0, "checkpoint.interval_steps", self.interval_steps, "0 (chosen by cost) or more")
        require(0 < self.node_mtbf_hours < math.inf, "checkpoint.node_mtbf_hours", self.node_mtbf_hours, "more than 0")
        at_least(1, "checkpoint", self, "buffers")
        rate = self.max_upload_mb_per_s
        require(0 <= rate < math.inf, "checkpoint.max_upload_mb_per_s", rate, "0 (no limit) or more")
        require(self.keep_last >= 0, "checkpoint.keep_last", self.keep_last, "0 (all) or more")
        at_least(0, "checkpoint", self, "keep_every_hours", "grace_minutes", "keep_best")


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """The object store of checkpoints, data sets, journals and logs. Keys come from the environment or the AWS profile, never from here."""

    url: str = ""
    """`s3://bucket/prefix` or `file:///folder`; empty: a folder in the cluster's home."""
    endpoint_url: str = ""
    """Of an S3-compatible server; empty: AWS."""
    region: str = "us-east-1"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    max_attempts: int = 5

    def __post_init__(self) -> None:
        ok = self.url == "" or re.match(r"(s3://[a-z0-9][a-z0-9.-]+|file:///)", self.url) is not None
        require(ok, "storage.url", self.url, "s3://bucket/prefix, file:///absolute/folder, or empty")
        ok = self.endpoint_url == "" or re.match(r"https?://[^/]", self.endpoint_url) is not None
        require(ok, "storage.endpoint_url", self.endpoint_url, "http://host:port or https://host:port, or empty")
        for name in ("connect_timeout_s", "read_timeout_s"):
            require(0 < getattr(self, name) < math.inf, f"storage.{name}", getattr(self, name), "more than 0")
        at_least(1, "storage", self, "max_attempts")


TRACKING_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""What MLflow reads from the environment, for a server that asks who one is."""
_USER = re.compile(r"([^:/?#]+)://([^/?#]*)@")
"""(scheme, user or user:password) of a URI; a server may take a user's name alone for a token."""


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    """MLflow."""

    enabled: bool = True
    uri: str = ""
    """Any MLflow tracking URI, without a password: it is kept with the job and shown; empty: a SQLite file in the cluster's home."""
    experiment: str = "orchestrator"
    tags: Options = field(default_factory=dict)
    registered_model: str = ""
    """A finished job's best checkpoint (the newest without `checkpoint.keep_best`) becomes a version of this model, by pointer, and is
    pinned; empty: none."""
    drain_timeout_s: float = 60.0
    """How long the end of a job waits for a tracking server that does not answer. What is left stays in the journal."""

    def __post_init__(self) -> None:
        at_least(0, "tracking", self, "drain_timeout_s")
        found = _USER.match(self.uri)
        if found is not None and (":" in found[2] or found[1].lower().startswith("http")):
            raise ConfigError(
                f"tracking.uri={found[1]}://***@{self.uri[found.end() :]} is not possible: allowed is one without a password, because "
                f"it is kept with the job and shown. A server's goes into the environment of who submits ({', '.join(TRACKING_SECRETS)}) "
                "and travels with the job's secrets, a database's into ~/.pgpass on the nodes."
            )
        ok = not re.search(r"[/:'\"]", self.registered_model)
        require(ok, "tracking.registered_model", self.registered_model, "a name without '/', ':' and quotes, or empty")


@dataclass(frozen=True, kw_only=True)
class RecoverySpec:
    max_restarts: int = 100
    """Restarts of the worker group over the life of the job, whatever the cause."""
    max_restarts_without_progress: int = 3
    """Restarts for the same error without a newly committed step between them; a user's own error gets one at the most."""
    backoff_s: float = 1.0
    """Wait before the second restart without progress; doubles up to one minute."""
    hang_timeout_s: float = 5.0
    """Ranks that do not move for so long, and for five times what 99 % of their steps take, hang: they are restarted, and the one that the
    others wait for is named; 0: never."""
    long_phase_timeout_s: float = 1800.0
    """The same for what has no usual length: start, first steps, compilation, checkpoints, the end of an evaluation."""
    straggler_factor: float = 1.5
    """A rank that computes so many times as long as the others is a straggler: it is told of and counts against its node; 0: none is."""
    straggler_steps: int = 50
    """Over how many steps at least, and over ten seconds."""
    drain_stragglers: bool = False
    """Because of a straggler, once for each node, save and give the place back: the job goes on without that node where others are free."""
    preemption_grace_s: float = 30.0
    """Time to save and leave after SIGTERM or the scheduler's order; a drain notice of Ray's that names a deadline has its own."""
    max_preemptions: int = 0
    """Preemptions after which the job fails; 0: any number. They never count as restarts."""

    shrink_after_s: float = 30.0
    """A job that may run on fewer workers (`resources.min_workers`) waits so long for nodes to come before it does."""
    grow_interval_s: float = 300.0
    """It trains so long on fewer workers at least before it goes back to all of them."""

    def __post_init__(self) -> None:
        at_least(0, "recovery", self, "max_restarts", "max_restarts_without_progress", "backoff_s", "hang_timeout_s", "max_preemptions")
        factor = self.straggler_factor
        require(factor == 0 or 1 < factor < math.inf, "recovery.straggler_factor", factor, "0 (none is) or more than 1")
        require(self.straggler_steps >= 1, "recovery.straggler_steps", self.straggler_steps, "1 or more")
        at_least(0, "recovery", self, "shrink_after_s", "grow_interval_s")
        require(
            self.long_phase_timeout_s >= self.hang_timeout_s, "recovery.long_phase_timeout_s", self.long_phase_timeout_s,
            f"recovery.hang_timeout_s={self.hang_timeout_s} or more",
        )  # fmt: skip
        grace = self.preemption_grace_s
        require(0 < grace < math.inf, "recovery.preemption_grace_s", grace, "more than 0")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    address: str = ""
    """`host:port` of a Ray head whose control plane runs on this machine; empty: a local cluster, started when there is none."""
    home: str = ""
    """Folder of the control plane's state; empty: $ORCHESTRATOR_HOME, else ~/.orchestrator."""
    num_cpus: int = 0
    """CPUs of a local cluster; 0: as many as the machine has."""
    num_gpus: int = -1
    """GPUs of a local cluster; -1: as many as the machine has."""
    idle_timeout_s: float = 30.0
    """A local cluster that was started for a job stops after so long without one."""

    def __post_init__(self) -> None:
        at_least(0, "cluster", self, "num_cpus", "idle_timeout_s")
        require(self.num_gpus >= -1, "cluster.num_gpus", self.num_gpus, "-1 (all) or more")
