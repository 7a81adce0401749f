"""The command line. Starts in a fraction of a second: each verb imports what it needs, none imports torch."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from orchestrator.errors import OrchestratorError, UserError, nearest

HELP = """\
orchestrator: train large models on a Ray cluster; jobs wait in a durable queue and go on from where they were.

Start
  train [overrides]            start what is missing, queue the job, follow it
  submit [overrides]           queue the job and return; -m a=1,2 queues one job per combination
         [--rehearse]          train two tiny steps of it first, and queue it only if they succeed (also of train)
  resume JOB [overrides]       go on from the newest good checkpoint, also with other workers or another ZeRO stage

Look
  list [--state S] [--limit N] the jobs: progress, workers that they have of those that they need, why they wait
  status JOB                   one job and its events
  logs JOB [-f] [--rank N]     what its ranks printed, over all restarts, each line once; --tail N, --since 10m
  events JOB [-f]              what happened to it
  wait JOB... [--timeout S]    until they have ended; exit status 0: all succeeded, 1: one did not, 124: the time was up, 125: not known
  dashboard                    open MLflow on this machine's runs
  doctor                       what is wrong on this machine or with the cluster, and the command that mends it
  queue                        the jobs that wait, who is next first: why, and when they start
  explain JOB                  what it waits for, who holds that, and what would let it start now
  nodes                        machines, what failed on them, and what that means for them; nodes forgive NODE
  simulate TRACE.csv           what a trace of jobs would come to under a policy of the scheduler; --from-log: the jobs of this machine

Checkpoints
  checkpoint ls JOB            all of them: age, size, layout, metric, and what becomes of each
  checkpoint verify JOB        read every block of the newest and check it; STEP or --all for others
  checkpoint diff JOB A B      what differs between two steps, tensor by tensor
  checkpoint pin JOB STEP      it stays, whatever the settings say; unpin takes that back
  checkpoint export JOB FOLDER write its model as a folder that transformers reads; --adapters: only its LoRA adapters, for peft;
         [--format F]          safetensors or deepspeed-universal instead
  checkpoint gc JOB            delete what the settings do not keep

Decide
  priority JOB N               a higher class comes before all lower ones, and may take their place
  policy [NAME] [key=value]    by which policy the control plane decides: fifo, batch, preemptive; quotas and weights of tenants

Serve
  serve                        the control plane as a service with an HTTP API; --host, --port, --address RAY, --db postgresql://...
  user add NAME                a user's token; --tenant, --role admin, user or viewer; user list, renew, revoke
  audit                        who changed what
  store export FILE            the job store as JSON lines; store import FILE: into a new one, also of another database
  prune                        delete packaged code that no job has had for a week; --grace-days N, --dry-run

Stop
  cancel JOB [--now]           save a checkpoint and stop (--now: at once)
  remove JOB --yes             delete what a job that has ended keeps: checkpoints, output, artifacts, its MLflow run
  up                           start the local cluster without a job; it stays until `down`
  down                         stop it

  version

Settings are Hydra overrides: `orchestrator train workload=resnet training.max_steps=200`.
  train --help                 all settings            train --cfg job      the composed configuration
  train --dry-run              the resolved spec, legal world sizes and DeepSpeed's config; starts nothing
  --json                       with every command that prints: for scripts
  eval "$(orchestrator completion bash)"               completion of verbs, settings and jobs
"""

Verb = Callable[[list[str]], int]


def _verbs() -> dict[str, Callable[[], Verb]]:
    """Verb -> a function that imports it."""

    def hydra(name: str) -> Callable[[], Verb]:
        def load() -> Verb:
            from orchestrator.cli import jobspec

            return getattr(jobspec, name)

        return load

    def completion() -> Verb:
        from orchestrator.cli import completion

        return completion.completion

    def checkpoint() -> Verb:
        from orchestrator.cli.checkpoint import checkpoint

        return checkpoint

    def nodes() -> Verb:
        from orchestrator.cli.nodes import nodes

        return nodes

    def simulate() -> Verb:
        from orchestrator.cli.simulate import simulate_

        return simulate_

    found = {name: hydra(name) for name in ("train", "submit")}
    found |= {name: _named(module, f"{name}_") for name, module in _MODULES.items()}
    return {**found, "nodes": nodes, "simulate": simulate, "checkpoint": checkpoint, "completion": completion}


_MODULES = {
    "resume": "jobs", "list": "listing", "status": "jobs", "logs": "logs", "events": "events", "wait": "events", "cancel": "jobs",
    "remove": "remove", "dashboard": "cluster", "doctor": "doctor", "up": "cluster", "down": "cluster",
    "version": "jobs", "queue": "queue", "explain": "queue", "priority": "queue", "policy": "policy", "serve": "serve", "user": "users",
    "audit": "users", "store": "serve", "prune": "prune",
}  # fmt: skip
"""Verb -> the module of this package in which its function stands."""


def _named(module: str, function: str) -> Callable[[], Verb]:
    return lambda: getattr(importlib.import_module(f"orchestrator.cli.{module}"), function)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for a failure, 2 for what was asked wrongly, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = _verbs()
    try:
        if not given or given[0] in ("-h", "--help", "help"):
            print(HELP, end="", flush=True)
            return 0
        if given[0] not in verbs:
            raise UserError(f"'{given[0]}' is no command. Commands: {', '.join(verbs)}.{nearest(given[0], verbs)}")
        return verbs[given[0]]()(given[1:])
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `orchestrator list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def program() -> None:
    """`main` as a process, which does not take all that it has imported apart when it leaves: that takes longer than many a verb."""
    status: str | int | None = 1

    def leave() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status if isinstance(status, int) else int(status is not None))

    atexit.register(leave)  # the first that is registered is called last, once all threads have ended
    try:
        status = main()
    except SystemExit as leaving:  # of argparse, which has said why
        status = leaving.code
    sys.exit(status)
