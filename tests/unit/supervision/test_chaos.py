"""The supervisor's part of chaos: who is handed what, what it does itself and when, and that nothing comes twice."""

from __future__ import annotations

import pytest

from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import Fault, Kind, plan
from orchestrator.errors import StorageUnavailable
from orchestrator.events import EventKind
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import FaultyStore, MemoryStore
from orchestrator.supervision.chaos import Chaos, chaos_of, fail
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal


class World:
    """A job of four ranks whose supervisor may be born again."""

    def __init__(self, folder, **chaos):
        values = {
            "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "chaos": chaos,
            "training": {"max_steps": 50, "global_batch_size": 8, "micro_batch_size": 2}, "resources": {"num_workers": 4},
        }  # fmt: skip
        spec = from_dict(JobSpec, values)
        self.context = RunContext(job_id="job", run=1, spec=spec, home=Home(folder), ranks_per_bundle=(2, 2))
        self.store, self.struck = MemoryStore(), []
        self.claims = Claims(self.store, "job")
        self.journal = Journal(folder / "journal.jsonl", self.store, JobKeys("job"))

    def life(self):
        chronicle = Chronicle(1, StatusBoard("job", 50, "life"), self.journal, TrackingChild(self.context, self.journal.path))
        return Chaos(self.context, self.claims, chronicle, dict.fromkeys(Kind, lambda fault: self.struck.append(fault.name)))

    def events(self, kind):
        return [record["message"] for record in self.journal.records() if record.get("event") == kind.value]


def handed(chaos, ranks=4):
    return [[fault["name"] for fault in task["faults"]] for task in chaos.hand_out([{"rank": rank, "x": 1} for rank in range(ranks)])]


def test_a_rank_is_handed_its_own_faults_until_they_are_done(tmp_path):
    world = World(tmp_path, kill_rank=8, kill_supervisor=1)
    ranks = {fault.name: fault.rank for fault in plan(world.context.spec, 4)}
    found = handed(world.life())
    assert {name: rank for rank, names in enumerate(found) for name in names} == {
        name: rank for name, rank in ranks.items() if rank is not None
    }
    first = next(fault for fault in plan(world.context.spec, 4) if fault.rank is not None)
    world.claims.claim(first, 3, "rank 7")
    assert all(first.name not in names for names in handed(world.life()))
    handed(world.life())
    assert world.events(EventKind.CHAOS) == [f"{first.name} by rank 7 at step 3"], "the rank could not tell of it"
    warnings = world.events(EventKind.WARNING)
    assert warnings[0] == "chaos is on: this job is broken on purpose, by 9 faults of seed 0, 9 of them still to come"
    assert warnings[1].endswith("8 of them still to come")


def test_it_strikes_before_it_takes_what_was_planned_and_once_over_all_its_lives(tmp_path):
    world = World(tmp_path, seed=2, kill_supervisor=2, first_step=10, last_step=10)
    by_phase = {fault.phase: fault.name for fault in plan(world.context.spec, 4)}
    assert set(by_phase) == {"figures", "commit"}, "or choose another seed"
    chaos = world.life()
    chaos.hand_out([])
    for message in ({"type": "metrics", "step": 9}, {"type": "saved", "step": 5}, {"type": "hello"}, {"type": "staged", "step": 20}):
        chaos.heard(message)
    assert world.struck == []
    chaos.heard({"type": "metrics", "step": 11})
    assert world.struck == [by_phase["figures"]] == [message.split(" ")[0] for message in world.events(EventKind.CHAOS)]
    again = world.life()
    again.hand_out([])
    for message in ({"type": "metrics", "step": 11}, {"type": "saved", "step": 20}, {"type": "saved", "step": 20}):
        again.heard(message)
    assert world.struck == [by_phase["figures"], by_phase["commit"]]


def test_a_later_call_to_the_store_fails_as_often_as_planned():
    store = FaultyStore(MemoryStore())
    store.put("a", b"1")
    fail(store, Fault(name="f", kind=Kind.FAIL_STORE_CALL, step=1, phase="commit", answer="unavailable", call=2, times=2))
    store.put("a", b"2")
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            store.put("a", b"3")
    assert store.get("a") == b"2"


def test_a_job_that_asks_for_no_chaos_has_none(tmp_path):
    world = World(tmp_path)
    assert chaos_of(world.context, world.store, None) is None
