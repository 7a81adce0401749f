"""The verbs about one job: `status`, `cancel`, `resume`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from orchestrator.cli.events import event_line, event_to_dict
from orchestrator.cli.parser import Parser, client_for, parser_for
from orchestrator.cli.screen import Screen, as_json, best_line, command, first_line, goodput_line, state_line
from orchestrator.events import EventKind
from orchestrator.job import Job, job_to_dict
from orchestrator.supervision.ledger import as_of


def status_(arguments: list[str]) -> int:
    parser = parser_for("status", "One job and its events.")
    parser.add_argument("job")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    events = client.events(job.id)
    ledger = as_of(job, time.time())
    if asked.json:
        told = [event_to_dict(number, event) for number, event in events]
        print(as_json({**job_to_dict(job), "goodput": ledger.to_dict() if ledger else None, "events": told}))
        return 0
    print(f"{job.id}  {job.state.value}  {_words(job)}")
    for _, event in events:
        print(event_line(event))
    if job.progress.best_value is not None:
        print(best_line(job))
    if ledger is not None and ledger.held_s:
        print(goodput_line(ledger))
    if job.result and job.result.mlflow_run_id:
        print(f"MLflow run {job.result.mlflow_run_id}   ({command('dashboard', client.home)})")
    if not any(event.kind is EventKind.REMOVED for _, event in events):
        print(f"next: {command(f'resume {job.id}' if job.state.terminal else f'logs -f {job.id}', client.home)}")
    return 0


def cancel_(arguments: list[str]) -> int:
    parser = parser_for("cancel", "Save a checkpoint and stop a job.")
    parser.add_argument("job")
    parser.add_argument("--now", action="store_true", help="at once, without a checkpoint")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.request_stop(client.job(asked.job).id, "now" if asked.now else "drain")
    if asked.json:
        print(as_json({"id": job.id, "state": job.state.value, "stop_requested": job.stop_requested}))
    elif job.state.terminal:
        print(f"{job.id} has ended already: {job.state.value}")
    else:
        print(f"{job.id} is asked to stop{'' if asked.now else ' after a checkpoint'}")
        print(f"go on later: {command(f'resume {job.id}', client.home)}")
    return 0


def resume_(arguments: list[str]) -> int:
    from orchestrator.cli.follow import follow
    from orchestrator.cli.keeping import check_storage, secrets_for, with_package
    from orchestrator.config import apply_overrides
    from orchestrator.control.local import cluster_here, ensure_cluster

    parser = parser_for("resume", "Go on from the newest good checkpoint.")
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", help="for example training.max_steps=2000 resources.num_workers=4")
    parser.add_argument("--same-code", action="store_true", help="not as the working directory is now, but as it was packaged")
    parser.add_argument("--detach", action="store_true", help="do not follow it")
    parser.add_argument("--json", action="store_true", help="the job as it then is; what it does meanwhile is told on stderr")
    asked = parser.parse_intermixed_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    spec = apply_overrides(job.spec, asked.overrides) if asked.overrides else None
    wanted = spec or job.spec
    screen = Screen(beside_json=asked.json)
    screen.say(f"resuming {job.id} from step {job.progress.committed_step or 0}")
    new_code = not asked.same_code and _has_code_here(job, screen)
    if client.remote:
        from orchestrator.cli.remote import resume_there

        return resume_there(client, job, wanted, screen, new_code=new_code, watch=not asked.detach, json=asked.json)
    if not any(override.startswith("cluster.address=") for override in asked.overrides):
        wanted = dataclasses.replace(wanted, cluster=cluster_here(client.home, wanted.cluster))
    secrets = secrets_for(wanted)
    check_storage(wanted, client.home, secrets)
    if new_code:
        wanted = with_package(wanted, client.home, secrets, screen.say)
    cluster = ensure_cluster(client.home, wanted.cluster, screen.say)
    client.resume(job.id, wanted if wanted != job.spec else None, secrets)
    if asked.detach:
        screen.say(f"{job.id} is queued; follow it: {command(f'logs -f {job.id}', client.home)}")
    status = 0 if asked.detach else follow(client, job.id, cluster, screen)
    if asked.json:
        print(as_json(job_to_dict(client.job(job.id))))
    return status


def _has_code_here(job: Job, screen: Screen) -> bool:
    """Whether the working directory that it was submitted with can be packaged as it is now."""
    if not job.state.terminal or not job.spec.workload.package:
        return False
    folder = Path(job.spec.workload.code_dir)
    if not folder.is_dir():
        screen.say(f"its code stays as it was submitted: {folder} is not here")
    return folder.is_dir()


def version_(arguments: list[str]) -> int:
    from importlib.metadata import version

    parser = Parser(prog="orchestrator version")
    parser.add_argument("--json", action="store_true")
    found = version("orchestrator")
    print(as_json({"version": found}) if parser.parse_args(arguments).json else f"orchestrator {found}")
    return 0


def _words(job: Job) -> str:
    return first_line(job.reason) if job.state.terminal else state_line(job)
