"""The failure table of checkpoints: what can go wrong, and a test for each row. `FAILURE_TABLE` says which."""

from __future__ import annotations

import re
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import checkpoint_trials as trials
import pytest
from checkpoint_trials import KEYS
from object_stores import KEYS as S3_KEYS
from object_stores import opened

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.errors import CorruptObject, DataError, FencedError, StorageUnavailable
from orchestrator.paths import index_key, manifest_key, segment_key
from orchestrator.runtime.resume import _check_same_job
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore

TESTS = Path(__file__).parents[1]
HERE = "fault/test_checkpoint_failures.py"
DAMAGE = "fault/test_checkpoint_damage.py"
SUPERVISOR = "integration/supervision/test_supervisor.py"
FAILURE_TABLE = {
    "crash while staging": f"{HERE}::test_a_writer_that_dies_while_it_saves_leaves_the_commit_before",
    "what was staged outlives the rank": f"{SUPERVISOR}::test_what_is_staged_when_a_rank_dies_is_not_lost",
    "the uploader is killed": f"{SUPERVISOR}::test_a_killed_uploader_is_started_again_and_nothing_else_notices",
    "mid-part, before complete": f"{HERE}::test_an_upload_in_parts_that_is_not_completed_is_no_object_and_no_commit",
    "one segment short": f"{HERE}::test_a_segment_that_is_short_or_missing_is_no_commit",
    "after the manifest": f"{HERE}::test_a_crash_between_manifest_and_commit_leaves_the_commit_before",
    "commit sent, answer lost": f"{HERE}::test_a_commit_whose_answer_was_lost_is_made_once",
    "coordinator twice": f"{HERE}::test_of_many_supervisors_each_has_its_own_epoch_and_the_newest_alone_commits",
    "every order of their requests": "unit/checkpoints/test_protocol_model.py::test_no_interleaving_breaks_the_protocol",
    "store without conditions": "conformance/test_object_store.py::test_a_store_that_ignores_create_only_is_refused",
    "bit flip": f"{DAMAGE}::test_flips_and_truncations_at_rest_are_caught_and_the_commit_before_is_used",
    "manifest damaged": f"{DAMAGE}::test_flips_and_truncations_at_rest_are_caught_and_the_commit_before_is_used",
    "damaged on its way": f"{HERE}::test_what_is_damaged_on_its_way_once_is_read_again_and_not_marked",
    "any write rots or is replaced": f"{DAMAGE}::test_whatever_write_is_damaged_the_newest_whole_commit_is_found",
    "throttling": f"{HERE}::test_a_throttled_store_delays_a_commit_and_loses_nothing",
    "preempted": f"{SUPERVISOR}::test_drain_saves_and_the_next_run_goes_on_from_there",
    "retention against a reader": f"{HERE}::test_a_reader_whose_commits_are_all_retired_meanwhile_finds_the_newer_one",
    "retention against a restore": "unit/checkpoints/test_retention.py::test_who_reads_while_retention_runs_loses_no_byte",
    "a checkpoint that crashes its reader":
        "integration/runtime/test_restore_ranks.py::test_a_commit_that_kills_its_readers_is_passed_over_unless_it_is_the_last",
    "world size changed": "unit/checkpoints/test_roundtrip.py::test_any_world_opens_any_checkpoint",
    "data set edited": f"{HERE}::test_a_checkpoint_of_another_data_set_is_refused",
    "a kill at a random moment": "fault/test_kills.py::test_a_killed_run_equals_the_calm_one",
}
"""By what happens: the test, as `file::function` under `tests/`."""
BEFORE = (1, 2)


def test_every_row_of_the_failure_table_names_a_test_that_is_there():
    for row, name in FAILURE_TABLE.items():
        file, function = name.split("::")
        assert re.search(rf"^def {function}\(", (TESTS / file).read_text(), re.MULTILINE), row


@pytest.fixture
def memory():
    """A store with commit (1, 1), and the log of epoch 1."""
    inner = MemoryStore()
    log = CommitLog(inner, KEYS)
    log.begin_epoch("a")
    trials.save(inner, log, (1, 1))
    return inner


def newest(inner):
    log = CommitLog(inner, KEYS)
    found = trials.restore_newest(inner, log, log.begin_epoch("after").commits)
    assert found and trials.same(found, found[0])
    return found[0]


def test_a_writer_that_dies_while_it_saves_leaves_the_commit_before(memory):
    calm = FaultyStore(MemoryStore())
    trials.upload(calm, BEFORE, 2)
    for number in range(1, calm.calls.total() + 1):
        with pytest.raises(CrashPoint):
            trials.upload(FaultyStore(memory, [Fault(kind="crash_before", number=number)]), BEFORE, 2)
        with pytest.raises(CorruptObject, match="not in the store"):
            trials.make_valid(CommitLog(memory, KEYS), BEFORE, KEYS.checkpoint(2, 1, "u"), 2)
    assert newest(memory) == (1, 1)


def test_an_upload_in_parts_that_is_not_completed_is_no_object_and_no_commit(endpoint):
    prefix = f"parts-{uuid.uuid4()}"
    store = opened(endpoint, prefix)
    log = CommitLog(store, KEYS)
    log.begin_epoch("a")
    trials.save(store, log, (1, 1))
    checkpoint = trials.upload(store, BEFORE, 2)
    key = segment_key(checkpoint, 1, 0)
    content = store.get(key)
    store.delete(key)
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    target = {"Bucket": "orchestrator", "Key": f"{prefix}/{key}"}
    begun = client.create_multipart_upload(**target)["UploadId"]
    client.upload_part(**target, UploadId=begun, PartNumber=1, Body=content)
    assert key not in [info.key for info in store.list(KEYS.checkpoints)]
    with pytest.raises(CorruptObject, match=f"{re.escape(key)}' is not in the store"):
        trials.make_valid(log, BEFORE, checkpoint, 2)
    assert newest(store) == (1, 1)


