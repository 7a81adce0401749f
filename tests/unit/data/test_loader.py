"""Samples by id from memory-mapped shards, batches by position, and nothing read that is damaged."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import LIMIT_S

from orchestrator.data.loader import TrainLoader, eval_batches, open_dataset, to_batch
from orchestrator.data.prepare import ensure_dataset
from orchestrator.errors import DataError
from orchestrator.layout import Layout
from orchestrator.paths import DatasetKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import DirectoryStore, MemoryStore

RECORD = np.dtype([("value", "<u2", (3,)), ("weight", "<f8")])
NUM_TRAIN, NUM_VALIDATION = 101, 23
KEYS = DatasetKeys("numbers")
SPEC = JobSpec(
    workload=WorkloadSpec(name="numbers", entrypoint="somewhere:Numbers"),
    model=ModelSpec(name="none"),
    data=DataSpec(name="numbers"),
    training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
)


def records(count):
    made = np.zeros(count, dtype=RECORD)
    made["value"] = np.arange(count)[:, None] + [0, 1000, 2000]
    made["weight"] = np.arange(count) / 8
    return made


class Numbers:
    def source_fingerprint(self):
        return "f" * 40

    def prepare(self, sink):
        sink.add_file("note.txt", b"a note")
        sink.add_file("empty.txt", b"")
        sink.write("train", records(NUM_TRAIN))
        sink.write("validation", records(NUM_VALIDATION))


@pytest.fixture(params=["directory", "memory"])
def store(request, tmp_path):
    return DirectoryStore(tmp_path / "store") if request.param == "directory" else MemoryStore()


@pytest.fixture
def prepared(store):
    """(store, content hash) of a data set in shards of ten records."""
    return store, ensure_dataset(store, Numbers(), SPEC, str, shard_bytes=10 * RECORD.itemsize)


@pytest.fixture
def dataset(prepared, tmp_path):
    store, content_hash = prepared
    return open_dataset(store, "numbers", content_hash, tmp_path / "cache")


def test_a_data_set_tells_what_it_is(dataset, prepared):
    assert dataset.content_hash == prepared[1]
    assert (dataset.num_samples("train"), dataset.num_samples("validation"), dataset.num_samples("test")) == (101, 23, 0)
    assert dataset.file("note.txt") == b"a note" and dataset.file("empty.txt") == b""
    with pytest.raises(DataError, match=r"has no file 'nope'. It has: empty.txt, note.txt"):
        dataset.file("nope")


@pytest.mark.parametrize("ids", [[], [0], [100, 0, 9, 10, 11, 100], list(range(101)), [[1, 50], [99, 20]]])
def test_gather_gives_the_samples_in_the_order_asked_for(dataset, ids):
    gathered = dataset.gather("train", np.array(ids, dtype=np.int64))
    assert np.array_equal(gathered, records(NUM_TRAIN)[np.array(ids, dtype=np.int64)])


@pytest.mark.parametrize("ids", [[101], [-1], [0, 5000]])
def test_an_id_that_is_not_there_is_refused(dataset, ids):
    with pytest.raises(IndexError, match="split 'train' has the sample ids 0 to 100"):
        dataset.gather("train", np.array(ids))


def test_a_directory_store_is_read_in_place_and_any_other_through_the_cache(prepared, tmp_path):
    store, content_hash = prepared
    cache = tmp_path / "cache"
    open_dataset(store, "numbers", content_hash, cache)
    if isinstance(store, DirectoryStore):
        assert not cache.exists()
    else:
        assert (cache / content_hash / "train-00010").stat().st_size == RECORD.itemsize


def test_a_cached_data_set_is_not_downloaded_again(tmp_path):
    store = MemoryStore()
    content_hash = ensure_dataset(store, Numbers(), SPEC, str)
    open_dataset(store, "numbers", content_hash, tmp_path)
    store.delete(KEYS.file(content_hash, "train-00000"))
    assert open_dataset(store, "numbers", content_hash, tmp_path).gather("train", np.array([7]))["weight"] == 7 / 8


@pytest.mark.parametrize("damage", [b"", b"short", bytes(101 * RECORD.itemsize)])
def test_a_damaged_cache_is_downloaded_again(tmp_path, damage):
    store = MemoryStore()
    content_hash = ensure_dataset(store, Numbers(), SPEC, str)
    open_dataset(store, "numbers", content_hash, tmp_path)
    (tmp_path / content_hash / "train-00000").write_bytes(damage)
    dataset = open_dataset(store, "numbers", content_hash, tmp_path)
    assert np.array_equal(dataset.gather("train", np.arange(101)), records(101))


def _flip(content):
    return content[:5] + bytes([content[5] ^ 4]) + content[6:]


@pytest.mark.parametrize("name", ["train-00003", "validation-00000", "note.txt"])
def test_a_flipped_bit_is_found_and_named(prepared, tmp_path, name):
    store, content_hash = prepared
    key = KEYS.file(content_hash, name)
    store.put(key, _flip(store.get(key)))
    with pytest.raises(DataError, match=rf"{name} is damaged: expected CRC-64/NVME [0-9a-f]{{16}}, found [0-9a-f]{{16}}"):
        open_dataset(store, "numbers", content_hash, tmp_path / "cache")


@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_shard_is_found_and_named(prepared, tmp_path, length):
    store, content_hash = prepared
    key = KEYS.file(content_hash, "train-00003")
    store.put(key, store.get(key)[:length])
    with pytest.raises(DataError, match=f"train-00003 is damaged: expected 140 bytes, found {length}"):
        open_dataset(store, "numbers", content_hash, tmp_path / "cache")


def test_a_missing_shard_or_index_is_named(prepared, tmp_path):
    store, content_hash = prepared
    store.delete(KEYS.file(content_hash, "train-00003"))
    with pytest.raises(DataError, match=r"train-00003 of a prepared data set is missing"):
        open_dataset(store, "numbers", content_hash, tmp_path / "cache")
    store.delete(KEYS.index(content_hash))
    with pytest.raises(DataError, match=r"INDEX.json.zst of a prepared data set is missing"):
        open_dataset(store, "numbers", content_hash, tmp_path / "cache")


@pytest.mark.parametrize("change", [_flip, lambda content: content[:-9], lambda content: b""])
def test_a_damaged_index_is_named(prepared, tmp_path, change):
    store, content_hash = prepared
    key = KEYS.index(content_hash)
    store.put(key, change(store.get(key)))
    with pytest.raises(DataError, match=r"INDEX.json.zst is damaged"):
        open_dataset(store, "numbers", content_hash, tmp_path / "cache")


def test_an_index_under_another_hash_is_refused(prepared, tmp_path):
    store, content_hash = prepared
    store.put(KEYS.index("0" * 40), store.get(KEYS.index(content_hash)))
    with pytest.raises(DataError, match=f"belongs to another data set: expected {'0' * 40}, found {content_hash}"):
        open_dataset(store, "numbers", "0" * 40, tmp_path / "cache")


def _open_in_another_process(store, content_hash, cache, answers):
    dataset = open_dataset(store, "numbers", content_hash, Path(cache))
    answers.put(float(dataset.gather("train", np.arange(101))["weight"].sum()))


def test_processes_that_open_at_once_share_one_cache(tmp_path):
    store = MemoryStore()
    content_hash = ensure_dataset(store, Numbers(), SPEC, str, shard_bytes=10 * RECORD.itemsize)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    arguments = (store, content_hash, str(tmp_path), answers)
    processes = [context.Process(target=_open_in_another_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0] * 4
    assert [answers.get() for _ in range(4)] == [records(101)["weight"].sum()] * 4
    left = {path.name for path in (tmp_path / content_hash).iterdir() if not path.name.endswith(".lock")}
    assert left == {f"train-{n:05d}" for n in range(11)} | {f"validation-{n:05d}" for n in range(3)} | {"note.txt", "empty.txt"}


def layout(world_size):
    return Layout(world_size=world_size, micro_batch_size=2, gradient_accumulation_steps=6 // world_size, zero_stage=1)


def simulated(dataset, world_size, positions, seed=3):
    """The sample ids that all ranks together train in each step, micro batch after micro batch."""
    loaders = [TrainLoader(dataset, layout(world_size), rank, seed) for rank in range(world_size)]
    steps = []
    for position in positions:
        by_rank = [[batch["value"][:, 0].tolist() for batch in loader.micro_batches(position)] for loader in loaders]
        told = [loader.sample_ids(position).tolist() for loader in loaders]
        assert told == by_rank
        steps.append([micro for turn in zip(*by_rank, strict=True) for micro in turn])
    return steps


def test_one_two_three_and_six_workers_train_the_same_samples_at_every_step(dataset):
    positions = range(0, 30 * 12, 12)  # more than three epochs; 101 is no multiple of 12
    worlds = [simulated(dataset, world_size, positions) for world_size in (1, 2, 3, 6)]
    assert worlds[0] == worlds[1] == worlds[2] == worlds[3]
    flat = np.array(worlds[0]).reshape(-1)
    assert sorted(flat[:101].tolist()) == list(range(101))
    assert sorted(flat[101:202].tolist()) == list(range(101))


def test_the_seed_changes_the_order(dataset):
    assert simulated(dataset, 1, [0], seed=1) != simulated(dataset, 1, [0], seed=2)


def test_batches_are_tensors_of_the_types_that_models_take(dataset):
    batch = next(TrainLoader(dataset, layout(1), 0, 0).micro_batches(0))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "value": (torch.int64, (2, 3)),
        "weight": (torch.float32, (2,)),
    }
    assert to_batch(np.array([(True,)], dtype=[("flag", "?")]))["flag"].dtype is torch.bool
    assert to_batch(np.zeros(2, dtype=[("image", "u1", (3, 4, 4))]))["image"].dtype is torch.uint8


def test_tensor_parallel_ranks_see_the_samples_of_their_group(dataset):
    divided = Layout(world_size=6, micro_batch_size=2, gradient_accumulation_steps=2, zero_stage=1, tensor_parallel_size=2)
    for rank in range(6):
        own, group = TrainLoader(dataset, divided, rank, 3), TrainLoader(dataset, layout(3), rank // 2, 3)
        assert own.sample_ids(12).tolist() == group.sample_ids(12).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("limit", [0, 1, 11, 23, 500])
def test_evaluation_reads_each_sample_once_over_all_ranks(dataset, world_size, limit):
    expected = _evaluated(dataset, 1, limit)
    assert len(expected) == len(set(expected)) == (min(limit, 23) or 23)
    assert sorted(_evaluated(dataset, world_size, limit)) == sorted(expected)


def _evaluated(dataset, world_size, limit):
    batches = [b for rank in range(world_size) for b in eval_batches(dataset, "validation", rank, world_size, 2, limit)]
    assert all(len(batch["value"]) <= 2 for batch in batches)
    return [value for batch in batches for value in batch["value"][:, 0].tolist()]


def test_evaluating_a_split_that_is_not_there_gives_nothing(dataset):
    assert list(eval_batches(dataset, "test", 0, 1, 4)) == []


def drawn(dataset, world_size, positions, seed=3):
    """(position of the step, sample id, its draws) of all that the ranks together get."""
    found = []
    for rank in range(world_size):
        loader = TrainLoader(dataset, layout(world_size), rank, seed, num_draws=3)
        for position in positions:
            batches = loader.micro_batches(position)
            for ids, batch in zip(loader.sample_ids(position), batches, strict=True):
                found += [(position, int(sample), tuple(row)) for sample, row in zip(ids, batch["draws"].tolist(), strict=True)]
    return sorted(found)


def test_draws_belong_to_a_sample_and_its_epoch_whoever_trains_it(dataset):
    positions = range(0, 2 * 101 - 12, 12)
    alone = drawn(dataset, 1, positions)
    assert all(drawn(dataset, world_size, positions) == alone for world_size in (2, 3))
    by_sample = {}
    for _, sample, row in alone:
        by_sample.setdefault(sample, []).append(row)
    assert any(len(rows) == 2 for rows in by_sample.values()) and all(len(set(rows)) == len(rows) for rows in by_sample.values())
    assert drawn(dataset, 1, [0], seed=4) != drawn(dataset, 1, [0])
    assert "draws" not in next(TrainLoader(dataset, layout(1), 0, 0).micro_batches(0))
