"""What stays, what goes and when; a pass that dies at any request; readers that are at it meanwhile."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stored import KEYS, begin, load, names, prefixes, save, steps, write

from orchestrator.checkpoints.catalog import read_catalog
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.retention import Policy, apply_retention, plan
from orchestrator.errors import ObjectNotFound, StorageDenied, StorageError
from orchestrator.paths import manifest_key
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore

HOUR = 3600.0


def retire(store, policy, now=0.0):
    return apply_retention(store, KEYS, policy, lambda: now)


def saved(count, **policy):
    """A store with that many commits, ten minutes apart, and what retention left of them."""
    store = MemoryStore()
    epoch, frozen = begin(store), None
    for step in range(1, count + 1):
        _, frozen = save(store, epoch, step, frozen, time_s=600.0 * step, value=abs(step - 4.0))
    if policy:
        retire(store, Policy(**policy), 600.0 * count)
    return store


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        ({"keep_last": 0}, [9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"keep_last": 2}, [9, 8]),
        ({"keep_last": 2, "keep_best": 2}, [9, 8, 4, 3]),
        ({"keep_last": 1, "keep_every_s": HOUR / 2}, [9, 6, 3, 1]),
        ({"keep_last": 1, "keep_every_s": 10 * HOUR}, [9, 1]),
        ({"keep_last": 20}, [9, 8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_what_stays(policy, left):
    store = saved(9, **policy)
    assert steps(store) == left
    for ref in CommitLog(store, KEYS).chain():
        load(store, ref)


def test_those_that_are_spaced_stay_the_same_as_time_goes_on():
    store, policy = MemoryStore(), Policy(keep_last=1, keep_every_s=HOUR)
    epoch = begin(store)
    for step in range(1, 40):
        save(store, epoch, step, time_s=600.0 * step)
        retire(store, policy)
    assert steps(store) == [39, 36, 30, 24, 18, 12, 6, 1]


def test_a_segment_that_a_kept_checkpoint_names_stays_in_the_prefix_of_one_that_goes():
    store = saved(4, keep_last=2)
    first = KEYS.checkpoint(1, 1, "u")
    assert names(store, first) == [f"{first}seg-00000-0001"]
    assert prefixes(store) == [1, 3, 4] and names(store, KEYS.tombstones) == []
    for ref in CommitLog(store, KEYS).chain():
        load(store, ref)
    epoch = begin(store)
    for step in (5, 6):  # these bring a frozen tensor of their own
        save(store, epoch, step)
    retire(store, Policy(keep_last=2))
    assert prefixes(store) == [5, 6]


def test_a_pinned_checkpoint_never_goes():
    store = saved(3)
    store.create(KEYS.pin(1, 1), b"{}")
    retire(store, Policy(keep_last=1))
    assert steps(store) == [3, 1]
    epoch = begin(store)
    CommitLog(store, KEYS).mark_suspect(KEYS.commit(1, 1), "looked at")
    save(store, epoch, 4)
    retire(store, Policy(keep_last=1))
    assert prefixes(store) == [1, 4] and names(store, KEYS.commits) == [KEYS.commit(1, 1), KEYS.commit(epoch, 4)]


DAMAGES = ("the manifest is gone", "a bit of the manifest", "a segment is gone", "a segment is short", "the commit")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_commit_pushes_no_good_one_out(damage):
    store = saved(4)
    prefix = KEYS.checkpoint(4, 1, "u")
    key = {"t": manifest_key(prefix), "a": f"{prefix}seg-00000-0000"}[damage[0]]
    key = manifest_key(prefix) if damage.startswith("a bit") else KEYS.commit(1, 4) if damage == "the commit" else key
    content = store.get(key)
    store.delete(key)
    if "gone" not in damage:
        store.put(key, content[:-1] + (b"" if "short" in damage else bytes([content[-1] ^ 1])))
    retire(store, Policy(keep_last=2))
    found = [entry.ref.step for entry in read_catalog(store, KEYS).entries]
    assert [step for step in found if step != 4] == [3, 2]
    if damage != "the commit":
        assert found[0] == 4 and prefixes(store) == [1, 2, 3, 4]  # somebody may want to look at it
    epoch = begin(store)
    for step in (5, 6):
        save(store, epoch, step)
    retire(store, Policy(keep_last=2))
    assert prefixes(store) == [5, 6] and names(store, KEYS.suspects) == []
    assert names(store, KEYS.commits) == [KEYS.commit(epoch, step) for step in (5, 6)]


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_an_answer_that_is_damaged_on_its_way_deletes_nothing_that_stays(kind):
    calm = FaultyStore(saved(4))
    retire(calm, Policy(keep_last=2))
    assert calm.calls["get"] > 8
    for number in range(1, calm.calls["get"] + 1):
        store = saved(4)
        refs = CommitLog(store, KEYS).chain()
        with suppress(StorageError):
            retire(FaultyStore(store, [Fault(kind=kind, operation="get", number=number)]), Policy(keep_last=2))
        for ref in refs[:2]:
            assert CommitLog(store, KEYS).read(ref.key) == ref, number
            load(store, ref)


def test_without_a_good_commit_nothing_goes():
    store = saved(3)
    for step in (1, 2, 3):
        CommitLog(store, KEYS).mark_suspect(KEYS.commit(1, step), "damaged")
    before = dict(store._objects)
    assert retire(store, Policy(keep_last=1)) == []
    assert store._objects == before


def test_a_save_that_was_not_finished_goes_when_a_newer_step_is_committed():
    store = MemoryStore()
    epoch = begin(store)
    write(store, epoch, 1, ulid="torn")
    save(store, epoch, 2)
    write(store, epoch, 3, ulid="under-way")
    retire(store, Policy(keep_last=3))
    assert prefixes(store) == [2, 3]
    following = begin(store)
    save(store, following, 3, ulid="again")
    retire(store, Policy(keep_last=3))
    assert prefixes(store) == [2, 3] and names(store, KEYS.checkpoint(3, epoch, "under-way")) == []


def test_commits_that_the_job_went_back_behind_go():
    store = saved(4)
    for step in (3, 4):
        CommitLog(store, KEYS).mark_suspect(KEYS.commit(1, step), "damaged")
    epoch = begin(store)  # goes on from step 2
    for step in (3, 4):
        store.delete(KEYS.suspect(1, step))
    save(store, epoch, 3)
    retire(store, Policy(keep_last=5))
    assert [(ref.epoch, ref.step) for ref in CommitLog(store, KEYS).chain()] == [(epoch, 3), (1, 2), (1, 1)]
    assert names(store, KEYS.commits) == [KEYS.commit(1, 1), KEYS.commit(1, 2), KEYS.commit(epoch, 3)]


class InParts(MemoryStore):
    refuses = False

    def list_unfinished(self, prefix):
        return iter(())

    def abort_unfinished(self, prefix, older_than_s, now=None):
        if self.refuses:
            raise StorageDenied("these keys may not list uploads")
        self.aborted = (prefix, older_than_s)
        return []


def test_uploads_that_nobody_goes_on_with_are_aborted_where_the_store_has_any():
    store = InParts()
    save(store, begin(store), 1)
    retire(store, Policy(keep_last=1))
    assert store.aborted == (KEYS.checkpoints, 3600.0)
    store.refuses = True
    retire(store, Policy(keep_last=1))


# the grace


def test_a_tombstone_comes_first_and_the_rest_after_the_grace():
    store, policy = saved(3), Policy(keep_last=1, grace_s=60.0)
    assert retire(store, policy, 1000.0) == []
    assert prefixes(store) == [1, 2, 3] and len(names(store, KEYS.tombstones)) == 2
    assert retire(store, policy, 1059.0) == [] and prefixes(store) == [1, 2, 3]
    assert retire(store, policy, 1060.0) == [KEYS.checkpoint(1, 1, "u"), KEYS.checkpoint(2, 1, "u")]
    assert steps(store) == [3] and names(store, KEYS.tombstones) == []


def test_what_is_about_to_go_is_offered_last_and_serves_when_all_others_are_damaged():
    store, policy = saved(4), Policy(keep_last=1, keep_best=1, grace_s=60.0)
    store.create(KEYS.pin(1, 1), b"{}")
    retire(store, policy, 1000.0)
    log = CommitLog(store, KEYS)
    assert steps(store) == [4, 1, 3, 2]
    assert [ref.step for ref in log.begin_epoch("a").commits] == [4, 1, 3, 2]
    for step in (4, 1):
        log.mark_suspect(KEYS.commit(1, step), "damaged")
    begun = log.begin_epoch("b")
    assert [ref.step for ref in begun.commits] == [3, 2]
    load(store, begun.commits[0])
    retire(store, policy, 9000.0)  # it is needed after all: no longer about to go
    assert steps(store) == [3] and names(store, KEYS.tombstones) == []
    load(store, log.chain()[0])


def test_a_damaged_tombstone_begins_its_grace_anew():
    store, policy = saved(2), Policy(keep_last=1, grace_s=60.0)
    store.put(KEYS.tombstone(KEYS.checkpoint(1, 1, "u")), b"{")
    assert retire(store, policy, 1000.0) == [] and steps(store) == [2, 1]
    assert retire(store, policy, 1060.0) == [KEYS.checkpoint(1, 1, "u")]


class Meddled(MemoryStore):
    """Before every read of tensors, another commit comes and retention runs."""

    def __init__(self, grace_s):
        super().__init__()
        self.policy, self.now, self.reading, self.next = Policy(keep_last=1, grace_s=grace_s), 0.0, False, 100

    def read_into(self, key, start, *buffers):
        if self.reading:
            self.now, self.next = self.now + 10.0, self.next + 1
            save(self, 1, self.next)
            apply_retention(self, KEYS, self.policy, lambda: self.now)
        super().read_into(key, start, *buffers)


def read_meanwhile(grace_s):
    store = Meddled(grace_s)
    begin(store)
    ref, _ = save(store, 1, 1)
    store.reading = True
    load(store, ref)
    return store


def test_who_reads_while_retention_runs_loses_no_byte():
    store = read_meanwhile(60.0)
    assert store.now >= 20.0 and names(store, KEYS.tombstone(KEYS.checkpoint(1, 1, "u")))
    with pytest.raises(ObjectNotFound):
        read_meanwhile(0.0)


class Busy(FaultyStore):
    """At its call number `at` another commit comes, which needs the segment that the first one has stored for all."""

    def __init__(self, inner, at, frozen):
        super().__init__(inner)
        self.at, self.frozen, self.inner = at, frozen, inner

    @contextmanager
    def _call(self, operation, key):
        with super()._call(operation, key) as kind:
            if self.calls.total() == self.at:
                save(self.inner, 1, 9, self.frozen)
            yield kind


def test_a_commit_between_any_two_requests_of_a_pass_is_whole_and_stays():
    number, most = 0, 1
    while number < most:
        number += 1
        inner = MemoryStore()
        _, frozen = save(inner, begin(inner), 1)
        for step in (2, 3, 4):
            save(inner, 1, step, frozen)
        write(inner, 1, 3, frozen, "torn")
        store = Busy(inner, number, frozen)
        retire(store, Policy(keep_last=1))
        most = store.calls.total()
        assert steps(inner)[0] == 9, number
        for ref in CommitLog(inner, KEYS).chain():
            load(inner, ref)
        retire(inner, Policy(keep_last=1))
        assert steps(inner) == [9] and prefixes(inner) == [1, 9], number
    assert most > 30


# killed


POLICY = Policy(keep_last=2, keep_best=1, keep_every_s=HOUR, grace_s=900.0)


def life(store, now=0.0):
    """Two epochs of saving, pinning, damage and retention: what each of the rules is about happens."""
    epoch, frozen = begin(store), None
    for step in range(1, 9):
        now += 600.0
        if step == 3:
            write(store, epoch, step, frozen, "torn")
            continue
        ref, frozen = save(store, epoch, step, frozen, time_s=now, value=abs(step - 5.0))
        if step == 2:
            store.create(KEYS.pin(epoch, step), b"{}")
        if step == 6:
            CommitLog(store, KEYS).mark_suspect(ref.key, "damaged")
            epoch = begin(store)
        apply_retention(store, KEYS, POLICY, lambda now=now: now)


def expected(store, policy):
    """Steps that stay, by the rules, of the commits that are there."""
    chain = sorted(CommitLog(store, KEYS).chain(), key=lambda ref: ref.step, reverse=True)
    pinned = {ref for ref in chain if names(store, KEYS.pin(ref.epoch, ref.step))}
    return {ref.step for ref in {*chain[:2], *policy.best(chain), *policy.spaced(chain), *pinned}}


def boundaries():
    """Every request of a calm life, and of every write that its answer is lost."""
    calm = FaultyStore(MemoryStore())
    life(calm)
    kills = [Fault(kind="crash_before", number=number + 1) for number in range(calm.calls.total())]
    writes = [(operation, number + 1) for operation in ("put", "create", "delete") for number in range(calm.calls[operation])]
    return kills + [Fault(kind="lost_answer", operation=operation, number=number) for operation, number in writes]


def test_killed_at_any_request_the_next_pass_finishes_and_what_stays_is_whole():
    died = 0
    for fault in boundaries():
        inner = MemoryStore()
        try:
            life(FaultyStore(inner, [fault]))
        except (CrashPoint, StorageError):
            died += 1
        for ref in CommitLog(inner, KEYS).chain():  # while its commit is there it is whole, about to go or not
            load(inner, ref)
        stay = expected(inner, POLICY)
        for now in (1e6, 1e6 + POLICY.grace_s):
            retire(inner, POLICY, now)
        assert set(steps(inner)) == stay, fault
        for ref in CommitLog(inner, KEYS).chain():
            load(inner, ref)
        found = plan(read_catalog(inner, KEYS), KEYS, POLICY, 2e6)
        assert (found.removals, found.condemned, found.pardoned, names(inner, KEYS.tombstones)) == ((), (), (), []), fault
    assert died == len(boundaries()) > 200
