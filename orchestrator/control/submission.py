"""What a job is asked with: checked, and completed by what only the control plane knows. Pure."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets as random_source
from collections.abc import Mapping

from orchestrator.control.scheduler import ClusterView, Demand, feasible
from orchestrator.control.scheduler.model import Labels
from orchestrator.errors import ConfigError, nearest
from orchestrator.job import Progress
from orchestrator.layout import legal_world_sizes
from orchestrator.paths import Home
from orchestrator.spec import JobSpec, to_dict

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, in lower case
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_secrets(secrets: Mapping[str, str], spec: JobSpec | None = None) -> None:
    """Raises ConfigError for one that cannot be, and for one that `spec` names and that has not come along. The message has no value."""
    for name, value in secrets.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ConfigError(f"secrets.{name} is not possible: allowed are names of A-Z, a-z, 0-9 and '_', and text without a zero byte.")
    missing = [name for name in spec.environment.secrets if name not in secrets] if spec is not None else []
    if missing:
        raise ConfigError(
            f"environment.secrets={missing[0]} is not possible: allowed are variables that are set where the job is submitted "
            f"(export {missing[0]}=...), or that are handed over with it."
        )


def named_secrets(spec: JobSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """Of those that the job names, the values that there are."""
    return {name: environ[name] for name in spec.environment.secrets if name in environ}


def check_text(spec: JobSpec) -> None:
    """What no database can take apart: figures in options that are none, zero bytes."""
    try:
        text = json.dumps(to_dict(spec), allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the job's settings cannot be written as JSON: {error}") from error
    if "\\u0000" in text:
        raise ConfigError("the job's settings hold a zero byte: allowed is text.")


def at_home(spec: JobSpec, home: Home) -> JobSpec:
    """`spec` with the home's own store and tracking database where none is named."""
    if not spec.storage.url:
        spec = dataclasses.replace(spec, storage=dataclasses.replace(spec.storage, url=home.store.as_uri()))
    if spec.tracking.enabled and not spec.tracking.uri:
        uri = f"sqlite:///{home.mlflow / 'mlflow.db'}"
        spec = dataclasses.replace(spec, tracking=dataclasses.replace(spec.tracking, uri=uri))
    return spec


def check_feasible(spec: JobSpec, view: ClusterView | None, quota: int | None) -> None:
    """Raises ConfigError for a job that the cluster, as it was seen, or the quota of its tenant can never hold."""
    least = legal_world_sizes(spec)[0]
    demand = dataclasses.replace(Demand.of(spec), num_workers=least)
    if view is not None:
        _check_labels(demand.labels, view)
    why = feasible(view, demand) if view is not None else None
    if why:
        name = "num_workers" if least == spec.resources.num_workers else "min_workers"
        raise ConfigError(
            f"resources.{name}={least} is more than the cluster can ever have: the job {why}. "
            "Ask for fewer workers, or less for each (resources.cpus_per_worker)."
        )
    tenant = spec.scheduling.tenant
    if quota is not None and demand.width > quota:
        raise ConfigError(
            f"resources.num_workers={least} is more than the quota of scheduling.tenant={tenant} ({quota}). "
            f"Ask for fewer, or raise it: orchestrator policy tenants.{tenant}.quota={demand.width}"
        )


def _check_labels(labels: Labels, view: ClusterView) -> None:
    for key, value in labels:
        known = sorted({held for node in view.nodes for name, held in node.labels if name == key})
        if value not in known:
            there = f"allowed is {', '.join(known)}" if known else "no node has a label of that name"
            raise ConfigError(f"resources.node_labels.{key}={value} is not possible: {there}.{nearest(value, known)}")


def new_id(spec: JobSpec) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", (spec.name or spec.workload.name).lower()).strip("-")[:40] or "job"
    return f"{name}-{''.join(random_source.choice(_ID_LETTERS) for _ in range(8))}"


def checked_id(job_id: str) -> str:
    """As given, if it can be one. Raises ConfigError."""
    if job_id and _ID.fullmatch(job_id) is None:
        raise ConfigError(f"id={job_id} is not possible: allowed are up to 60 of a-z, 0-9 and '-'.")
    return job_id


def carried_over(progress: Progress, spec: JobSpec) -> Progress:
    """What stays true while the job waits once more."""
    return Progress(
        step=progress.step, max_steps=spec.training.max_steps, committed_step=progress.committed_step, best_step=progress.best_step,
        best_value=progress.best_value, epoch=progress.epoch, ledger=progress.ledger,
        mlflow_run_id=progress.mlflow_run_id,
    )  # fmt: skip
