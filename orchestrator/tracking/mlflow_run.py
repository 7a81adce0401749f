"""One job's run in MLflow: found or created by its tag, and written to so that doing anything twice changes nothing."""

from __future__ import annotations

import fcntl
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.paths import Home
from orchestrator.spec import JobSpec, to_dict
from orchestrator.tracking.delivery import artifact_location, tracking_uri
from orchestrator.tracking.redact import Redactor

JOB_ID_TAG = "orchestrator.job_id"
# MLflow's own limits (mlflow.utils.validation); the SQL store refuses a whole batch for one entry beyond them.
MAX_METRICS_PER_BATCH = 1000
MAX_ENTRIES_PER_BATCH = 100
MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 8000


class TrackingUnavailable(OrchestratorError):
    """MLflow did not answer as it should; the same call may succeed later."""


class TrackingRefused(OrchestratorError):
    """MLflow understood and said no; the same call will never succeed."""


@dataclass(frozen=True)
class MetricPoint:
    name: str
    value: float
    time_s: float
    step: int


class MlflowRun:
    """Every method raises TrackingUnavailable or TrackingRefused and nothing else. `run_id` is empty until `bind` has succeeded."""

    def __init__(self, spec: JobSpec, job_id: str, home: Home, redactor: Redactor) -> None:
        self._spec = spec
        self._job_id = job_id
        self._home = home
        self._redactor = redactor
        self._uri = tracking_uri(spec.tracking, home)
        self._client: Any = None
        self.run_id = ""

    def bind(self) -> None:
        """Find the job's run or create it, and log its parameters and tags."""
        with _translated(), _first_use(self._uri, self._home):
            client = self._connect()
            experiment = self._experiment(client)
        with _translated():
            found = client.search_runs([experiment], f"tags.`{JOB_ID_TAG}` = '{self._job_id}'", max_results=1)
            # The tag goes with the creation: if the answer is lost, the next try finds the run.
            run = found[0] if found else client.create_run(experiment, tags={JOB_ID_TAG: self._job_id}, run_name=self._job_id)
        self.run_id = run.info.run_id
        try:
            self.set_tags(self._first_tags())
            self.log_params(flatten(to_dict(self._spec)))
        except TrackingUnavailable:
            self.run_id = ""
            raise

    def watermarks(self) -> dict[str, int]:
        """By metric: the highest step that the run has."""
        with _translated():
            names = self._client.get_run(self.run_id).data.metrics
            return {name: max(point.step for point in self._client.get_metric_history(self.run_id, name)) for name in names}

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        for part in _parts(points, MAX_METRICS_PER_BATCH):
            metrics = [Metric(p.name, p.value, int(p.time_s * 1000), p.step) for p in part]
            with self._active():
                self._client.log_batch(self.run_id, metrics=metrics)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """A parameter cannot change in MLflow: what a resumed job was given otherwise becomes a tag `changed.<name>`."""
        from mlflow.entities import Param

        wanted = {clean_name(name): self._redactor.setting(name, str(value))[:MAX_PARAM] for name, value in values.items()}
        with self._active():
            known = self._client.get_run(self.run_id).data.params
        for part in _parts([(name, value) for name, value in wanted.items() if name not in known], MAX_ENTRIES_PER_BATCH):
            with self._active():
                self._client.log_batch(self.run_id, params=[Param(name, value) for name, value in part])
        self.set_tags({f"changed.{name}": value for name, value in wanted.items() if known.get(name, value) != value})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(clean_name(name), self._redactor.setting(name, str(value))[:MAX_TAG]) for name, value in values.items()]
        for part in _parts(tags, MAX_ENTRIES_PER_BATCH):
            with self._active():
                self._client.log_batch(self.run_id, tags=part)

    def log_artifact(self, path: Path) -> None:
        with self._active():
            self._client.log_artifact(self.run_id, str(path))

    def register(self, name: str, source: str, facts: Mapping[str, Any]) -> None:
        """A version of the model `name` that points to `source`; if the run has made that version already, nothing."""
        from mlflow.exceptions import MlflowException

        with self._active():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = self._client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'")
            if source not in (version.source for version in known):
                tags = {f"orchestrator.{fact}": str(value) for fact, value in facts.items()}
                self._client.create_model_version(name, source=source, run_id=self.run_id, tags=tags)

    def end(self, status: str, time_s: float) -> None:
        with self._active():
            self._client.set_terminated(self.run_id, status, int(time_s * 1000))

    def reopen(self) -> None:
        with self._active():
            self._client.update_run(self.run_id, status="RUNNING")

    def _connect(self) -> Any:
        if self._client is None:
            # Imported here: it takes 1.5 s, and the environment that sets its timeouts must be there first.
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client

    def _experiment(self, client: Any) -> str:
        """Its id; one that was deleted comes back, since new runs are about to go into it."""
        name = self._spec.tracking.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return str(client.create_experiment(name, artifact_location(self._uri, self._home)))
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _first_tags(self) -> dict[str, Any]:
        versions = {f"version.{name}": found for name in ("orchestrator", "torch", "deepspeed", "ray") if (found := _version(name))}
        commit = git_commit(self._spec.workload.code_dir)
        git = {"orchestrator.git_commit": commit, "mlflow.source.git.commit": commit.removesuffix("+changes")} if commit else {}
        source = {"mlflow.source.name": self._spec.workload.entrypoint, "orchestrator.workload": self._spec.workload.name}
        return {**self._spec.tracking.tags, **source, **git, **versions, JOB_ID_TAG: self._job_id}

    @contextmanager
    def _active(self) -> Iterator[None]:
        """A refusal because somebody deleted the run is no refusal of what was sent: bind again and get another run."""
        try:
            with _translated():
                yield
        except TrackingRefused as error:
            with _translated():
                stage = self._client.get_run(self.run_id).info.lifecycle_stage
            if stage != "active":
                raise self._gone(error) from error
            raise
        except RunMissing as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> TrackingUnavailable:
        self.run_id = ""
        return TrackingUnavailable(f"the run was deleted: {error}")


