"""The supervisor: one detached Ray actor per job. It outlives the controller; when it dies, Ray starts it again.

Its methods only look at the board and fill the inbox; one thread does the work (`job_run`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ClusterError, ConfigError, StorageError
from orchestrator.job import EndReason, JobResult
from orchestrator.paths import Home, write_private
from orchestrator.runtime.notice import on_sigterm
from orchestrator.spec import JobSpec, from_dict, to_dict
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.chaos import chaos_of, store_for
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.ending import close_books, write_config, write_result
from orchestrator.supervision.inbox import AgentDied, FromAgent, Inbox, Message
from orchestrator.supervision.job_run import JobRun
from orchestrator.supervision.ledger import Wait
from orchestrator.supervision.place import NAMESPACE, kill_named, named, supervisor_name
from orchestrator.supervision.preemption import notice
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.supervision.warm_client import RANK_ENTRY
from orchestrator.supervision.worker_group import WorkerGroup
from orchestrator.tracking.journal import Journal

STOP_MODES = ("drain", "limit", "now")
BEGIN_LIMIT_S = 20.0
"""How long Ray may take to start a supervisor before the next one gets its turn."""

log = logging.getLogger("orchestrator.supervisor")


def start_supervisor(
    job_id: str, run: int, spec: JobSpec, home: Home, ranks_per_bundle: Sequence[int], rank_entry: str = RANK_ENTRY,
    wait: Wait | None = None, standby: Sequence[str] = (), limit_s: float = BEGIN_LIMIT_S,
) -> Any:  # fmt: skip
    """The job's supervisor on the head node; its place must be reserved. Asking again returns the one there is.

    `rank_entry` is what the ranks run; tests give a double. `wait`: what the run has behind it, for the ledger. `standby`: see
    `Job.standby`. Raises GetTimeoutError if it has not begun within `limit_s`: it may still.
    """
    handle = find_supervisor(job_id, standby) or create_supervisor(supervisor_name(job_id), home)
    given = {"job_id": job_id, "run": run, "spec": to_dict(spec), "ranks_per_bundle": list(ranks_per_bundle), "rank_entry": rank_entry}
    ray.get(handle.begin.remote({**given, "wait": asdict(wait or Wait())}, list(standby[1:])), timeout=limit_s)
    return handle


def find_supervisor(job_id: str, standby: Sequence[str]) -> Any:
    """None if Ray knows none."""
    return next((handle for name in (*standby[:1], supervisor_name(job_id)) if (handle := named(name)) is not None), None)


@cache
def _supervisor_class() -> Any:
    """Made once: Ray brings the class of each `ray.remote` to the cluster anew."""
    return ray.remote(num_cpus=0, max_restarts=-1)(Supervisor)


def create_supervisor(name: str, home: Home) -> Any:
    """One without a job, on the head node; the one there is, if the name is taken. Does not wait."""
    return _supervisor_class().options(
        name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
        # A soft affinity is a hint, which Ray passes over: the loss of any other node must not be that of the supervisor too.
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=_head_node(), soft=False),
    ).remote(name, str(home.root))  # fmt: skip


class Supervisor:
    """What it was given to do stands in a file: a later life of the actor goes on with it, whether there is a controller or not."""

    def __init__(self, name: str, home: str) -> None:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
        self._home = Home(Path(home))
        self._given = self._home.supervisor(name)
        self._job: Mapping[str, Any] | None = None
        self._inbox = Inbox()
        # Its own handle, for the agents: looked up here, because worker threads have no actor context of their own.
        self._me = ray.get_runtime_context().current_actor
        on_sigterm(self._give_notice)
        if self._given.exists():
            self._take(json.loads(self._given.read_text()))

    def job(self) -> str:
        """The id of its job; empty if it has none."""
        return "" if self._job is None else str(self._job["job_id"])

    def begin(self, job: Mapping[str, Any], standby: Sequence[str]) -> None:
        """Start the job's run as `start_supervisor` says, once: asking again does no harm. `standby`: names of agents that are up.

        Raises ClusterError if it has another one.
        """
        if self._job is not None:
            mine, other = [f"run {one['run']} of {one['job_id']}" for one in (self._job, job)]
            if mine != other:
                raise ClusterError(f"this supervisor has {mine}, not {other}")
            return
        write_private(self._given, json.dumps({**job, "used": list(standby)}))
        self._take({**job, "standby": list(standby)})

    def _take(self, job: Mapping[str, Any]) -> None:
        self._job = job
        self._context = RunContext(
            job_id=job["job_id"], run=job["run"], spec=from_dict(JobSpec, job["spec"]), home=self._home,
            ranks_per_bundle=tuple(job["ranks_per_bundle"]), wait=Wait(**job["wait"]),
        )  # fmt: skip
        self._entry: str = job["rank_entry"]
        self._board = StatusBoard(job["job_id"], self._context.spec.training.max_steps, source=uuid.uuid4().hex)
        threading.Thread(target=self._work, name="job", daemon=True).start()

    def _give_notice(self) -> None:
        """On SIGTERM, on a thread of its own."""
        if self._job is None:
            os._exit(0)
        self.preempt("the supervisor got SIGTERM", None)

    def status(self, after_event: int) -> dict[str, Any]:
        """See `StatusBoard.snapshot`."""
        return self._board.snapshot(after_event)

    def stop(self, mode: str) -> None:
        """`drain`: save a checkpoint, then end; `limit`: the same, for its time limit; `now`: end. Raises ConfigError for another mode."""
        if mode not in STOP_MODES:
            raise ConfigError(f"mode={mode} is not possible: allowed is {', '.join(STOP_MODES)}.")
        self._inbox.stop(mode)

    def preempt(self, why: str, deadline_s: float | None) -> None:
        """Save, leave, go back to the queue, by `deadline_s` (seconds since 1970; None: within `recovery.preemption_grace_s`)."""
        self._inbox.preempt(notice(why, deadline_s, self._context.spec.recovery.preemption_grace_s, time.time()))

    def resize(self, why: str) -> None:
        """Save, leave, start again with another number of workers."""
        self._inbox.resize(why)

    def report(self, bundle: int, messages: list[Message]) -> None:
        """From an agent: what its ranks said and how they ended, in order."""
        self._inbox.put(FromAgent(bundle, messages))

    def _work(self) -> None:
        """All of the run. Whatever comes out of it, the controller is told that it is over."""
        try:
            unwritten = self._live()
        except StorageError as error:
            unwritten = self._write_failure(EndReason.STORAGE, str(error))
        except Exception:  # noqa: BLE001 - the last frame of the thread; without an end the controller would wait for ever
            log.error("the supervisor failed\n%s", traceback.format_exc())
            unwritten = self._write_failure(EndReason.INTERNAL, f"error in the supervisor\n{traceback.format_exc()}")
        self._board.move(self._board.state, "ended")
        self._board.end(unwritten)

    def _live(self) -> JobResult | None:
        """The result, if the store did not take it."""
        context = self._context = self._context.with_secrets()
        os.environ.update(context.secrets)
        store = store_for(context)
        if _has_result(store, context):
            return None
        assert self._job is not None, "it has begun"
        for name in self._job.get("used", ()):  # by its life before this one
            kill_named(name)
        standby = self._job.get("standby", ())
        group = WorkerGroup(context, self._me, lambda bundle, why: self._inbox.put(AgentDied(bundle, why)), self._entry, standby)
        group.prepare()
        try:
            return self._supervise(context, store, group)
        finally:
            group.kill_ranks()
            group.close()

    def _supervise(self, context: RunContext, store: ObjectStore, group: WorkerGroup) -> JobResult | None:
        later_life = write_config(store, context)
        journal = Journal(context.home.node(context.job_id) / "journal.jsonl", store, context.keys)
        tracking = TrackingChild(context, journal.path)
        chronicle = Chronicle(context.run, self._board, journal, tracking)
        committer = Committer(context, store, journal, self._pause)
        chaos = chaos_of(context, store, chronicle)
        job_run = JobRun(context, store, group, self._inbox, chronicle, committer, later_life, chaos=chaos)
        result = job_run.run()
        log.info("%s ended: %s: %s", context.job_id, result.end_reason.name, result.message)
        self._board.show(phase="ending")
        group.kill_ranks()
        committer.close()
        unwritten = None
        if result.end_reason is EndReason.FENCED:
            tracking.stop()
        else:
            unwritten = close_books(context, store, chronicle, result, job_run.books)
        journal.close()
        return unwritten

    def _pause(self, delay_s: float) -> bool:
        """Between tries to reach the store; messages stay in the inbox meanwhile."""
        wake = threading.Event()
        for _ in range(int(delay_s / 0.1)):
            if self._inbox.stops_now():
                return True
            wake.wait(0.1)
        return self._inbox.stops_now()

    def _write_failure(self, reason: EndReason, message: str) -> JobResult | None:
        """The end of a run that no `JobRun` has lived through."""
        progress = self._board.progress
        result = JobResult(end_reason=reason, message=message, step=progress.step, committed_step=progress.committed_step)
        try:
            return write_result(open_store(self._context.spec.storage), self._context, result)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asks must hear how the job ended
            log.error("the result is not written: %s: %s", type(error).__name__, error)
            return result


def _has_result(store: ObjectStore, context: RunContext) -> bool:
    key = context.keys.result(context.run)
    return any(info.key == key for info in store.list(key))


def _head_node() -> str:
    """Ray's id of the node that the control plane lives on; any living node if Ray names none."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = [node for node in nodes if "node:__internal_head__" in node["Resources"]]
    return str((heads or nodes)[0]["NodeID"])

