"""Attempts to restore from a commit are counted until a step is made from it."""

from __future__ import annotations

from types import SimpleNamespace

from orchestrator.checkpoints.restore_attempts import RestoreAttempts
from orchestrator.paths import JobKeys
from orchestrator.storage import MemoryStore

KEYS = JobKeys("job-1")


def attempts_of(store, epoch=2, step=30):
    return RestoreAttempts(store, KEYS, KEYS.commit(epoch, step))


def test_attempts_are_counted_by_commit_and_forgotten():
    store = MemoryStore()
    for expected in range(3):
        assert attempts_of(store).count() == expected
        attempts_of(store).note()
    assert attempts_of(store, step=60).count() == 0
    assert [info.key for info in store.list(KEYS.root)] == ["jobs/job-1/attempts/00000002-000000000030.json"]
    attempts_of(store).forget()
    assert attempts_of(store).count() == 0
    attempts_of(store).forget()


def test_a_damaged_note_costs_no_commit():
    store = MemoryStore()
    for content in (b"", b"{", b"{}", b"[1]", b'{"attempts": "x"}', b"null", b"\xff\xfe"):
        store.put(KEYS.restore_attempts(2, 30), content)
        assert attempts_of(store).count() == 0
    attempts_of(store).note()
    assert attempts_of(store).count() == 1


def test_a_step_ends_the_attempt_of_its_own_commit_on_rank_0():
    from orchestrator.runtime.resume import end_attempt

    store = MemoryStore()
    for epoch in (1, 2):
        attempts_of(store, epoch).note()
    for rank, left in ((1, 1), (0, 0), (0, 0)):
        run = SimpleNamespace(store=store, restored_commit=KEYS.commit(2, 30), task=SimpleNamespace(rank=rank, job_id="job-1"))
        end_attempt(run)
        assert (attempts_of(store, 2).count(), attempts_of(store, 1).count(), run.restored_commit) == (left, 1, "")
    attempts_of(store).note()
    end_attempt(SimpleNamespace(store=store, restored_commit="", task=SimpleNamespace(rank=0, job_id="job-1")))
    assert attempts_of(store).count() == 1