class RunMissing(TrackingUnavailable):
    """The server does not know what was asked for."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def clean_name(name: str) -> str:
    """`name` with what MLflow does not allow replaced: other characters, and parts that read like `..`, `.` or nothing in a path."""
    parts = re.sub(r"[^/\w.\- :]", "_", name, flags=re.ASCII).split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:MAX_NAME]


def git_commit(folder: str) -> str:
    """The commit checked out in `folder`, with `+changes` if files differ from it; empty where there is no repository."""
    if not folder or not Path(folder).is_dir():
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: str, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a file system that hangs: the tag is a courtesy
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def delete_run(uri: str, run_id: str) -> None:
    """Put a run among MLflow's deleted ones; no error if it is there, or gone. Raises TrackingUnavailable or TrackingRefused."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    try:
        with _translated():
            if client.get_run(run_id).info.lifecycle_stage != "deleted":
                client.delete_run(run_id)
    except RunMissing:
        return


@contextmanager
def _translated() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = f"MLflow: {error.message}"
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise TrackingRefused(message) from error
        raise (RunMissing if error.error_code == "RESOURCE_DOES_NOT_EXIST" else TrackingUnavailable)(message) from error
    except Exception as error:
        # What MLflow lets through: requests, SQLAlchemy, boto3, a plug-in's own. None of it may end the delivery.
        raise TrackingUnavailable(f"MLflow: {type(error).__name__}: {error}") from error


@contextmanager
def _first_use(uri: str, home: Home) -> Iterator[None]:
    """One process at a time creates the tables of a SQLite file and the experiment; the others wait (migrations take seconds)."""
    if not uri.startswith("sqlite"):
        yield
        return
    home.mlflow.mkdir(parents=True, exist_ok=True)
    with (home.mlflow / "first-use.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
