"""The chaos mode in the supervisor: it hands ranks the faults that await them, and does those that no rank can do. No Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.chaos import acts
from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import Fault, Kind, plan
from orchestrator.events import EventKind
from orchestrator.storage import Fault as StoreFault
from orchestrator.storage import FaultyStore, ObjectStore, open_store
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext

DELAY_S = 1.0
_PHASES = {"metrics": "figures", "saved": "commit"}
"""Type of a message -> what the supervisor is about to take."""

Acts = Mapping[Kind, Callable[[Fault], object]]

log = logging.getLogger("orchestrator.supervisor")


def store_for(context: RunContext) -> ObjectStore:
    """The job's store; one that can fail where the spec asks for that."""
    store = open_store(context.spec.storage)
    return FaultyStore(store) if context.spec.chaos.fail_store_call else store


def chaos_of(context: RunContext, store: ObjectStore, chronicle: Chronicle) -> Chaos | None:
    """None: the spec asks for none."""
    if not context.spec.chaos.on:
        return None
    claims = Claims(open_store(context.spec.storage), context.job_id)  # these do not fail, nor do they count as calls
    return Chaos(context, claims, chronicle, acts_of(context, store, chronicle))


class Chaos:
    def __init__(self, context: RunContext, claims: Claims, chronicle: Chronicle, acts: Acts) -> None:
        self._plan = plan(context.spec, context.world_size)
        self._seed = context.spec.chaos.seed
        self._claims = claims
        self._chronicle = chronicle
        self._acts = acts
        self._mine: list[Fault] = []
        self._warned = False

    def hand_out(self, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ranks' tasks, with the faults that await each. For every epoch anew. Raises StorageError."""
        done = self._claims.done()
        self._tell_of(done)
        left = [fault for fault in self._plan if fault.name not in done]
        self._warn(len(left))
        self._mine = [fault for fault in left if fault.kind.by_supervisor]
        theirs = [fault for fault in left if not fault.kind.by_supervisor]
        return [
            {**task, "faults": [fault.to_dict() for fault in theirs if fault.rank in (None, task["rank"])]} for task in tasks
        ]  # fmt: skip

    def heard(self, message: Mapping[str, Any]) -> None:
        """Before the message is taken: do what is due."""
        phase = _PHASES.get(message["type"])
        for fault in [fault for fault in self._mine if fault.phase == phase and message["step"] >= fault.step]:
            self._mine.remove(fault)
            if self._claims.claim(fault, message["step"], "the supervisor"):
                self._chronicle.tell(EventKind.CHAOS, str(fault), fault=fault.name, step=message["step"])
                self._acts[fault.kind](fault)

    def _tell_of(self, done: set[str]) -> None:
        """Of those that took with them whoever was to tell."""
        told = {record.get("fault") for record in self._chronicle.records() if record.get("event") == EventKind.CHAOS.value}
        for name in sorted(done - told):
            step, by = self._claims.claimed(name)
            self._chronicle.tell(EventKind.CHAOS, f"{name} by {by} at step {step}", fault=name, step=step)

    def _warn(self, left: int) -> None:
        """Once in each life of the supervisor."""
        if not self._warned:
            counts = f"{len(self._plan)} faults of seed {self._seed}, {left} of them still to come"
            self._chronicle.tell(EventKind.WARNING, f"chaos is on: this job is broken on purpose, by {counts}")
            self._warned = True


def acts_of(context: RunContext, store: ObjectStore, chronicle: Chronicle) -> Acts:
    """What the supervisor can do, by kind."""
    return {
        Kind.KILL_SUPERVISOR: lambda fault: acts.kill(os.getpid()),
        Kind.KILL_CONTROLLER: lambda fault: _kill_controller(context),
        Kind.FAIL_STORE_CALL: lambda fault: fail(store, fault),
        Kind.HIDE_TRACKING: lambda fault: chronicle.tracking.hide(context.spec.chaos.hide_s),
    }


def fail(store: ObjectStore, fault: Fault) -> None:
    """A later call to the store fails, which must be a FaultyStore."""
    assert isinstance(store, FaultyStore), "the spec asks for it, so `store_for` made one"
    number = store.calls.total() + fault.call
    delay_s = DELAY_S if fault.answer == "delay" else 0.0
    store.add(StoreFault(kind=fault.answer, number=number, times=fault.times, delay_s=delay_s))


def _kill_controller(context: RunContext) -> None:
    controller = acts.controller_of(context.home)
    if controller is None:
        log.warning("chaos finds no controller to kill in %s", context.home.root)
    else:
        acts.kill(controller)