@pytest.mark.parametrize("left", [None, 100], ids=["missing", "short"])
def test_a_segment_that_is_short_or_missing_is_no_commit(memory, left):
    checkpoint = trials.upload(memory, BEFORE, 2)
    key = segment_key(checkpoint, 1, 0)
    content = memory.get(key)
    memory.delete(key)
    if left:
        memory.put(key, content[:left])
    with pytest.raises(CorruptObject, match=re.escape(key)):
        trials.make_valid(CommitLog(memory, KEYS), BEFORE, checkpoint, 2)
    assert newest(memory) == (1, 1)


def test_a_crash_between_manifest_and_commit_leaves_the_commit_before(memory):
    checkpoint = trials.upload(memory, BEFORE, 2)
    dying = FaultyStore(memory, [Fault(kind="crash_before", operation="create", number=1)])
    with pytest.raises(CrashPoint, match="commits"):
        trials.make_valid(CommitLog(dying, KEYS), BEFORE, checkpoint, 2)
    assert memory.get(manifest_key(checkpoint))
    assert newest(memory) == (1, 1)


def test_a_commit_whose_answer_was_lost_is_made_once(memory):
    checkpoint = trials.upload(memory, BEFORE, 2)
    log = CommitLog(FaultyStore(memory, [Fault(kind="lost_answer", operation="create", number=1)]), KEYS)
    with pytest.raises(StorageUnavailable, match="lost"):
        trials.make_valid(log, BEFORE, checkpoint, 2)
    assert trials.make_valid(log, BEFORE, checkpoint, 2).step == 2
    assert [ref.step for ref in log.chain()] == [2, 1]
    assert newest(memory) == BEFORE


def test_of_many_supervisors_each_has_its_own_epoch_and_the_newest_alone_commits(store):
    logs = [CommitLog(store, KEYS) for _ in range(8)]
    with ThreadPoolExecutor(len(logs)) as pool:
        numbers = [epoch.number for epoch in pool.map(lambda log: log.begin_epoch("the same name"), logs)]
    assert sorted(numbers) == list(range(1, 9))
    for number, log in sorted(zip(numbers, logs, strict=True), key=lambda item: item[0]):
        if number < 8:
            with pytest.raises(FencedError, match="epoch 8 owns the job"):
                trials.save(store, log, (number, 1))
        else:
            trials.save(store, log, (number, 1))
    assert newest(store) == (8, 1)


def test_a_throttled_store_delays_a_commit_and_loses_nothing(memory):
    good = trials.objects(memory)
    for number in range(1, 12):
        throttled = FaultyStore(memory, [Fault(kind="unavailable", number=number, times=trials.TRIES - 1)])
        prefix = trials.persist(lambda throttled=throttled: trials.upload(throttled, BEFORE, 2))
        trials.persist(lambda throttled=throttled, prefix=prefix: trials.make_valid(CommitLog(throttled, KEYS), BEFORE, prefix, 2))
        assert [entry.split()[0] for entry in throttled.struck] == ["unavailable"] * (trials.TRIES - 1)
        assert newest(memory) == BEFORE
        trials.put_back(memory, good)


def test_a_reader_whose_commits_are_all_retired_meanwhile_finds_the_newer_one(memory):
    def retire():
        trials.save(memory, CommitLog(memory, KEYS), BEFORE)
        memory.delete(KEYS.commit(1, 1))

    requests = FaultyStore(memory, [Fault(kind="delay", number=1, times=99)])
    CommitLog(requests, KEYS).chain()
    read = requests.struck.index(f"delay get {KEYS.commit(1, 1)}") + 1
    assert read > 4
    for number in range(1, read + 1):
        before = trials.objects(memory)
        reader = trials.Between(memory, number, retire)
        assert [ref.step for ref in CommitLog(reader, KEYS).chain()] == [2], number
        trials.put_back(memory, before)


def test_a_checkpoint_of_another_data_set_is_refused():
    manifest = types.SimpleNamespace(step=7, job_scalars={"dataset": "a" * 40, "seed": 1})
    run = types.SimpleNamespace(dataset=types.SimpleNamespace(content_hash="b" * 40))
    with pytest.raises(DataError, match=f"{'a' * 40}, but the source now makes data set {'b' * 40}: the data were edited"):
        _check_same_job(run, manifest)


def test_a_writer_whose_index_is_lost_is_named(memory):
    checkpoint = trials.upload(memory, BEFORE, 2)
    memory.delete(index_key(checkpoint, 1))
    with pytest.raises(CorruptObject, match=re.escape(index_key(checkpoint, 1))):
        trials.make_valid(CommitLog(memory, KEYS), BEFORE, checkpoint, 2)


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_what_is_damaged_on_its_way_once_is_read_again_and_not_marked(memory, kind):
    trials.save(memory, CommitLog(memory, KEYS), BEFORE)
    calm = FaultyStore(memory)
    log = CommitLog(calm, KEYS)
    log.load_manifest(log.chain()[0])
    for number in range(1, calm.calls["get"] + 1):
        log = CommitLog(FaultyStore(memory, [Fault(kind=kind, operation="get", number=number)]), KEYS)
        assert [ref.step for ref in log.chain()] == [2, 1]
        assert log.load_manifest(log.chain()[0]).step == 2
    assert not list(memory.list(KEYS.suspects))
