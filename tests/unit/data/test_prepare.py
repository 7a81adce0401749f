"""Prepared once, the same whoever prepares it, and never half."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import zstandard

from orchestrator.data.loader import open_dataset
from orchestrator.data.prepare import ensure_dataset
from orchestrator.data.shards import Index, ShardSink, describe, stored_dtype, undescribe
from orchestrator.errors import DataError, StorageUnavailable
from orchestrator.paths import DatasetKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import MemoryStore

RECORD = np.dtype([("pixels", "<f4", (2, 3)), ("label", "<i4")])
SPEC = JobSpec(
    workload=WorkloadSpec(name="made", entrypoint="somewhere:Made"),
    model=ModelSpec(name="none"),
    data=DataSpec(name="numbers"),
    training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
)
KEYS = DatasetKeys("numbers")


def records(count, first=0):
    made = np.zeros(count, dtype=RECORD)
    made["label"] = np.arange(first, first + count)
    made["pixels"] = made["label"][:, None, None] * 0.5
    return made


class Made:
    """A recipe: `parts` is the list of (split, records) that it writes."""

    def __init__(self, parts, files=(), source="source"):
        self.parts, self.files, self.source, self.prepared = parts, files, source, 0

    def source_fingerprint(self):
        return hashlib.sha256(self.source.encode()).hexdigest()

    def prepare(self, sink):
        self.prepared += 1
        for name, content in self.files:
            sink.add_file(name, content)
        for split, part in self.parts:
            sink.progress(f"writing {split}")
            sink.write(split, part)


def standard(source="source"):
    return Made([("train", records(100)), ("validation", records(7, 100))], [("names.json", b"[1]")], source)


class CutOff(MemoryStore):
    """Dies at the n-th write."""

    def __init__(self, inner, writes):
        super().__init__()
        self._inner, self._left = inner, writes

    def _write(self, method, key, data):
        if self._left == 0:
            raise StorageUnavailable("cut off")
        self._left -= 1
        getattr(self._inner, method)(key, data)

    def put(self, key, data):
        self._write("put", key, data)

    def create(self, key, data):
        self._write("create", key, data)

    def get(self, key, start=0, length=None):
        return self._inner.get(key, start, length)


def content(store):
    """Every object of the data set, the index without its provenance."""
    held = {info.key: store.get(info.key) for info in store.list("")}
    return {key: _without_provenance(value) if key.endswith("INDEX.json.zst") else value for key, value in held.items()}


def _without_provenance(value):
    index = Index.from_bytes(value, "index")
    return index.content_hash, index.dtype, index.splits, index.files


def test_the_second_time_nothing_is_prepared():
    store, workload, said = MemoryStore(), standard(), []
    first = ensure_dataset(store, workload, SPEC, said.append)
    assert "writing train" in said and "100 train, 7 validation samples" in said[-1]
    said.clear()
    assert ensure_dataset(store, workload, SPEC, said.append) == first
    assert workload.prepared == 1 and said == []


def test_two_preparations_are_equal_whatever_the_cut_into_writes_and_shards():
    cut = Made([("train", records(60)), ("validation", records(7, 100)), ("train", records(40, 60))], [("names.json", b"[1]")])
    stores = MemoryStore(), MemoryStore(), MemoryStore()
    assert ensure_dataset(stores[0], standard(), SPEC, str) == ensure_dataset(stores[1], cut, SPEC, str)
    assert content(stores[0]) == content(stores[1])
    assert ensure_dataset(stores[2], standard(), SPEC, str, shard_bytes=200) == ensure_dataset(stores[0], standard(), SPEC, str)


@pytest.mark.parametrize(
    "other",
    [
        Made([("train", records(99)), ("validation", records(7, 100))], [("names.json", b"[1]")]),
        Made([("train", records(100)), ("validation", records(7, 101))], [("names.json", b"[1]")]),
        Made([("train", records(100)), ("validation", records(7, 100))], [("names.json", b"[2]")]),
        Made([("train", records(100)), ("validation", records(7, 100)), ("test", records(1))], [("names.json", b"[1]")]),
    ],
)
def test_another_content_has_another_hash(other):
    assert ensure_dataset(MemoryStore(), other, SPEC, str) != ensure_dataset(MemoryStore(), standard(), SPEC, str)


def test_an_edited_source_is_prepared_anew_beside_the_old():
    store = MemoryStore()
    edited = Made([("train", records(50)), ("validation", records(1))], source="edited")
    first, second = ensure_dataset(store, standard(), SPEC, str), ensure_dataset(store, edited, SPEC, str)
    assert first != second
    assert ensure_dataset(store, standard(), SPEC, str) == first


def test_another_source_of_the_same_content_uploads_nothing():
    store = MemoryStore()
    first = ensure_dataset(store, standard(), SPEC, str)
    before = store.get(KEYS.index(first))
    assert ensure_dataset(store, standard("elsewhere"), SPEC, str) == first
    assert store.get(KEYS.index(first)) == before


def test_cut_off_at_any_write_the_next_run_makes_the_same_data_set(tmp_path):
    calm = MemoryStore()
    expected = ensure_dataset(calm, standard(), SPEC, str, shard_bytes=500)
    num_writes = len(list(calm.list("")))
    assert num_writes > 8
    for writes in range(num_writes):
        store = MemoryStore()
        with pytest.raises(StorageUnavailable):
            ensure_dataset(CutOff(store, writes), standard(), SPEC, str, shard_bytes=500)
        assert ensure_dataset(store, standard(), SPEC, str, shard_bytes=500) == expected
        assert content(store) == content(calm)
        assert open_dataset(store, "numbers", expected, tmp_path / str(writes)).num_samples("train") == 100


def test_a_pointer_to_a_deleted_content_is_put_right():
    store = MemoryStore()
    key = KEYS.by_source(standard().source_fingerprint())
    store.put(key, json.dumps({"content_hash": "0" * 40}).encode())
    made = ensure_dataset(store, standard(), SPEC, str)
    assert json.loads(store.get(key))["content_hash"] == made
    assert store.get(KEYS.index(made))


def test_the_first_of_two_preparers_that_disagree_is_followed():
    store, winner = MemoryStore(), []

    class Late(Made):
        def prepare(self, sink):
            winner.append(ensure_dataset(store, standard(), SPEC, str))
            super().prepare(sink)

    late = Late([("train", records(3)), ("validation", records(1))])
    assert ensure_dataset(store, late, SPEC, str) == winner[0]


def test_a_damaged_pointer_is_named():
    store = MemoryStore()
    store.put(KEYS.by_source(standard().source_fingerprint()), b"{")
    with pytest.raises(DataError, match=r"by-source/.* is damaged: expected a content hash, found b'\{'"):
        ensure_dataset(store, standard(), SPEC, str)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("train", records(1))], r"no sample for split 'validation' \(samples found: train: 1\)"),
        ([("validation", records(1))], "no sample for split 'train'"),
        ([], r"no sample for split 'train' \(samples found: none\)"),
        ([("train", records(0)), ("validation", records(1))], "no sample for split 'train'"),
        ([("Train", records(1))], "'Train' cannot be the name of a split"),
        ([("train", np.zeros(3))], "records with named fields; found an array of float64"),
        ([("train", np.zeros(3, dtype=[("a", "O")]))], "field 'a' of the samples has type object"),
        ([("train", records(1)), ("validation", np.zeros(1, dtype=[("a", "<i4")]))], "samples of split 'validation' are"),
    ],
)
def test_a_recipe_that_gives_no_usable_samples_is_refused_and_leaves_nothing(parts, message):
    store = MemoryStore()
    with pytest.raises(DataError, match=message):
        ensure_dataset(store, Made(parts), SPEC, str)
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["INDEX.json.zst", "train-00000", "names.json"])
def test_a_file_cannot_take_the_place_of_another_object(name):
    files = [("names.json", b""), (name, b"")]
    with pytest.raises(DataError, match=f"the name '{name}' is taken"):
        ensure_dataset(MemoryStore(), Made([], files), SPEC, str)


def test_shards_hold_whole_records_up_to_their_size():
    store = MemoryStore()
    made = ensure_dataset(store, standard(), SPEC, str, shard_bytes=10 * RECORD.itemsize + 5)
    shards = Index.from_bytes(store.get(KEYS.index(made)), "index").splits["train"]
    assert [part.samples for part in shards] == [10] * 10
    assert [part.name for part in shards][:2] == ["train-00000", "train-00001"]
    raw = b"".join(store.get(KEYS.file(made, part.name)) for part in shards)
    assert raw == records(100).tobytes()


def test_records_of_another_byte_order_or_with_gaps_are_stored_packed_and_little_endian():
    awkward = np.dtype([("label", ">i4"), ("flag", "?")], align=True)
    assert stored_dtype(awkward) == np.dtype([("label", "<i4"), ("flag", "?")])
    sink = ShardSink(str)
    for split in ("train", "validation"):
        sink.write(split, np.array([(1, True), (2, False)], dtype=awkward))
    (name, raw), _ = sink.objects(sink.index({}))
    sink.close()
    assert (name, raw) == ("train-00000", b"\x01\0\0\0\x01\x02\0\0\0\0")


def test_a_record_type_survives_json():
    assert undescribe(json.loads(json.dumps(describe(RECORD)))) == RECORD


def test_an_index_of_another_format_is_refused():
    values = json.dumps({"format": 99}).encode()
    with pytest.raises(DataError, match="has format 99; this version reads format 1"):
        Index.from_bytes(zstandard.compress(values), "the index")
