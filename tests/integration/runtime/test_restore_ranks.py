"""Whole ranks that go on from commits: they fall back together, pass over what kills its readers, and refuse what is another's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.checkpoints.restore_attempts import MAX_ATTEMPTS, RestoreAttempts
from orchestrator.paths import JobKeys


def group_of(folder, world=2, **changes):
    return Group(folder, world, spec_of(folder / "store", resources__num_workers=world, **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two ranks at ZeRO 0 with commits of steps 3 and 6, by AdamW."""
    return group_of(tmp_path_factory.mktemp("trained"), parallelism__zero_stage=0).run()


@pytest.fixture
def folder(tmp_path, trained):
    shutil.copytree(trained.folder / "store", tmp_path / "store")
    return tmp_path


def commits(group):
    """Keys, newest first."""
    keys = [ref.key for ref in group.log.chain()]
    assert [key[-6] for key in keys] == ["6", "3"]
    return keys


def damage(group, key, writer):
    path = group.store.path(f"{group.log.read(key).prefix}seg-{writer:05d}-0000")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero_stage"), [(2, 0), (3, 1)])
def test_damage_of_what_one_writer_wrote_makes_all_ranks_fall_back(folder, trained, world, zero_stage):
    group = group_of(folder, world, parallelism__zero_stage=zero_stage)
    newest, before = commits(group)
    damage(group, newest, writer=1)
    group.run([newest, before])
    for rank in range(world):
        (suspect,) = group.of("suspect", rank)
        assert suspect["commit"] == newest
        assert "seg-00001-0000' block 0 is damaged: CRC-64" in suspect["message"]
        assert [(row["step"], row["commit"]) for row in group.of("restored", rank)] == [(3, before)]
    expected = {step: loss for step, loss in trained.losses().items() if step > 3}
    assert group.losses() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_when_all_commits_are_damaged_every_rank_says_so(folder):
    group = group_of(folder, parallelism__zero_stage=0)
    keys = commits(group)
    damage(group, keys[0], writer=0)
    group.store.delete(f"{group.log.read(keys[1]).prefix}MANIFEST.json.zst")
    assert group.start(keys).finish() == [1, 1]
    for rank in range(2):
        assert [row["commit"] for row in group.of("suspect", rank)] == keys
        assert group.of("error", rank)[0]["message"].startswith("all 2 commits of job are damaged")


@pytest.mark.slow
def test_a_commit_that_kills_its_readers_is_passed_over_unless_it_is_the_last(folder):
    group = group_of(folder, parallelism__zero_stage=0)
    keys = commits(group)
    for key in keys:
        for _ in range(MAX_ATTEMPTS):
            RestoreAttempts(group.store, JobKeys("job"), key).note()
    group.run(keys)
    for rank in range(2):
        (suspect,) = group.of("suspect", rank)
        assert suspect["commit"] == keys[0]
        assert "was restored 3 times without a step after it" in suspect["message"]
        assert [row["commit"] for row in group.of("restored", rank)] == [keys[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__name": "lion"}, "step 6 has exp_avg_sq of "),
        ({"optimizer__name": "sgd"}, "step 6 has no momentum_buffer of "),
        ({"workload__options": {"width": 9}}, "but float32["),
    ],
)
def test_another_optimizers_or_models_checkpoint_is_refused_and_nothing_is_overwritten(folder, changes, said):
    group = group_of(folder, parallelism__zero_stage=0, **changes)
    keys = commits(group)
    before = {info.key: group.store.get(info.key) for info in group.store.list("jobs/job/ckpt/")}
    assert group.start(keys).finish() == [1, 1]
    errors = [group.of("error", rank)[0] for rank in range(2)]
    assert all(said in error["message"] for error in errors), json.dumps(errors)
    assert not group.of("suspect") and not group.of("restored")
    assert {info.key: group.store.get(info.key) for info in group.store.list("jobs/job/ckpt/")} == before
    assert commits(group) == keys
