"""What every object store must do, asked of every one that is shipped, S3 on moto and on a real SeaweedFS."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_stores import KEYS, READER, fast_store, moto, opened, seaweedfs, spec

from orchestrator.errors import (
    ConfigError,
    CorruptObject,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from orchestrator.spec import StorageSpec
from orchestrator.storage import DirectoryStore, Fault, FaultyStore, MemoryStore, check_store, open_store


@pytest.fixture(scope="module")
def moto_endpoint():
    with moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def weed_endpoint():
    with seaweedfs() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def fast_endpoint():
    with fast_store() as endpoint:
        yield endpoint


@pytest.fixture(params=["memory", "directory", "faulty", "moto", "fast", "seaweedfs"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    if request.param == "faulty":
        return FaultyStore(DirectoryStore(tmp_path / "store"))
    endpoint = request.getfixturevalue({"moto": "moto_endpoint", "fast": "fast_endpoint", "seaweedfs": "weed_endpoint"}[request.param])
    return opened(endpoint, f"conformance-{uuid.uuid4()}")


def test_what_was_put_comes_back_whole_and_in_parts(store):
    data = os.urandom(100_000)
    store.put("a/b", memoryview(data))
    assert store.get("a/b") == data
    assert store.get("a/b", 10, 20) == data[10:30]
    assert store.get("a/b", 99_990) == data[99_990:]
    buffer = bytearray(5000)
    store.read_into("a/b", 1234, memoryview(buffer))
    assert bytes(buffer) == data[1234:6234]
    several = [bytearray(size) for size in (3, 0, 1, 9000, 4097, *[5] * 1100)]
    store.read_into("a/b", 7, *map(memoryview, several))
    assert b"".join(several) == data[7 : 7 + sum(map(len, several))]
    store.put("a/b", b"other")
    assert store.get("a/b") == b"other"


def test_empty_objects(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    store.read_into("empty", 0, memoryview(bytearray(0)))


def test_create_has_one_winner(store, request):
    at_once = 1 if "moto" in request.node.name else 8  # moto looks whether there is one and writes it in two steps

    def attempt(number):
        try:
            store.create("race/one", b"%d" % number)
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(at_once) as pool:
        winners = [n for n in pool.map(attempt, range(16)) if n is not None]
    assert len(winners) == 1
    assert store.get("race/one") == b"%d" % winners[0]


def test_create_again_with_the_same_bytes_is_success(store):
    store.create("k", b"same")
    store.create("k", b"same")
    with pytest.raises(ObjectExists, match="k"):
        store.create("k", b"different")
    assert store.get("k") == b"same"


def test_missing_and_short_objects_are_named(store):
    with pytest.raises(ObjectNotFound, match="not/there"):
        store.get("not/there")
    with pytest.raises(ObjectNotFound, match="not/there"):
        store.read_into("not/there", 0, memoryview(bytearray(1)))
    store.put("short", b"abc")
    with pytest.raises(CorruptObject, match="short"):
        store.get("short", 1, 10)
    with pytest.raises(CorruptObject, match="short"):
        store.read_into("short", 0, memoryview(bytearray(10)))


def test_list_is_ordered_and_by_prefix(store):
    for key in ("x/2", "x/1", "x/sub/3", "xy/4", "y"):
        store.put(key, key.encode())
    assert [(i.key, i.num_bytes) for i in store.list("x/")] == [("x/1", 3), ("x/2", 3), ("x/sub/3", 7)]
    assert [i.key for i in store.list("x/s")] == ["x/sub/3"]
    assert list(store.list("nothing/")) == []


def test_delete_is_idempotent(store):
    store.put("gone/soon", b"1")
    store.delete("gone/soon")
    store.delete("gone/soon")
    assert list(store.list("gone/")) == []
    store.put("gone/soon", b"2")
    assert store.get("gone/soon") == b"2"


def test_the_probe_accepts_it(store):
    check_store(store)
    assert list(store.list("probe/")) == []


def test_a_large_object_goes_in_parts(weed_endpoint):
    store = opened(weed_endpoint, "large")
    data = os.urandom(1 << 20) * 70
    store.put("big", memoryview(data))
    assert store.get("big", 65 << 20, 1000) == data[65 << 20 : (65 << 20) + 1000]
    assert next(iter(store.list("big"))).num_bytes == len(data)


@pytest.mark.parametrize(
    "keys, url, error, word",
    [
        ({**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"}, None, StorageDenied, "AWS_SECRET_ACCESS_KEY"),
        ({**KEYS, "AWS_ACCESS_KEY_ID": "nobody"}, None, StorageDenied, "AWS_ACCESS_KEY_ID"),
        (READER, None, StorageDenied, "refuses"),
        (KEYS, "s3://no-such-bucket/x", StorageDenied, "no-such-bucket"),
    ],
)
def test_wrong_keys_and_buckets_are_refused_in_words(weed_endpoint, keys, url, error, word):
    asked = spec(weed_endpoint)
    asked = StorageSpec(url=url or asked.url, endpoint_url=asked.endpoint_url, max_attempts=1)
    with pytest.raises(error, match=word) as caught:
        check_store(open_store(asked, keys))
    assert keys["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_an_unreachable_endpoint_is_named():
    asked = StorageSpec(url="s3://bucket/x", endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=1)
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:9"):
        check_store(open_store(asked, KEYS))


def test_keys_cannot_leave_a_directory(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    for key in ("../out", "a/../../out", "/etc/passwd", "a//b", ""):
        with pytest.raises(ConfigError):
            store.put(key, b"x")


def test_a_full_disk_is_named():
    class Full(DirectoryStore):
        @staticmethod
        def _write(path, data):
            with Path("/dev/full").open("wb", buffering=0) as file:
                file.write(data)

    with pytest.raises(StorageFull, match="No space left"):
        Full(Path("/tmp")).put("k", b"data")


def test_a_store_that_ignores_create_only_is_refused():
    class Careless(MemoryStore):
        def create(self, key, data):
            self.put(key, data)

    with pytest.raises(StorageError, match="create-only"):
        check_store(Careless())


def test_faults_come_at_their_call_and_only_there():
    faults = [Fault(kind="flip", operation="get", number=2), Fault(kind="unavailable", operation="put", number=2)]
    store = FaultyStore(MemoryStore(), faults)
    store.put("a", b"data")
    with pytest.raises(StorageUnavailable):
        store.put("a", b"other")
    assert [store.get("a") == b"data" for _ in range(3)] == [True, False, True]
    with pytest.raises(ValueError, match="no such fault"):
        Fault(kind="flop", number=1)
