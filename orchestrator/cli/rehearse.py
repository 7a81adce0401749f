"""`--rehearse`: two tiny steps of a job before it is queued, here or at a server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.cli.screen import Screen, as_json, state_line
from orchestrator.client.connection import Verbs, remove_all
from orchestrator.client.patience import patiently
from orchestrator.control.rehearsal import Proof, advice, proofs, rehearsal_of, second_step, tracked
from orchestrator.errors import OrchestratorError
from orchestrator.job import EndReason, Job, JobState
from orchestrator.spec import JobSpec

LOOK_S = 0.1


@dataclass(frozen=True)
class Rehearsal:
    succeeded: bool
    proofs: list[Proof]
    message: str
    """Why not."""
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        return {"succeeded": self.succeeded, "proofs": [proof.to_dict() for proof in self.proofs], "message": self.message}


def rehearsed(client: Verbs, spec: JobSpec, workers: int | None, secrets: Mapping[str, str], screen: Screen, *, json: bool) -> int:
    """The exit status of a rehearsal that failed; 0 if it succeeded, or if none was asked for (`workers` None)."""
    if workers is None:
        return 0
    rehearsal = rehearse(client, spec, workers, secrets, screen)
    if json and not rehearsal.succeeded:
        print(as_json({"id": None, "state": None, "rehearsal": rehearsal.to_dict()}))
    return rehearsal.exit_code


def rehearse(client: Verbs, spec: JobSpec, workers: int, secrets: Mapping[str, str], screen: Screen) -> Rehearsal:
    """Returns how it went, which `screen` has been told. Nothing of it stays but its row and the data set. Ctrl-C ends it."""
    first = rehearsal_of(spec, workers)
    job = client.submit(first, secrets)
    screen.say(f"rehearsing two steps on {first.resources.num_workers} of {spec.resources.num_workers} workers as {job.id}")
    try:
        job = _watch(client, job.id, screen)
        if job.state is JobState.SUCCEEDED and not _lacks_tracking(client, job):
            client.resume(job.id, second_step(job.spec), secrets)
            job = _watch(client, job.id, screen)
        shown = proofs(job, [event for _, event in client.events(job.id)])
    except BaseException:
        client.request_stop(job.id, "now")
        job = _watch(client, job.id, screen)
        raise
    finally:
        _remove(client, job, secrets, screen)
    return _told(job, shown, spec, screen)


def _watch(client: Verbs, job_id: str, screen: Screen) -> Job:
    while not (job := patiently(partial(client.job, job_id), lambda error: screen.say(f"{error}; trying again"))).state.terminal:
        screen.line(f"rehearsal: {state_line(job)}")
        time.sleep(LOOK_S)
    return job


def _lacks_tracking(client: Verbs, job: Job) -> bool:
    """To wait for it once more would tell nothing new."""
    return job.spec.tracking.enabled and not tracked(job, [event for _, event in client.events(job.id)]).shown


def _told(job: Job, shown: list[Proof], spec: JobSpec, screen: Screen) -> Rehearsal:
    succeeded = job.state is JobState.SUCCEEDED and all(proof.shown for proof in shown)
    for proof in shown:
        mark = "ok" if proof.shown else "no"
        screen.say(f"  {mark}  {proof.name}" + (f"   ({proof.detail})" if proof.detail else ""))
    if succeeded:
        screen.say("the rehearsal succeeded")
        return Rehearsal(True, shown, "", 0)
    missing = next((proof.detail or proof.name for proof in reversed(shown) if not proof.shown), "")
    ended = job.result if job.state is not JobState.SUCCEEDED else None
    reason, why = (ended.end_reason, ended.message) if ended else (EndReason.TRACKING, missing)
    message = "\n".join(filter(None, [f"{reason.label}: {why}", advice(job, spec.resources.num_workers)]))
    screen.say(f"the rehearsal failed, so the job is not queued: {message}")
    return Rehearsal(False, shown, message, 2 if reason.users else 1)


def _remove(client: Verbs, job: Job, secrets: Mapping[str, str], screen: Screen) -> None:
    """What it has kept in the object store, and its run: by the control plane, for the store may be its own."""
    try:
        remove_all(client, job.id, secrets)
    except OrchestratorError as error:
        screen.say(f"what the rehearsal kept is not all removed: {error}")
