"""Follow a job to its end, and say what came of it."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from typing import Any

from orchestrator.cli.screen import Screen, best_line, command, state_line
from orchestrator.client.connection import Verbs
from orchestrator.client.patience import patiently
from orchestrator.control.local import LocalCluster, controller_alive, ensure_cluster, stop_cluster
from orchestrator.errors import ObjectNotFound, StorageError
from orchestrator.job import EndReason, Job, JobState
from orchestrator.paths import Home, JobKeys

_POLL_S = 0.1
_CONTROLLER_INTERVAL_S = 2.0
INTERRUPTED = 130


def follow(client: Verbs, job_id: str, cluster: LocalCluster, screen: Screen) -> int:
    """Until the job has ended; returns the exit status. Ctrl-C stops the job if this command started the cluster, else detaches."""
    interrupts = 0
    while True:
        try:
            job = _watch(client, job_id, screen)
            break
        except KeyboardInterrupt:
            if not cluster.started:
                return _detach(job_id, screen, client.home)
            interrupts += 1
            _ask_to_stop(client, job_id, interrupts, screen)
    status = report(client, job, screen)
    if cluster.started:
        _stop_if_idle(client, screen)
    return INTERRUPTED if interrupts else status


def _watch(client: Verbs, job_id: str, screen: Screen) -> Job:
    check_s = time.monotonic() + _CONTROLLER_INTERVAL_S
    while True:
        job = patiently(partial(client.job, job_id), lambda error: screen.say(f"{error}; trying again"))
        if job.state.terminal:
            return job
        screen.line(state_line(job))
        if time.monotonic() >= check_s:
            if not client.remote and not controller_alive(client.home):
                ensure_cluster(client.home, job.spec.cluster, screen.say)
            check_s = time.monotonic() + _CONTROLLER_INTERVAL_S
        time.sleep(_POLL_S)


def _ask_to_stop(client: Verbs, job_id: str, interrupts: int, screen: Screen) -> None:
    if interrupts == 1:
        screen.say("\nsaving a checkpoint, then stopping; Ctrl-C again stops at once")
        client.request_stop(job_id, "drain")
    else:
        screen.say("\nstopping at once")
        client.request_stop(job_id, "now")


def _detach(job_id: str, screen: Screen, home: Home) -> int:
    screen.say(f"\n{job_id} runs on: this command did not start the cluster, so it only stops watching.")
    screen.say(f"  follow it:  {command(f'logs -f {job_id}', home)}")
    screen.say(f"  stop it:    {command(f'cancel {job_id}', home)}")
    return INTERRUPTED


def _stop_if_idle(client: Verbs, screen: Screen) -> None:
    others = [job.id for job in client.jobs() if not job.state.terminal]
    if others:
        screen.say(f"the local cluster stays up for {', '.join(others)}")
    else:
        screen.line("stopping the local cluster")
        stop_cluster(client.home)
        screen.say("the local cluster is stopped")


def report(client: Verbs, job: Job, screen: Screen) -> int:
    """What came of a job that has ended. Returns the exit status: 0 only if it succeeded, as `wait` says; 2 for what the user can mend."""
    home = client.home
    if job.state is JobState.FAILED:
        return _report_failure(job, screen, home)
    screen.say(f"{job.id} {job.state.value} at step {job.progress.step}: {job.reason}")
    try:
        _report_evaluation(client, job, screen)
    except StorageError as error:
        screen.say(f"its artifacts cannot be read: {error}")
    if job.result and job.result.mlflow_run_id:
        screen.say(f"MLflow run       {job.result.mlflow_run_id}   ({command('dashboard', home)})")
    if job.progress.best_value is not None:
        screen.say(best_line(job))
    screen.say(f"checkpoints      {job.spec.storage.url}/{JobKeys(job.id).checkpoints}")
    if job.state is JobState.SUCCEEDED:
        early = job.progress.step < job.spec.training.max_steps
        change = "early_stopping_patience=0" if early else f"max_steps={2 * job.spec.training.max_steps}"
        screen.say(f"train further    {command(f'resume {job.id} training.{change}', home)}")
        return 0
    resumable = job.progress.committed_step is not None
    remark = "" if resumable else "   (from the start: nothing was saved)"
    screen.say(f"go on            {command(f'resume {job.id}', home)}{remark}")
    return 1


def _report_failure(job: Job, screen: Screen, home: Home) -> int:
    result = job.result
    reason = result.end_reason if result else EndReason.INTERNAL
    screen.say(f"{job.id} failed at step {job.progress.step}: {reason.label}")
    screen.say(result.message if result else job.reason)
    screen.say(f"\nits output:  {command(f'logs {job.id}', home)}")
    if result and result.resumable:
        screen.say(f"go on from step {result.committed_step}:  {command(f'resume {job.id}', home)}")
    return 2 if reason.users else 1


def _report_evaluation(client: Verbs, job: Job, screen: Screen) -> None:
    found = _artifact(client, job, "evaluation.json")
    if found is not None:
        values = json.loads(found)
        for name, now in values["after"].items():
            before = (values.get("before") or {}).get(name)
            remark = "" if before is None else f"   (before training {_figure(before)})"
            screen.say(f"{'validation ' + name:<22} {_figure(now)}{remark}")
        loss = values["after"].get("loss")
        if loss is not None and "perplexity" not in values["after"] and "accuracy" not in values["after"]:
            screen.say(f"{'perplexity':<22} {_figure(math.exp(min(loss, 700)))}")
    sample = _artifact(client, job, "sample.txt")
    if sample is not None:
        screen.say("sample\n" + "\n".join(f"  | {line}" for line in sample.decode(errors="replace").splitlines()))


def _figure(value: Any) -> str:
    return f"{value:.4g}"


def _artifact(client: Verbs, job: Job, name: str) -> bytes | None:
    try:
        return client.artifact(job, name)
    except ObjectNotFound:
        return None
