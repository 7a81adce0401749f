"""The committer on a store in memory: what stays, what is the best, and what a crash leaves."""

from __future__ import annotations

import threading

import pytest
import torch
from checkpoint_writer import write_checkpoint
from patience import LIMIT_S

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore
from orchestrator.supervision.attempt import SavedCheckpoint
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.tracking.journal import Journal

KEYS = JobKeys("job")
FIGURES = {10: 3.0, 15: 1.0, 20: None, 25: 2.0, 30: 1.5, 40: None, 50: None}
"""By step; None: not evaluated."""


def committer(store, folder, metric="loss", clock=lambda: 0.0, **kept):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"},
        "training": {"max_steps": 50, "global_batch_size": 2, "micro_batch_size": 2, "eval_interval_steps": 5, "best_metric": metric},
        "checkpoint": {"grace_minutes": 0} | kept,
    }  # fmt: skip
    context = RunContext(job_id="job", run=1, spec=from_dict(JobSpec, values), home=Home(folder), ranks_per_bundle=(1,))
    return Committer(context, store, Journal(folder / "journal.jsonl", store, KEYS), lambda delay_s: False, clock)


def save(store, epoch, step):
    prefix = KEYS.checkpoint(step, epoch, "u")
    piece = StatePiece(name="w", role="param", global_shape=(2,), start=0, data=torch.full((2,), float(step)))
    write_checkpoint(store, prefix, 0, [piece], {})
    evaluated = None if FIGURES[step] is None else {"metric": "loss", "value": FIGURES[step]}
    return SavedCheckpoint(step, prefix, {"step": step, "evaluated": evaluated})


def steps(store):
    return [ref.step for ref in CommitLog(store, KEYS).chain()]


def stored(store):
    return {int(info.key.removeprefix(KEYS.checkpoints)[:12]) for info in store.list(KEYS.checkpoints)}


@pytest.mark.parametrize(
    ("kept", "left", "best"),
    [
        ({"keep_last": 2}, [50, 40], None),
        ({"keep_last": 2, "keep_best": 1}, [50, 40, 15], 15),
        ({"keep_last": 2, "keep_best": 2}, [50, 40, 30, 15], 15),
        ({"keep_last": 1, "keep_best": 9}, [50, 30, 25, 15, 10], 15),
        ({"keep_last": 0, "keep_best": 1}, [50, 40, 30, 25, 20, 15, 10], 15),
        ({"keep_last": 2, "keep_best": 1, "metric": "accuracy"}, [50, 40], None),
    ],
)
def test_the_best_stay_beside_the_newest(tmp_path, kept, left, best):
    store = MemoryStore()
    owner = committer(store, tmp_path, **kept)
    epoch = owner.begin_epoch("a").number
    for step in FIGURES:
        owner.commit(epoch, save(store, epoch, step))
    owner.close()
    assert steps(store) == left
    assert stored(store) == set(left)
    assert (owner.best and owner.best.step) == best
    again = committer(store, tmp_path, **kept)
    again.begin_epoch("b")
    assert again.best == owner.best


def test_a_crash_at_any_request_loses_neither_the_newest_nor_the_best(tmp_path):
    number, counted = 0, FaultyStore(MemoryStore())
    life(counted, tmp_path / "counted")
    while number < counted.calls.total():
        number += 1
        inner = MemoryStore()
        try:
            life(FaultyStore(inner, [Fault(kind="crash_before", number=number)]), tmp_path / str(number))
        except CrashPoint:
            chain = steps(inner)
            committed = [step for step in FIGURES if step <= max(chain, default=0)]
            assert committed[-2:] == [step for step in committed[-2:] if step in chain]
            best = min((step for step in committed if FIGURES[step] is not None), key=lambda step: FIGURES[step], default=None)
            assert best is None or best in chain, (number, chain)
            assert set(chain) <= stored(inner)
    assert number > 60


def life(store, folder):
    owner = committer(store, folder, keep_last=2, keep_best=1)
    epoch = owner.begin_epoch("a").number
    for step in FIGURES:
        owner.commit(epoch, save(store, epoch, step))
        owner.close()  # else the requests come in another order each time


class Held(MemoryStore):
    """Nothing can be deleted until `released`."""

    def __init__(self):
        super().__init__()
        self.released, self.told = threading.Event(), []

    def create(self, key, data):
        self.told.append(key)
        super().create(key, data)

    def delete(self, key):
        assert self.released.wait(LIMIT_S)
        super().delete(key)
        self.told.append(f"deleted {key}")


def test_commits_go_on_while_what_is_old_is_still_being_deleted(tmp_path, caplog):
    store = Held()
    owner = committer(store, tmp_path, keep_last=2)
    epoch = owner.begin_epoch("a").number
    for step in FIGURES:
        owner.commit(epoch, save(store, epoch, step))
    owner.close(limit_s=0.0)
    assert "old checkpoints are still being deleted" in caplog.text
    assert [step for step in FIGURES if KEYS.commit(epoch, step) in store.told] == list(FIGURES)
    assert not any(told.startswith("deleted") for told in store.told)
    store.released.set()
    owner.close()
    assert steps(store) == [50, 40] and stored(store) == {50, 40}


def test_an_epoch_begins_when_nothing_is_being_deleted_any_more(tmp_path):
    store = Held()
    owner = committer(store, tmp_path, keep_last=1)
    epoch = owner.begin_epoch("a").number
    for step in (10, 15):
        owner.commit(epoch, save(store, epoch, step))
    threading.Timer(0.2, store.released.set).start()  # if it did not wait, it would have begun by then
    assert [ref.step for ref in owner.begin_epoch("b").commits] == [15]
    lease = store.told.index(KEYS.lease(epoch + 1))
    assert any(told.startswith("deleted") for told in store.told[:lease])
    assert not any(told.startswith("deleted") for told in store.told[lease:])


def test_what_goes_wrong_with_a_pass_is_raised_where_it_is_waited_for(tmp_path):
    store = FaultyStore(MemoryStore(), [Fault(kind="crash_before", operation="delete", number=1)])
    owner = committer(store, tmp_path, keep_last=1)
    epoch = owner.begin_epoch("a").number
    with pytest.raises(CrashPoint):
        for step in (10, 15):
            owner.commit(epoch, save(store, epoch, step))
        owner.close()
    owner.commit(epoch, save(store, epoch, 20))
    owner.close()
    assert steps(store) == [20]


def test_a_commit_whose_answer_was_lost_is_tried_again_as_it_was(tmp_path):
    ticks = iter(range(1000, 2000))
    store = FaultyStore(MemoryStore(), [Fault(kind="lost_answer", operation="create", number=3)])
    owner = committer(store, tmp_path, clock=lambda: float(next(ticks)))
    epoch = owner.begin_epoch("a").number
    ref = owner.commit(epoch, save(store, epoch, 10))
    assert store.calls["create"] == 4 and ref.time_s == 1000.0
    assert [found.time_s for found in CommitLog(store, KEYS).chain()] == [1000.0]
