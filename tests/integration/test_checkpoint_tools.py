"""Retention and the verbs of `checkpoint` on a real S3 server, without a job store: SeaweedFS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from object_stores import KEYS as SECRETS
from object_stores import READER, opened, seaweedfs

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoints"))

from stored import KEYS, begin, load, names, prefixes, save, steps

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.retention import Policy, apply_retention
from orchestrator.cli import main
from orchestrator.spec import CheckpointSpec, DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec, to_dict

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=200, global_batch_size=8, micro_batch_size=2),
    checkpoint=CheckpointSpec(keep_last=2, grace_minutes=0),
)


@pytest.fixture(scope="module")
def endpoint():
    with seaweedfs() as found:
        yield found


@pytest.fixture
def place(endpoint, tmp_path, monkeypatch):
    """(store, flags that name it), with four checkpoints of the job `job`."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "nothing"))
    store = opened(endpoint, tmp_path.name)
    store.put(KEYS.spec(1), json.dumps(to_dict(SPEC)).encode())
    epoch, frozen = begin(store), None
    for step in (10, 20, 30, 40):
        _, frozen = save(store, epoch, step, frozen, time_s=float(step))
    return store, ("--storage", f"s3://orchestrator/{tmp_path.name}", "--endpoint-url", endpoint)


def test_the_verbs_need_nothing_but_the_store(place, tmp_path, capsys):
    store, flags = place
    assert main(["checkpoint", "ls", "jo", *flags, "--json"]) == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)["checkpoints"]] == [40, 30, 20, 10]
    assert main(["checkpoint", "verify", "job", "--all", *flags]) == 0
    assert main(["checkpoint", "pin", "job", "10", *flags]) == 0
    assert main(["checkpoint", "gc", "job", *flags]) == 0
    assert steps(store) == [40, 30, 10] and prefixes(store) == [10, 30, 40]
    assert main(["checkpoint", "diff", "job", "10", "40", *flags]) == 0
    folder = str(tmp_path / "out")
    assert main(["checkpoint", "export", "job", folder, "--format", "safetensors", *flags]) == 0
    assert "job at step 40 is in" in capsys.readouterr().out
    for ref in CommitLog(store, KEYS).chain():
        load(store, ref)


def test_who_may_only_read_can_look_and_is_told_why_a_pin_cannot_be(place, monkeypatch, capsys):
    store, flags = place
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    assert main(["checkpoint", "verify", "job", *flags]) == 0
    assert main(["checkpoint", "pin", "job", "10", *flags]) == 2
    assert "refuses" in capsys.readouterr().err
    assert names(store, KEYS.pins) == []


def test_a_bucket_that_is_not_there_is_named(place, endpoint, capsys):
    assert main(["checkpoint", "ls", "job", "--storage", "s3://nowhere/x", "--endpoint-url", endpoint]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_retention_on_s3_leaves_nothing_behind(place):
    store, _ = place
    epoch = begin(store)
    for step in (50, 60):  # with a frozen tensor of their own
        save(store, epoch, step)
    apply_retention(store, KEYS, Policy(keep_last=2))
    assert steps(store) == [60, 50] and prefixes(store) == [50, 60] and names(store, KEYS.tombstones) == []
