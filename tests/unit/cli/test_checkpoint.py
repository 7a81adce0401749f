"""`checkpoint ls | verify | pin | unpin | gc | diff | export` on a folder with a few checkpoints; nothing runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))

from stored import FROZEN, KEYS, begin, names, save, steps, weights

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.cli import main
from orchestrator.control.records.store import JobStore
from orchestrator.job import Job
from orchestrator.paths import Home, manifest_key
from orchestrator.spec import CheckpointSpec, DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec, to_dict
from orchestrator.storage import ObjectStore, open_store

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def spec(home: Home) -> JobSpec:
    return JobSpec(
        workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
        model=ModelSpec(name="m"),
        data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=200, global_batch_size=8, micro_batch_size=2),
        checkpoint=CheckpointSpec(keep_last=2, grace_minutes=1),
        storage=StorageSpec(url=home.store.as_uri()),
    )


@pytest.fixture
def store(home: Home, spec: JobSpec) -> ObjectStore:
    """Steps 10 to 50 of the job `job`, of which 20 was evaluated best."""
    JobStore(home.jobs_db).put(Job(id="job", spec=spec, submitted_s=0.0))
    store = open_store(spec.storage)
    store.put(KEYS.spec(1), json.dumps(to_dict(spec)).encode())
    epoch, frozen = begin(store), None
    for step in (10, 20, 30, 40, 50):
        _, frozen = save(store, epoch, step, frozen, time_s=1e9 + step, value=abs(step - 20.0))
    return store


def said(capsys: Capture, *arguments: str, status: int = 0) -> str:
    """What `checkpoint ...` prints: on stdout, or on stderr if it was asked wrongly."""
    assert main(["checkpoint", *arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status == 2 else captured.out


def told(capsys: Capture, *arguments: str, status: int = 0) -> dict:
    return json.loads(said(capsys, *arguments, "--json", status=status))


def spoil(store: ObjectStore, key: str) -> None:
    content = bytearray(store.get(key))
    content[0] ^= 1
    store.put(key, bytes(content))


def segment(step: int) -> str:
    return f"{KEYS.checkpoint(step, 1, 'u')}seg-00000-0000"


def test_help_names_every_verb_and_a_typo_the_nearest(capsys: Capture) -> None:
    help_text = said(capsys)
    for verb in ("ls", "verify", "diff", "pin", "unpin", "export", "gc"):
        assert f"\n  {verb} JOB" in help_text
        with pytest.raises(SystemExit) as caught:
            main(["checkpoint", verb, "--help"])
        assert caught.value.code == 0 and f"usage: orchestrator checkpoint {verb}" in capsys.readouterr().out
    assert said(capsys, "verfy", status=2).endswith("Did you mean 'verify'?\n")


@pytest.mark.parametrize("verb", ["ls", "verify", "gc"])
def test_a_job_of_an_empty_home_is_not_found_and_nothing_is_made(verb: str, home: Home, capsys: Capture) -> None:
    assert "no job is named 'gpt'" in said(capsys, verb, "gpt", status=2)
    assert not home.root.exists()


# ls


def test_the_list_shows_the_newest_first_with_what_becomes_of_them(store: ObjectStore, capsys: Capture) -> None:
    store.create(KEYS.pin(1, 10), b"{}")
    store.put(KEYS.tombstone(KEYS.checkpoint(30, 1, "u")), b'{"time_s": 1.0}')
    CommitLog(store, KEYS).mark_suspect(KEYS.commit(1, 40), "x")
    store.delete(segment(20))
    head, *rows, fault = said(capsys, "ls", "jo").splitlines()
    assert head.split() == ["STEP", "EPOCH", "AGE", "SIZE", "ELSEWHERE", "WORKERS", "LAYOUT", "METRIC"]
    assert [row.split()[0] for row in rows] == ["50", "40", "30", "20", "10"]
    flags = [" ".join(row.rpartition("loss ")[2].split()[1:]) for row in rows]
    assert flags == ["newest", "suspect", "tombstoned", "damaged", "best pinned"]
    assert "ZeRO 0  loss 30" in rows[0] and "24 B" in rows[0]
    assert fault == f"step 20: '{segment(20)}' is gone."


def test_the_list_as_json(store: ObjectStore, capsys: Capture) -> None:
    found = told(capsys, "ls", "job")
    assert [row["step"] for row in found["checkpoints"]] == [50, 40, 30, 20, 10]
    newest, oldest = found["checkpoints"][0], found["checkpoints"][-1]
    assert (newest["referenced_bytes"], oldest["referenced_bytes"]) == (24, 0)
    own = sum(info.num_bytes for info in store.list(KEYS.checkpoint(50, 1, "u")))
    assert newest["own_bytes"] == own and newest["time_s"] == 1e9 + 50 and newest["value"] == 30.0 and newest["flags"] == ["newest"]
    assert found["checkpoints"][3]["flags"] == ["best"]


def test_a_store_is_enough_where_no_job_is_known(store: ObjectStore, home: Home, tmp_path: Path, capsys: Capture) -> None:
    flags = ("--home", str(tmp_path / "nothing"), "--storage", home.store.as_uri())
    here, there = ([row | {"age_s": 0} for row in told(capsys, "ls", "jo", *more)["checkpoints"]] for more in ((), flags))
    assert here == there and len(here) == 5
    assert said(capsys, "verify", "job", *flags).startswith("step 50 of epoch 1: all of its 2 blocks are good")
    assert "no job is named 'jib'" in (wrong := said(capsys, "ls", "jib", *flags, status=2)) and wrong.endswith("Did you mean 'job'?\n")
    store.put("jobs/job-two/spec-1.json", b"{}")
    assert "'jo' fits 2 jobs: job, job-two" in said(capsys, "ls", "jo", *flags, status=2)
    assert "storage.url=nowhere is not possible" in said(capsys, "ls", "job", "--storage", "nowhere", status=2)
    assert "--endpoint-url=http://x goes with --storage" in said(capsys, "ls", "job", "--endpoint-url", "http://x", status=2)


# verify


def test_a_good_checkpoint_is_verified(store: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "verify", "job") == "step 50 of epoch 1: all of its 2 blocks are good, 40 B\n"
    found = told(capsys, "verify", "job", "--all")
    assert found["good"] and [row["blocks"] for row in found["checkpoints"]] == [2] * 5
    assert "job has no checkpoint of step 25; there are 10, 20, 30, 40, 50." in said(capsys, "verify", "job", "25", status=2)
    assert "--all and step 20 exclude each other" in said(capsys, "verify", "job", "20", "--all", status=2)


def test_a_flipped_bit_is_found_and_marked_only_when_asked(store: ObjectStore, capsys: Capture) -> None:
    spoil(store, segment(50))
    out = said(capsys, "verify", "job", status=1)
    assert f"'{segment(50)}' block 0 is damaged: CRC-64" in out and "--mark" in out
    assert steps(store) == [50, 40, 30, 20, 10]
    (row,) = told(capsys, "verify", "job", "50", "--mark", status=1)["checkpoints"]
    assert row["marked"] and [damage["block"] for damage in row["damaged"]] == [0]
    assert steps(store) == [40, 30, 20, 10]
    assert said(capsys, "verify", "job").startswith("step 40 of epoch 1: all")
    said(capsys, "verify", "job", "--all", status=1)


def test_a_flag_may_stand_before_the_step(store: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "verify", "job", "--mark", "40").startswith("step 40 of epoch 1: all")


@pytest.mark.parametrize("damage", ["short", "gone", "manifest", "commit"])
def test_every_kind_of_damage_is_found(damage: str, store: ObjectStore, capsys: Capture) -> None:
    key = {"manifest": manifest_key(KEYS.checkpoint(50, 1, "u")), "commit": KEYS.commit(1, 50)}.get(damage, segment(50))
    if damage == "gone":
        store.delete(key)
    elif damage == "short":
        store.put(key, store.get(key)[:-1])
    else:
        spoil(store, key)
    assert key in said(capsys, "verify", "job", "--all", status=1)


# pin, gc


def test_a_pin_survives_gc_and_an_unpin_does_not(store: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "pin", "job", "20") == "step 20 of job is pinned\n"
    assert told(capsys, "pin", "job", "20")["pinned"] is True
    said(capsys, "gc", "job")
    assert KEYS.tombstone(KEYS.checkpoint(20, 1, "u")) not in names(store, KEYS.tombstones) and len(names(store, KEYS.tombstones)) == 2
    assert said(capsys, "pin", "job", "10") == "step 10 of job is pinned\n"  # takes its tombstone back
    assert names(store, KEYS.tombstones) == [KEYS.tombstone(KEYS.checkpoint(30, 1, "u"))]
    assert said(capsys, "unpin", "job", "10") == "step 10 of job is not pinned any more\n"
    said(capsys, "gc", "job")
    assert len(names(store, KEYS.tombstones)) == 2


def test_what_is_being_deleted_cannot_be_pinned(store: ObjectStore, capsys: Capture) -> None:
    store.put(KEYS.tombstone(KEYS.checkpoint(10, 1, "u")), b'{"time_s": 1.0}')
    assert main(["checkpoint", "pin", "job", "10"]) == 1
    assert "step 10 of job is being deleted" in capsys.readouterr().err
    assert names(store, KEYS.pins) == []


def test_gc_says_what_it_would_do_then_marks_then_deletes(store: ObjectStore, capsys: Capture) -> None:
    before = names(store, "")
    dry = told(capsys, "gc", "job", "--dry-run")
    assert dry["deleted"] == [] and len(dry["waiting"]) == 3 and dry["kept"] == [50, 40]
    assert names(store, "") == before
    assert "step 10 goes in 1m00s" in said(capsys, "gc", "job")
    for step in (10, 20, 30):
        store.put(KEYS.tombstone(KEYS.checkpoint(step, 1, "u")), b'{"time_s": 1.0}')
    dry = told(capsys, "gc", "job", "--dry-run")
    assert [row["step"] for row in dry["deleted"]] == [10, 20, 30] and dry["bytes"] == sum(row["bytes"] for row in dry["deleted"]) > 0
    assert steps(store) == [50, 40, 30, 20, 10]
    out = said(capsys, "gc", "job")
    assert "deleted step 10  " in out and "3 checkpoints are deleted" in out and "steps that stay: 50, 40" in out
    assert steps(store) == [50, 40]
    assert said(capsys, "verify", "job", "--all").count("all of its 2 blocks are good") == 2


def test_gc_keeps_all_where_the_settings_say_so(store: ObjectStore, home: Home, spec: JobSpec, capsys: Capture) -> None:
    jobs = JobStore(home.jobs_db)
    jobs.update(jobs.get("job"), spec=dataclasses.replace(spec, checkpoint=CheckpointSpec(keep_last=0)))
    assert said(capsys, "gc", "job") == "nothing goes: checkpoint.keep_last=0 keeps all\n"
    assert steps(store) == [50, 40, 30, 20, 10]


# diff, export


def test_a_difference_in_figures(store: ObjectStore, capsys: Capture) -> None:
    out = said(capsys, "diff", "job", "10", "30")
    assert out.splitlines()[1].split() == ["param", "w", "20", "2"] and out.endswith("1 differs, 1 equal\n")
    rows = {row["name"]: row for row in told(capsys, "diff", "job", "20", "50")["tensors"]}
    assert (rows["w"]["change"], rows["w"]["max_abs"], rows["w"]["relative_norm"]) == ("differs", 30.0, 1.5)
    assert rows["frozen"]["change"] == "equal" and rows["frozen"]["before"] == "float32[6]"
    assert said(capsys, "diff", "job", "20", "20") == "2 equal\n"


def test_all_weights_as_safetensors(store: ObjectStore, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    out = said(capsys, "export", "job", str(folder), "--format", "safetensors", "--step", "20")
    assert out == f"job at step 20 is in {folder}: 1 files and their index\n"
    read = load_file(folder / "model-00001-of-00001.safetensors")
    assert np.array_equal(read["w"], weights(20)) and np.array_equal(read["frozen"], FROZEN)
    assert "is there already" in said(capsys, "export", "job", str(folder), "--format", "safetensors", status=2)
    assert told(capsys, "export", "job", str(tmp_path / "new"), "--format", "safetensors")["step"] == 50


def test_an_export_that_cannot_be_is_refused(store: ObjectStore, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    assert "invalid choice: 'onnx'" in said(capsys, "export", "job", str(folder), "--format", "onnx", status=2)
    wrong = said(capsys, "export", "job", str(folder), "--format", "safetensors", "--adapters", status=2)
    assert "--adapters goes with --format hf" in wrong
    assert not folder.exists()
    for step in (10, 20, 30, 40, 50):
        CommitLog(store, KEYS).mark_suspect(KEYS.commit(1, step), "x")
    assert main(["checkpoint", "export", "job", str(folder)]) == 1
    assert "job has no good checkpoint: step 50: marked suspect" in capsys.readouterr().err
