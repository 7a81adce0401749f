"""The store that fails on purpose: each kind does what it says, at its call and only there."""

from __future__ import annotations

import pytest

from orchestrator.errors import CorruptObject, ObjectExists, StorageUnavailable
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore


def faulty(kind, operation="any", number=1, times=1):
    inner = MemoryStore()
    return FaultyStore(inner, [Fault(kind=kind, operation=operation, number=number, times=times)]), inner


def test_a_store_that_is_throttled_n_times_then_answers():
    store, inner = faulty("unavailable", "put", number=2, times=3)
    store.put("a", b"1")
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="503"):
            store.put("a", b"2")
    assert inner.get("a") == b"1"
    store.put("a", b"2")
    assert inner.get("a") == b"2"
    assert store.struck == ["unavailable put a"] * 3


@pytest.mark.parametrize("operation", ["put", "create", "delete", "get", "list"])
def test_a_lost_answer_is_lost_after_the_deed(operation):
    store, inner = faulty("lost_answer", operation)
    if operation in ("delete", "get"):
        inner.put("a", b"old")
    arguments = {"put": ("a", b"new"), "create": ("a", b"new"), "delete": ("a",), "get": ("a",), "list": ("",)}[operation]
    with pytest.raises(StorageUnavailable, match="lost"):
        getattr(store, operation)(*arguments)
    assert [info.key for info in inner.list("")] == ([] if operation in ("delete", "list") else ["a"])


def test_a_request_that_comes_twice_changes_nothing():
    store, inner = faulty("duplicate", times=9)
    store.put("a", b"1")
    store.create("b", b"2")
    store.delete("a")
    assert [(info.key, inner.get(info.key)) for info in inner.list("")] == [("b", b"2")]


def test_a_rival_is_there_before_a_create_and_replaces_what_was_put():
    store, inner = faulty("rival", times=2)
    store.put("a", b"1")
    assert inner.get("a") != b"1"
    with pytest.raises(ObjectExists):
        store.create("b", b"2")


def test_what_rots_at_rest_stays_rotten_and_what_is_damaged_on_its_way_does_not():
    store, inner = faulty("flip_at_rest", "put")
    store.put("a", b"data")
    assert store.get("a") == store.get("a") == inner.get("a") != b"data"
    store, inner = faulty("truncate_at_rest", "put")
    store.put("a", b"data")
    assert inner.get("a") == b"da"
    store, inner = faulty("flip", "get")
    store.put("a", b"data")
    assert [store.get("a") == b"data" for _ in range(2)] == [False, True]


def test_a_body_that_ends_early_is_short_or_refused():
    store, inner = faulty("truncate", "get", times=2)
    inner.put("a", b"data")
    assert store.get("a") == b"da"
    with pytest.raises(CorruptObject, match="early"):
        store.get("a", 0, 4)


def test_a_crash_is_before_or_after_the_deed():
    for kind, there in (("crash_before", 0), ("crash_after", 1)):
        store, inner = faulty(kind, "put")
        with pytest.raises(CrashPoint):
            store.put("a", b"1")
        assert len(list(inner.list(""))) == there


def test_latency_changes_no_answer():
    inner = MemoryStore()
    store = FaultyStore(inner, [Fault(kind="delay", number=1, times=9, delay_s=0.001)])
    store.put("a", b"data")
    assert store.get("a", 1, 2) == b"at"
    assert store.struck == ["delay put a", "delay get a"]


def test_a_fault_that_cannot_be_is_refused_in_words():
    with pytest.raises(ValueError, match="kinds are"):
        Fault(kind="flop", number=1)
    with pytest.raises(ValueError, match="cannot strike delete"):
        Fault(kind="flip", operation="delete", number=1)
